"""The `dinov2-hf` command in this process, and what it says of a mistake."""

import pytest

from dinov2_hf.cli import main


def run(*words) -> None:
    main([str(word) for word in words])


def mistake(*words) -> str:
    """The sentence on standard error; there must be exactly one line, and no traceback."""
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert isinstance(stop.value.code, str), stop.value.code
    assert stop.value.code.startswith("error: ")
    assert "\n" not in stop.value.code
    return stop.value.code
