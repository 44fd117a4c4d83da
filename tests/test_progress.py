"""Progress on a terminal and elsewhere."""

import sys
import time

import pytest

from dinov2_hf import progress
from dinov2_hf.progress import Progress


@pytest.fixture
def each_is_shown(monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_BETWEEN_LINES", 0)


def test_elsewhere_there_are_lines(each_is_shown, capsys):
    bar = Progress(total=3, desc="Work")
    for _ in range(3):
        bar.update()
    bar.set_postfix_str("loss 1")
    bar.close()
    said = capsys.readouterr().err
    assert "\r" not in said
    lines = said.splitlines()
    assert all(line.startswith("Work: ") for line in lines)
    assert [part for line in lines for part in ("0/3", "1/3", "2/3", "3/3") if part in line][:4] == [
        "0/3", "1/3", "2/3", "3/3",
    ]  # fmt: skip
    assert "loss 1" in lines[-1]


def test_a_short_loop_writes_no_line(capsys):
    assert list(Progress(range(3))) == [0, 1, 2]
    assert capsys.readouterr().err == ""
    bar = Progress(total=3, delay=0)
    bar.update(3)
    bar.close()
    assert "3/3" in capsys.readouterr().err.splitlines()[-1]


def test_on_a_terminal_there_is_a_bar(monkeypatch, capsys):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    for _ in Progress(range(3), mininterval=0):
        time.sleep(0)
    assert "\r" in capsys.readouterr().err


@pytest.mark.parametrize("silence", [{"disable": True}, {}])
def test_silence(each_is_shown, monkeypatch, capsys, silence):
    if not silence:
        monkeypatch.setenv("TQDM_DISABLE", "1")
    assert list(Progress(range(3), **silence)) == [0, 1, 2]
    assert capsys.readouterr().err == ""
