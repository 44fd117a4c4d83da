"""Sentences about grids whose best value is their first or last."""

import pytest

from dinov2_hf.evaluation.metrics import Metrics, listed


@pytest.mark.parametrize(
    ("found", "limits", "sentence"),
    [
        ({0.1: 0.5, 0.2: 0.6, 0.3: 0.7}, {}, "the best rate, 0.3, is the largest that was tried"),
        ({0.1: 0.9, 0.2: 0.6, 0.3: 0.7}, {}, "the best rate, 0.1, is the smallest that was tried"),
        ({0.3: 0.7, 0.1: 0.5}, {}, "the best rate, 0.3, is the largest"),
        ({0.1: 0.5, 0.2: 0.8, 0.3: 0.7}, {}, None),
        ({0.1: 0.5, 0.2: 0.7, 0.3: 0.7}, {}, None),  # as good inside
        ({0.1: 0.5}, {}, None),  # no grid
        ({1: 0.9, 5: 0.6}, {"lowest": 1}, None),  # nothing lies beyond
        ({1: 0.5, 5: 0.6}, {"highest": 5}, None),
    ],
)
def test_the_edge_of_a_grid(found, limits, sentence):
    metrics = Metrics({"top1": 0.5})
    metrics.note_edge("rate", found, **limits)
    assert len(metrics.notes) == (sentence is not None)
    assert sentence is None or metrics.notes[0].startswith(sentence)
    assert metrics == {"top1": 0.5}


def test_values_as_they_are_typed():
    assert (listed([1, 4]), listed(())) == ("1 4", "empty")
