"""
Is a run collapsing? Rules over the numbers of the log lines and over k-NN accuracy, that answer in a sentence.

A collapsed model gives every image the same feature, or every image the same target; the loss looks fine meanwhile.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


EXIT_STATUS = 3  # of a run that `stop_on_collapse` has stopped; 1 is any other error, 2 is Python's own
