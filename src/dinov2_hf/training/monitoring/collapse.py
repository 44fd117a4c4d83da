"""
Detects a collapse of a run, by rules over the numbers of log lines and evaluations. Each finding is one sentence.

A collapsed model gives every image the same target, or the same feature. The loss does not show it: without centering
it falls to 0 within 200 steps, and KoLeo keeps the CLS features apart meanwhile.
"""

import logging
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from ..checkpointing.checkpoints import list_checkpoints


logger = logging.getLogger(__name__)

# Exit code of a run that was stopped for a collapse; every other error has 1, and 2 is Python's own.
COLLAPSED_EXIT_CODE = 3

# One odd batch or the first steps must not count, so a rule needs this many log lines in a row, over at least this
# many steps. A running centre with the usual momentum of 0.9 has forgotten its start after 50 steps.
MIN_MEASUREMENTS = 3
MIN_STEPS = 50

# Nats that a target tells about its image. On handwritten digits an untrained network had 0.1, a trained one 3, and a
# collapsed one 1e-16; with targets as good as uniform, from teacher temperatures of 0.04 to 0.07, it was 0.02 to 0.4.
MIN_TARGET_INFORMATION = 0.02
# Share of the entropy of uniform targets, ln K. Such targets teach nothing, but are not a collapse by themselves.
UNIFORM_ENTROPY = 0.98
# Mean cosine of two images. On digits, trained networks had 0.03 to 0.1, and one that collapsed without KoLeo 0.99. An
# untrained one has 0.99 too, so this counts after the learning rate's warm-up, or below DISTINCT_COSINE once.
MAX_PAIR_COSINE = 0.98
DISTINCT_COSINE = 0.9
# Share of the best effective rank so far; on digits the rank of a run that learns only rises.
MIN_SHARE_OF_BEST_RANK = 0.25
# Share of the best k-NN accuracy so far that may be lost.
MAX_KNN_LOSS = 0.05
# Share of the best mean IoU of patch k-NN so far that may be lost.
MAX_MIOU_LOSS = 0.05
# Images of one step below which training made trained features worse, on digits: from 0.942, 50 steps of 4 images
# ended at 0.818, of 4 x 8 accumulated at 0.930, and of 32 in one pass at 0.960.
SMALL_BATCH = 32

REMEDIES = (
    "what usually helps: centering sinkhorn_knopp (or softmax, never none), a higher koleo_loss_weight, a lower"
    " learning_rate or more warmup_steps, a higher teacher_momentum, a larger batch, fewer near-duplicates among the"
    " images"
)
KNN_REMEDIES = (
    "what usually helps: {batch}a lower learning_rate, more warmup_steps, a higher teacher_momentum, and, when"
    " continuing from trained weights, heads that are trained first on a frozen backbone"
)
DENSE_REMEDIES = (
    "what usually helps: Gram anchoring to an earlier network (loss_terms gram_anchoring with gram_teacher, such as an"
    " earlier checkpoint of this run), a lower learning_rate, and to stop earlier (keep_best patch_knn_miou keeps the"
    " best step)"
)
KINDS = {"cls": "CLS features", "patch": "patch features"}


def small_batch_advice() -> str:
    """Advice for a step with few images."""
    return (
        f"at least {SMALL_BATCH}, best in one pass by --per_device_train_batch_size, else accumulated by"
        " --gradient_accumulation_steps"
    )


class RunCollapsed(Exception):
    """
    A run that stops because it has collapsed; its message is the sentence of the rule.

    Args:
        sentence: the number and the limit that it crossed, and what usually helps.
        healthy_step: the last step at which the number was healthy, or `None` if it never was.
    """

    def __init__(self, sentence: str, healthy_step: int | None):
        super().__init__(sentence)
        self.healthy_step = healthy_step

    def advice(self, checkpoints: Path) -> str:
        """The checkpoint of the folder to continue from, in a sentence."""
        good = [
            path
            for path in list_checkpoints(checkpoints)
            if self.healthy_step is not None and int(path.name.removeprefix("step_")) <= self.healthy_step
        ]
        if not good:
            return "No checkpoint is from before the collapse: change the recipe and start again."
        return (
            f"The last checkpoint from before the collapse is {good[-1]}: change the recipe, and go on with"
            f" --resume_from_checkpoint {good[-1]} --allow_recipe_change."
        )


@dataclass(frozen=True)
class Verdict:
    """
    The result of a rule for one record.

    Args:
        bad: whether the number is beyond the limit.
        sentence: text of a warning; `{measurements}` stands for the number of log lines.
        collapse: whether further training is useless; `stop_on_collapse` then stops the run.
        armed: whether the rule already counts. A number that is bad before, as for untrained networks, is not healthy
            either.
        patient: whether one log line is not enough.
    """

    cause: str
    bad: bool
    sentence: str
    collapse: bool = True
    armed: bool = True
    patient: bool = True


