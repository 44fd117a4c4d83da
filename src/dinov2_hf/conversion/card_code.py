"""The Python code in a card. It runs unchanged in the folder of the card, if there is an `image.jpg`."""

import re
from collections.abc import Iterable, Sequence

from ..model_source import HERE


# The comment above code that opens a file by its name, which an id on the Hub cannot replace.
HERE_ONLY = "# In this folder, on this machine."
# Imports, and the code that makes `pixel_values`.
PREPROCESSED = (
    "from PIL import Image\nfrom transformers import AutoImageProcessor",
    """\
processor = AutoImageProcessor.from_pretrained(".")
pixel_values = processor(Image.open("image.jpg"), return_tensors="pt")["pixel_values"]""",
)


def inputs(shape: Sequence[int] | None) -> tuple[str, str]:
    """
    Imports and code for `pixel_values`.

    Args:
        shape: shape `(B, C, H, W)` of images if no image processor is saved; `None` if there is one.
    """
    if shape is None:
        return PREPROCESSED
    return "import torch", f"pixel_values = torch.zeros({', '.join(map(str, shape))})  # normalised images"


def python_block(parts: Iterable[tuple[str, str]], here: str = HERE) -> str:
    """
    A fenced block of Python.

    Args:
        parts: imports and code of each, in their order.
        here: the comment above the code, which says where it runs.
    """
    parts = list(parts)
    lines = dict.fromkeys(line for imports, _ in parts for line in imports.splitlines())
    imports = sorted(lines, key=lambda line: (line.startswith("from "), line))
    return "\n".join(["```python", here, *_merged(imports), "", *(code for _, code in parts), "```"])


def _merged(imports: list[str]) -> list[str]:
    """Imports with all names of one module on one line."""
    names: dict[str, list[str]] = {}
    for line in imports:
        match = re.fullmatch(r"(from \S+ import) (.+)", line)
        names.setdefault(match[1] if match else line, []).extend(match[2].split(", ") if match else [])
    return [f"{start} {', '.join(sorted(set(found)))}" if found else start for start, found in names.items()]


def without_code(text: str) -> str:
    """
    The text of another folder's card, for a quotation. Its code and its pictures are left out, because they refer to
    that folder.
    """
    text = re.sub(r"^```python\n.*?^```\n?", "", text, flags=re.DOTALL | re.MULTILINE)
    text = re.sub(r"!\[([^\]]*)\]\((?!https?://)[^)]*\)", r"\1", text)
    return re.sub(r"\n{3,}", "\n\n", text).strip()
