"""What a run leaves of each network that it trains: metrics, curves and results, as if of a run of its own."""

import json
from collections.abc import Mapping
from typing import TYPE_CHECKING

from ..output_folders import write_text
from ..pictures.training_curves import plot_training_curves
from ..public_names import without_secrets
from ..training.collapse import CollapseMonitor
from ..training.monitor import append_metrics, read_metrics, truncate_metrics
from ..training.students import of_student, own_of_student, recipe_of_student
from .run_folder import STUDENTS_FOLDER


if TYPE_CHECKING:
    from .run import Run


class Output:
    """
    Of one student.

    Args:
        name: that of the student; the only one has an empty name.

    Attributes:
        folder: of the run, or below it one of the student.
        recipe: that would train the student alone.
    """

    def __init__(self, run: "Run", name: str):
        self.run, self.name = run, name
        self.folder = run.output_dir / STUDENTS_FOLDER / name if name else run.output_dir
        self.recipe = recipe_of_student(run.plan.recipe, name)
        self.metrics_path = self.folder / "metrics.jsonl"
        memory = run.state.setdefault("collapse", {})
        self.monitor = CollapseMonitor(
            memory.setdefault(name, {}) if name else memory,
            num_prototypes=run.config.num_prototypes,
            warmup_steps=run.args.warmup_steps,
            image_level=run.config.dino_loss_weight > 0,
            patch_level=run.config.ibot_loss_weight > 0,
            num_eval_images=len(run.evaluation.queries) if run.evaluation else 0,
            num_images_per_step=run.global_batch_size,
        )

    def continue_from(self, step: int) -> None:
        """Forget the metrics of later steps."""
        truncate_metrics(self.metrics_path, step)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append what concerns this student."""
        append_metrics(self.metrics_path, {"step": step, **of_student(metrics, self.name)})

    def look_for_collapse(self, step: int, metrics: Mapping[str, float]) -> None:
        """Warn of one, or stop the run, if its recipe says so."""
        self.monitor.warn(step, of_student(metrics, self.name), stop=self.run.args.stop_on_collapse)

    def draw_curves(self) -> None:
        """Where there is something to draw by now."""
        picture = self.folder / "training_curves.png"
        plot_training_curves(self.metrics_path, picture, num_prototypes=self.run.config.num_prototypes)

    def knn(self) -> dict[str, dict[str, float] | None]:
        """Accuracies of the backbone `before` training and `after` the last step; `None` when not measured."""
        state = self.run.state
        found = {moment: state.get(f"knn_{moment}") for moment in ("before", "after")}
        if state.get("knn_step", state["step"]) != state["step"]:  # that of an earlier one
            found["after"] = None
        return {moment: own_of_student(metrics, self.name) if metrics else None for moment, metrics in found.items()}

    def format_knn(self, metrics: Mapping[str, float]) -> str:
        """Top-1 accuracies, `knn_top1_k20: 0.93` as "k=20 0.930"."""
        own = own_of_student(metrics, self.name).items()
        shown = [
            f"k={key.removeprefix('knn_top1_k')} {value:.3f}" for key, value in own if key.startswith("knn_top1_")
        ]
        return f"{f'{self.name} ' if self.name else ''}k-NN {', '.join(shown)}"

    def format_knn_gain(self) -> str:
        """Before and after for one number of neighbours, 20 where measured; nothing when k-NN was not measured."""
        knn = self.knn()
        if not knn["after"]:
            return ""
        key = "knn_top1_k20" if "knn_top1_k20" in knn["after"] else next(iter(knn["after"]))
        before = f"{knn['before'][key]:.3f}" if knn["before"] else "not measured"
        measured_on = without_secrets(str(self.run.args.eval_data)) + (f", student {self.name}" if self.name else "")
        return (
            f"k-NN accuracy (k={key.rpartition('k')[2]}) on {measured_on}\n"
            f"  before training   {before}\n"
            f"  after training    {knn['after'][key]:.3f}\n"
        )

    def write_summary(self) -> None:
        """
        Write `metrics.json`: the steps, k-NN before and after, and the last training record of `metrics.jsonl`; `None`
        where there is none, as when a finished run is continued in another folder.
        """
        records = read_metrics(self.metrics_path) if self.metrics_path.exists() else []
        training = [record for record in records if "loss" in record]
        last = training[-1] if training else None
        best = {"best": self.run.state["best"]} if "best" in self.run.state else {}
        summary = {"steps": self.run.state["step"], **best, "knn": self.knn(), "last_training_record": last}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "metrics.json", json.dumps(summary, indent=2) + "\n")
