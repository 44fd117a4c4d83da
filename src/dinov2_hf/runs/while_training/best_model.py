"""The best step of a run by one of its metrics."""

import logging
import math
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from ...training.checkpointing.checkpoint_folders import checkpoint_name
from ...training.run_stopped import RunStopped
from ...training.students import names_of


logger = logging.getLogger(__name__)


class BestStep:
    """
    Watches the metrics of a run. Step 0 does not count, because its weights are those that the run started from.

    Args:
        metric: a name in `metrics.jsonl`, such as "knn_top1_k20"; with several students, with the name of one before
            it, as in "small/knn_top1_k20". `None` keeps nothing.
        greater_is_better: by default true, except for a metric whose name ends with "loss".
        state: state of the run, saved with it. It contains `best` with `metric`, `value` and `step`.
        evaluations: the beginnings of the names of evaluation metrics, such as "knn".
    """

    def __init__(
        self,
        metric: str | None,
        greater_is_better: bool | None,
        state: dict[str, Any],
        evaluations: Iterable[str] = (),
    ):
        self.metric, self.state = metric, state
        self._awaited = {"loss", *(f"{name}_" for name in evaluations)}
        self.sign = 1 if (not str(metric).endswith("loss") if greater_is_better is None else greater_is_better) else -1
        self._names: set[str] = set()
        known = state.get("best")
        if known is not None and known["metric"] != metric:
            del state["best"]

    @property
    def step(self) -> int | None:
        """The best step so far."""
        return self.state["best"]["step"] if "best" in self.state else None

    @property
    def student(self) -> str:
        """The name of the student of the metric; empty for a single student."""
        return names_of([self.metric])[0]

    def see(self, step: int, metrics: Mapping[str, float]) -> None:
        """
        Record the numbers of a step; numbers that are not finite are ignored.

        Raises:
            RunStopped: training and all evaluations have given numbers, and the metric was not among them.
        """
        self._names |= metrics.keys()
        own = [name.rpartition("/")[2] for name in metrics]
        self._awaited = {begin for begin in self._awaited if not any(name.startswith(begin) for name in own)}
        if self.metric not in (None, *self._names) and not self._awaited:
            known = ", ".join(sorted(self._names))
            raise RunStopped(f"`keep_best` is {self.metric}, which this run does not measure; it measures {known}.")
        value = metrics.get(self.metric)
        if not step or value is None or not math.isfinite(value):
            return
        best = self.state.get("best")
        if best is None or self.sign * value > self.sign * best["value"]:
            self.state["best"] = {"metric": self.metric, "value": value, "step": step}

    def check_student(self, names: Iterable[str]) -> None:
        """`ValueError` if the metric does not belong to a student of the run."""
        names = list(names)
        if self.metric is None or self.student in names:
            return
        said = f"this run trains {', '.join(names)}; name the metric of one, such as {names[0]}/knn_top1_k20"
        if names == [""]:
            said = "this run trains one student, which has no name; leave the name out"
        raise ValueError(f"`keep_best` is {self.metric}, but {said}.")

    def forget_without(self, checkpoints: list[Path]) -> None:
        """
        Forget the best step of a resumed run if its checkpoint no longer exists. This happens if a later step was
        better before the run was resumed.

        Args:
            checkpoints: existing checkpoints.
        """
        if self.step is not None and checkpoint_name(self.step) not in [path.name for path in checkpoints]:
            logger.warning(
                "The best step so far, %d, has no checkpoint any more; the best is looked for anew from here.",
                self.step,
            )
            del self.state["best"]


def describe_best(best: Mapping[str, Any] | None) -> str:
    """`"knn_top1_k20 0.9300 at step 600"`; empty if nothing was kept."""
    return f"{best['metric']} {best['value']:.4f} at step {best['step']}" if best else ""
