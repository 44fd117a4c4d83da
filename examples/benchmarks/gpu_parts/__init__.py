"""What `gpu_suite.py` measures, in order of value."""

from . import forward_passes, gpu_tests, loaders, machine, neighbor_searches, short_training, training_steps
from .part import Part


# Seconds are those that a part would like of nine minutes; time that it leaves goes to those that follow.
PARTS = (
    Part("machine", 15, (), machine.measure),
    Part("tests", 75, ("datasets", "pytest"), gpu_tests.measure),
    Part("steps", 180, ("datasets",), training_steps.measure, training_steps.draw),
    Part("loaders", 80, ("datasets",), loaders.measure, loaders.draw),
    Part("training", 120, ("datasets",), short_training.measure, short_training.draw),
    Part("inference", 50, (), forward_passes.measure, forward_passes.draw, ("timm",)),
    Part("searches", 20, ("datasets",), neighbor_searches.measure, neighbor_searches.draw, ("faiss-gpu",)),
)
