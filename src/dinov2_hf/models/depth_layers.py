"""The four blocks that depth heads read (paper, section 7.4)."""

# 0-based blocks of the released heads, by the number of blocks of their backbone (S and B, L, g).
DEPTH_LAYERS = {12: [2, 5, 8, 11], 24: [4, 11, 17, 23], 40: [9, 19, 29, 39]}


def four_depth_layers(num_hidden_layers: int) -> list[int]:
    """
    The blocks of the released heads, or the last block of each quarter for a backbone of another depth.

    Raises:
        `ValueError`: there are fewer than 4 blocks.
    """
    if num_hidden_layers < 4:
        raise ValueError(
            f"`num_hidden_layers` is {num_hidden_layers}, but a head on four layers needs at least 4 blocks; take one"
            " layer."
        )
    quarters = [quarter * num_hidden_layers // 4 - 1 for quarter in (1, 2, 3, 4)]
    return list(DEPTH_LAYERS.get(num_hidden_layers, quarters))
