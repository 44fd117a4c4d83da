"""The public names of `dinov2_hf.evaluation`, and what importing it costs."""

import subprocess
import sys

import pytest

import dinov2_hf.evaluation
from dinov2_hf.evaluation.protocols import PROTOCOLS


def test_every_protocol_is_public():
    functions = map(PROTOCOLS.find, PROTOCOLS.names())  # a user's own may be among them
    names = {function.__name__ for function in functions if function.__module__.startswith("dinov2_hf.")}
    assert len(names) == 9
    assert names <= set(dinov2_hf.evaluation.__all__)
    for name in dinov2_hf.evaluation.__all__:
        assert callable(getattr(dinov2_hf.evaluation, name)), name
        assert name in dir(dinov2_hf.evaluation)
    assert not hasattr(dinov2_hf.evaluation, "evaluate_nothing")


@pytest.mark.slow
def test_a_protocol_is_imported_when_it_is_asked_for():
    code = """
import sys
import dinov2_hf.evaluation
loaded = [name for name in sys.modules if name.startswith("dinov2_hf.evaluation.")]
for name in ("knn", "linear", "segmentation", "patch_knn", "depth", "retrieval", "video"):
    assert f"dinov2_hf.evaluation.{name}" not in loaded, name
from dinov2_hf.evaluation import evaluate_depth
assert evaluate_depth.__module__ == "dinov2_hf.evaluation.depth"
"""
    finished = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr
