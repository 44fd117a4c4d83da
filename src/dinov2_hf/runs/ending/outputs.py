"""The output of a run for each student: metrics, curves and results, as for a separate run."""

import json
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING

from tqdm.auto import tqdm

from ...output_folders import write_text
from ...pictures.training_curves import plot_training_curves
from ...public_names import without_secrets
from ...training.monitoring.collapse import CollapseMonitor
from ...training.monitoring.monitor import append_metrics, read_metrics, truncate_metrics
from ...training.students import of_student, own_of_student, recipe_of_student
from ..run_folder import STUDENTS_FOLDER
from ..state import measured_by
from ..while_training.evaluation_words import WORDS


if TYPE_CHECKING:
    from ..run import Run


class Output:
    """
    Of one student.

    Args:
        name: name of the student; a single one has an empty name.

    Attributes:
        folder: folder of the run, or the student's folder below it.
        recipe: the recipe that would train the student alone.
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
            num_eval_images=run.evaluations.sizes().get("eval_data images", 0),
            num_images_per_step=run.global_batch_size,
        )

    def continue_from(self, step: int) -> None:
        """Forget the metrics of later steps."""
        truncate_metrics(self.metrics_path, step)

    def record(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append the metrics of this student."""
        append_metrics(self.metrics_path, {"step": step, **of_student(metrics, self.name)})

    def look_for_collapse(self, step: int, metrics: Mapping[str, float]) -> None:
        """Warn about a collapse, or stop the run if its recipe says so."""
        self.monitor.warn(step, of_student(metrics, self.name), stop=self.run.args.stop_on_collapse)

    def draw_curves(self) -> None:
        """Draw the curves, if there is something to draw."""
        plot_training_curves(
            self.metrics_path,
            self.folder / "training_curves.png",
            num_prototypes=self.run.config.num_prototypes,
            pixels=measured_by(self.run.state, "knn", self.name).get("pixels"),
        )

    def measured(self) -> dict[str, dict[str, dict[str, float] | None]]:
        """The result of `measured_by` for each evaluation of the run, by name."""
        return {
            name: measured_by(self.run.state, name, self.name) for name in WORDS if name in self.run.evaluations.names
        }

    def say_measured(self, found: Mapping[str, Mapping[str, float]], seconds: float) -> None:
        """Print the results of evaluations by name in one line, and the time they took."""
        said = [words.line(own_of_student(found[name], self.name)) for name, words in WORDS.items() if name in found]
        student = f"{self.name} " if self.name else ""
        tqdm.write(f"step {self.run.state['step']}: {student}{'; '.join(said)} ({seconds:.0f} s)", file=sys.stdout)

    def format_gains(self) -> str:
        """The main number of each evaluation before and after training, if it was measured."""
        student = f", student {self.name}" if self.name else ""
        lines = []
        for name, found in self.measured().items():
            if not found["after"]:
                continue
            words = WORDS[name]
            key, called = words.main(found["after"])
            before = f"{found['before'][key]:.3f}" if found["before"] else "not measured"
            lines.append(f"{called} on {without_secrets(str(getattr(self.run.args, words.data)))}{student}\n")
            if "pixels" in found:
                lines.append(f"  raw pixels        {found['pixels'][key]:.3f}\n")
            lines += [
                f"  before training   {before}\n",
                f"  after training    {found['after'][key]:.3f}\n",
            ]
        return "".join(lines)

    def write_summary(self) -> None:
        """
        Write `metrics.json`: the steps, the results of evaluations before and after, and the last training record of
        `metrics.jsonl`, or `None` if there is none, as when a finished run is continued in another folder.
        """
        records = read_metrics(self.metrics_path) if self.metrics_path.exists() else []
        training = [record for record in records if "loss" in record]
        last = training[-1] if training else None
        best = {"best": self.run.state["best"]} if "best" in self.run.state else {}
        found = {"knn": {"before": None, "after": None}, **self.measured()}
        summary = {"steps": self.run.state["step"], **best, **found, "last_training_record": last}
        self.folder.mkdir(parents=True, exist_ok=True)
        write_text(self.folder / "metrics.json", json.dumps(summary, indent=2) + "\n")
