"""Which part of a backbone is trained. What is still has no gradients, no optimizer state and no activations kept."""

from collections.abc import Mapping

from torch import Tensor, nn


def choose_trained(
    student: nn.Module,
    average: nn.Module | None = None,
    *,
    train_blocks: int | None = None,
    lora_rank: int | None = None,
) -> None:
    """
    Leave still what is not named here; all is trained where nothing is named.

    Args:
        student: a backbone.
        average: its average, where there is one; it is never trained, and gets the adapters of the student.
        train_blocks: as in `train_last_blocks`.
        lora_rank: as in `add_adapters`.
    """
    if train_blocks:
        train_last_blocks(student, train_blocks)
    if lora_rank:
        add_adapters(student, lora_rank)
    if lora_rank and average is not None:
        add_adapters(average, lora_rank)
        average.load_state_dict(student.state_dict())
        average.requires_grad_(False)


def train_last_blocks(backbone: nn.Module, num_blocks: int) -> None:
    """
    Leave only the last blocks and the norm behind them to be trained; embeddings and earlier blocks are still.

    Args:
        backbone: with `encoder.layer`, a list of blocks, and `layernorm`.
        num_blocks: from 1 to all blocks; with all, the embeddings alone are still.

    Raises:
        ValueError: the backbone has fewer blocks.
    """
    blocks = backbone.encoder.layer
    if not 1 <= num_blocks <= len(blocks):
        raise ValueError(f"`train_blocks` is {num_blocks}; the backbone has {len(blocks)} blocks, give at most that.")
    backbone.requires_grad_(False)
    for part in (*blocks[-num_blocks:], backbone.layernorm):
        part.requires_grad_(True)


def add_adapters(backbone: nn.Module, rank: int) -> None:
    """
    Train low-rank additions to the matrices of the blocks (LoRA, arXiv:2106.09685) and nothing else of the backbone.
    They begin as zero. Their scale is 1, so that `merged_weights` needs to know nothing of them.

    Args:
        rank: of the additions, at least 1.

    Raises:
        ValueError: peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError:
        raise ValueError('`lora_rank` needs peft, which is not installed: pip install "dinov2_hf[lora]".') from None
    matrices = r".*encoder\.layer\.\d+\..*\.(query|key|value|dense|fc1|fc2|weights_in|weights_out)"
    inject_adapter_in_model(LoraConfig(r=rank, lora_alpha=rank, target_modules=matrices), backbone)


def merged_weights(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights in which the additions of `add_adapters` are added, under the names of a network without them."""
    merged = {}
    for name, tensor in state_dict.items():
        if ".lora_A." in name or ".lora_B." in name:
            continue
        plain, _, base = name.partition(".base_layer.")
        if base == "weight":
            down, up = (state_dict[f"{plain}.{side}.default.weight"] for side in ("lora_A", "lora_B"))
            tensor = tensor + up @ down
        merged[f"{plain}.{base}" if base else name] = tensor
    return merged
