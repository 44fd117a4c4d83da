"""The arguments of a distillation: those of a pretraining, the teacher and the students."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..options import argument
from ..value_ranges import AT_LEAST_ONE
from .pretraining_arguments import PreTrainingArguments


# Values that an entry of `students` may set in addition to its network and heads. All others belong to the run, its
# crops and its teacher.
NOT_IN_RECIPES = ("name", "num_processes")
OF_A_STUDENT = ("learning_rate", "layerwise_decay", "patch_embed_lr_multiplier", "init_from")


@dataclass
class DistillationArguments(PreTrainingArguments):
    """The arguments of a pretraining, a teacher, and optionally several students."""

    # It has a default only because the fields before it have one.
    teacher: str | None = argument(
        None,
        "The frozen network to learn from: a run or pretraining_model folder (the paper's objective needs its heads),"
        " or for distillation_objective features any model folder or name on the Hub.",
    )
    students: list[dict[str, Any]] | None = argument(
        None,
        "Several students in one run, each a mapping with a name and what is its own of the network, its heads and its"
        " learning rates; num_processes gives a student processes of its own.",
    )
    teacher_mixed_precision: str = argument(
        "auto", '"auto" (as the run), "no" or "bf16", with half the memory.', ("auto", "no", "bf16")
    )
    teacher_image_size: int | None = argument(
        None, "Side in pixels that crops are resized to for the teacher; by default as they are.", AT_LEAST_ONE
    )

    def __post_init__(self):
        super().__post_init__()
        if not self.teacher:
            raise ValueError("`teacher` is missing; give the folder or the Hub name of the network to learn from.")
        self._check_names()
        self._check_processes()

    def _check_names(self) -> None:
        names = [entry.get("name") for entry in self.students or []]
        for name in names:
            if not isinstance(name, str) or not name.replace("-", "").replace("_", "").isalnum():
                raise ValueError(
                    f"`students` has the name {name}; every student needs one of letters, digits, - and _, which is"
                    " that of its folder."
                )
            if names.count(name) > 1:
                raise ValueError(f"`students` has the name {name} twice; give every student a name of its own.")

    def _check_processes(self) -> None:
        counts = [entry.get("num_processes") for entry in self.students or []]
        if any(counts) and not all(isinstance(count, int) and count > 0 for count in counts):
            raise ValueError(
                f"`num_processes` of the students is {', '.join(map(str, counts))}; give every student at least 1, or"
                " leave all out, and every process computes all students."
            )


def values_of_student(entry: Mapping[str, Any], of_networks: Iterable[str]) -> dict[str, Any]:
    """
    The values of an entry of `students` that override those of the recipe; `ValueError` for a name that belongs to the
    whole run, or is unknown. `of_networks` are the names that describe a network and its heads.
    """
    allowed = {*of_networks, *OF_A_STUDENT}
    for key in entry:
        if key not in allowed and key not in NOT_IN_RECIPES:
            raise ValueError(
                f"the student {entry['name']} has `{key}`, which is not a student's own; it may have"
                f" {', '.join(sorted(allowed))}."
            )
    return {key: value for key, value in entry.items() if key in allowed}
