"""Which sources of a growing pool share an index."""

from collections.abc import Sequence


def grouped_by_size(sizes: Sequence[int]) -> list[range]:
    """Neighbouring sources that share an index.

    A source begins a group of its own. While the group before it does not have more rows, the two become one. So a
    group has fewer rows than the one before, and a source that comes last leaves the larger groups as they are. n
    sources of equal size have at most log2(n) + 1 groups, and the rows of each source were indexed as often at most.

    Args:
        sizes: rows of each source, in their order.

    Returns:
        The numbers of the sources of each group.
    """
    groups: list[tuple[range, int]] = []
    for number, size in enumerate(sizes):
        members = range(number, number + 1)
        while groups and groups[-1][1] <= size:
            earlier, earlier_size = groups.pop()
            members, size = range(earlier.start, members.stop), earlier_size + size
        groups.append((members, size))
    return [members for members, _ in groups]
