"""The schedules of a recipe."""

from transformers import PreTrainedConfig

from ...options import values_for
from ...pretraining.terms import with_first_weights
from ...training.schedules import PreTrainingSchedules, build_schedules
from ..pretraining_arguments import PreTrainingArguments


def schedules_of(
    args: PreTrainingArguments, config: PreTrainedConfig, peak_learning_rate: float
) -> PreTrainingSchedules:
    """
    `build_schedules` of a recipe.

    Args:
        config: of the objective, with the first weights of the terms that have a field there.

    Raises:
        `ValueError`: see `build_schedules`.
    """
    values = values_for(build_schedules, args)
    values["loss_terms"] = with_first_weights(args.loss_terms or {}, config)
    return build_schedules(peak_learning_rate=peak_learning_rate, **values)