@dataclass(frozen=True)
class CollapseWarning:
    """The finding of a rule; `healthy_step` is the last step at which its number was healthy."""

    sentence: str
    collapse: bool
    healthy_step: int | None


class CollapseMonitor:
    """
    Checks every record of `metrics.jsonl` and warns once about each cause.

    Args:
        memory: stores the first, the best and the last healthy values, as plain numbers and names. It is saved with a
            checkpoint, so that a resumed run knows them, and is empty at the start of a run.
        num_prototypes: K of the DINO head.
        warmup_steps: warm-up of the learning rate, in steps.
        image_level: whether the DINO loss trains CLS tokens; if not, their targets and features are not judged.
        patch_level: whether the iBOT loss trains patches; if not, their features are not judged.
        num_eval_images: images classified by k-NN, for the noise of its accuracy.
        num_images_per_step: images over all passes and processes; `None` if unknown.
    """

    def __init__(
        self,
        memory: dict,
        *,
        num_prototypes: int,
        warmup_steps: int,
        image_level: bool = True,
        patch_level: bool = True,
        num_eval_images: int = 0,
        num_images_per_step: int | None = None,
    ):
        self.memory = memory
        self.num_prototypes = num_prototypes
        self.warmup_steps = warmup_steps
        self.image_level, self.patch_level = image_level, patch_level
        self.num_eval_images = num_eval_images
        batch = ""
        if num_images_per_step is not None and num_images_per_step < SMALL_BATCH:
            batch = f"more than the {num_images_per_step} images of a step now ({small_batch_advice()}), "
        self.knn_remedies = KNN_REMEDIES.format(batch=batch)
        for name in ("start", "best", "healthy_steps", "streaks"):
            memory.setdefault(name, {})
        memory.setdefault("warned", [])

    def warn(self, step: int, metrics: Mapping[str, float], *, stop: bool) -> None:
        """
        Call `observe`, and log its findings.

        Raises:
            `RunCollapsed`: `stop` is set and a finding is a collapse.
        """
        for warning in self.observe(step, metrics):
            if stop and warning.collapse:
                raise RunCollapsed(f"step {step}: {warning.sentence}", warning.healthy_step)
            logger.warning("warning at step %d: %s", step, warning.sentence)

    def observe(self, step: int, metrics: Mapping[str, float]) -> list[CollapseWarning]:
        """
        Check the record of `step`. Numbers that are missing or not finite are skipped.

        Returns:
            One warning for each new cause, usually none.
        """
        metrics = {name: value for name, value in metrics.items() if math.isfinite(value)}
        for name in metrics:
            if name.startswith(("cls_", "patch_", "target_information", "knn_top1")):
                self.memory["start"].setdefault(name, metrics[name])
        verdicts = [*self._knn(metrics), *self._dense(metrics)]
        if self.patch_level:
            verdicts = [*self._features("patch", step, metrics), *verdicts]
        if self.image_level:
            verdicts = [*self._targets(step, metrics), *self._features("cls", step, metrics), *verdicts]
        return [warning for verdict in verdicts if (warning := self._count(step, verdict))]

    def _targets(self, step: int, metrics: Mapping[str, float]) -> Iterator[Verdict]:
        """Image-level targets that are the same for all images, uniform or not."""
        if not {"target_information", "target_entropy"} <= metrics.keys():
            return
        information, entropy = metrics["target_information"], metrics["target_entropy"]
        same, most = information < MIN_TARGET_INFORMATION, math.log(self.num_prototypes)
        uniform = entropy > UNIFORM_ENTROPY * most
        number = (
            f"target_information is {information:.2g} nats, below {MIN_TARGET_INFORMATION} for {{measurements}} log"
            f" lines{self._at_start('target_information')}"
        )
        yield Verdict(
            "constant_targets",
            same and not uniform,
            f"the teacher's targets have collapsed: {number}, so every image has the same target, spread over"
            f" {math.exp(entropy + information):.3g} of {self.num_prototypes} prototypes; {REMEDIES}, and a higher"
            " teacher_temperature.",
        )
        yield Verdict(
            "uniform_targets",
            same and uniform,
            f"the teacher's targets are uniform and teach nothing: {number} and target_entropy {entropy:.3f} of"
            f" ln K = {most:.3f}; what usually helps: a lower teacher_temperature and warmup_teacher_temperature, and"
            " fewer prototypes for little data.",
            collapse=False,
            armed=step >= self.warmup_steps,
        )

    def _features(self, kind: str, step: int, metrics: Mapping[str, float]) -> Iterator[Verdict]:
        """Features that are the same for all images, or that have lost most of their directions."""
        best, name = self.memory["best"], f"{kind}_pair_cosine"
        if name in metrics:
            cosine = metrics[name]
            best[name] = min(cosine, best.get(name, cosine))
            yield Verdict(
                f"same_{kind}",
                cosine > MAX_PAIR_COSINE,
                f"the {KINDS[kind]} have collapsed: {name} is {cosine:.4f}, above {MAX_PAIR_COSINE} for"
                f" {{measurements}} log lines{self._at_start(name)}, so all images have nearly the same feature;"
                f" {REMEDIES}.",
                armed=step >= self.warmup_steps or best[name] < DISTINCT_COSINE,
            )
        name = f"{kind}_effective_rank"
        if name in metrics:
            rank = metrics[name]
            best[name] = max(rank, best.get(name, rank))
            yield Verdict(
                f"low_rank_{kind}",
                rank < MIN_SHARE_OF_BEST_RANK * best[name],
                f"the {KINDS[kind]} lose their directions: {name} is {rank:.3g}, below {MIN_SHARE_OF_BEST_RANK} of its"
                f" best, {best[name]:.3g}, for {{measurements}} log lines{self._at_start(name)}; {REMEDIES}.",
            )

    def _knn(self, metrics: Mapping[str, float]) -> Iterator[Verdict]:
        """k-NN accuracy that has fallen below the start, or well below its best, by more than the noise."""
        name = next((name for name in ("knn_top1_k20", *metrics) if name in metrics and "knn_top1" in name), None)
        if name is None:
            return
        accuracy, start = metrics[name], self.memory["start"][name]
        best = self.memory["best"][name] = max(accuracy, self.memory["best"].get(name, accuracy))
        described = f"k-NN accuracy ({name.removeprefix('knn_top1_').replace('k', 'k=')}) is {accuracy:.3f}"
        yield Verdict(
            "knn_below_start",
            accuracy < start - self._knn_noise(start),
            f"{described}, below the {start:.3f} that the run started from: training makes the features worse;"
            f" {self.knn_remedies}.",
            collapse=False,
            patient=False,
        )
        has_fallen = accuracy < best - max(MAX_KNN_LOSS * best, self._knn_noise(best))
        self.memory["knn_holds"] = not has_fallen
        yield Verdict(
            "knn_below_best",
            has_fallen,
            f"{described}, more than {MAX_KNN_LOSS:.0%} below its best, {best:.3f}{self._at_start(name)};"
            f" {self.knn_remedies}.",
            collapse=False,
            patient=False,
        )

    def _dense(self, metrics: Mapping[str, float]) -> Iterator[Verdict]:
        """Mean IoU of patch k-NN that has fallen well below its best, by more than the noise, while k-NN holds."""
        name, error_name = "patch_knn_miou", "patch_knn_miou_stderr"
        if not {name, error_name} <= metrics.keys():  # with one image there is no standard error
            return
        best, miou = self.memory["best"], metrics[name]
        if miou >= best.get(name, miou):
            best.update({name: miou, error_name: metrics[error_name]})
        noise = 2 * math.hypot(metrics[error_name], best[error_name])
        knn_holds = self.memory.get("knn_holds")
        yield Verdict(
            "dense_below_best",
            miou < best[name] - max(MAX_MIOU_LOSS * best[name], noise),
            f"the dense features decay: patch k-NN mIoU is {miou:.3f}, more than {MAX_MIOU_LOSS:.0%} below its best,"
            f" {best[name]:.3f}{self._at_start(name)}{', while k-NN accuracy holds' if knn_holds else ''};"
            f" {DENSE_REMEDIES}.",
            collapse=False,
            armed=knn_holds is not False,  # otherwise the k-NN rule says that all features get worse
            patient=False,
        )

    def _knn_noise(self, accuracy: float) -> float:
        """Two standard errors of the difference of two accuracies measured on as many images."""
        return 2 * math.sqrt(2 * accuracy * (1 - accuracy) / max(self.num_eval_images, 1))

    def _at_start(self, name: str) -> str:
        return f" ({self.memory['start'][name]:.3g} at the start)"

    def _count(self, step: int, verdict: Verdict) -> CollapseWarning | None:
        """Count bad log lines in a row; warn once if there are enough and the rule is armed."""
        cause, memory = verdict.cause, self.memory
        if not verdict.bad:
            memory["healthy_steps"][cause] = step
            memory["streaks"].pop(cause, None)
            return None
        streak = memory["streaks"].setdefault(cause, {"since": step, "measurements": 0})
        streak["measurements"] += 1
        long_enough = streak["measurements"] >= MIN_MEASUREMENTS and step - streak["since"] >= MIN_STEPS
        if cause in memory["warned"] or not verdict.armed or (verdict.patient and not long_enough):
            return None
        memory["warned"].append(cause)
        sentence = verdict.sentence.format(measurements=streak["measurements"])
        return CollapseWarning(sentence, verdict.collapse, memory["healthy_steps"].get(cause))
