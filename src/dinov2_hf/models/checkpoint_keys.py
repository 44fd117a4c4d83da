"""
The checkpoint keys that our classes load in addition to their own.

Our parameter names are those of the checkpoints on the Hub, so these need no rule. Two kinds of stock checkpoints need
one: those written by `save_pretrained(save_original_format=False)` of transformers' own classes, with the names that
their modules have in memory; and heads on a model with registers, whose prefix is `dinov2_with_registers.`.
"""

from collections.abc import Mapping

from torch import Tensor
from transformers.conversion_mapping import register_checkpoint_conversion_mapping
from transformers.core_model_loading import Concatenate, WeightConverter, WeightRenaming


def register_stock_keys(class_name: str) -> None:
    """Make `from_pretrained` of the class of this name load the stock keys. Calling it again is harmless."""
    renamings = {
        r"^dinov2_with_registers\.": "dinov2.",
        r"attention\.q_proj\.": "attention.attention.query.",
        r"attention\.k_proj\.": "attention.attention.key.",
        r"attention\.v_proj\.": "attention.attention.value.",
        r"attention\.o_proj\.": "attention.output.dense.",
        r"mlp\.down_proj\.": "mlp.weights_out.",
    }
    converters = [
        WeightConverter(
            source_patterns=[f"mlp.gate_proj.{kind}", f"mlp.up_proj.{kind}"],
            target_patterns=f"mlp.weights_in.{kind}",
            operations=[Concatenate(dim=0)],
        )
        for kind in ("weight", "bias")
    ]
    register_checkpoint_conversion_mapping(
        class_name,
        [WeightRenaming(source, target) for source, target in renamings.items()] + converters,
        overwrite=True,
    )


class SavesCheckpointKeysAsTheyAre:
    """Mix-in of a `PreTrainedModel` that saves weights under their parameter names, wherever they were loaded from."""

    def save_pretrained(self, *args, save_original_format: bool = False, **kwargs):
        """As in transformers, with another default: `save_original_format=True` would undo the rules of loading."""
        return super().save_pretrained(*args, save_original_format=save_original_format, **kwargs)


def renamed_below(state_dict: Mapping[str, Tensor], renamed: Mapping[str, str]) -> dict[str, Tensor]:
    """The weights below the given paths, with these paths renamed. The empty path stands for all weights."""
    return {
        ".".join(filter(None, (new, key[len(old) :].removeprefix(".")))): value
        for old, new in renamed.items()
        for key, value in state_dict.items()
        if not old or key.startswith(f"{old}.")
    }
