"""Labels are matched by the names of their classes."""

import datasets
import pytest

from dinov2_hf.evaluation.classification.labels import match_labels


def column(values, names=None):
    feature = datasets.ClassLabel(names=names) if names else None
    return datasets.Dataset.from_dict(
        {"label": values}, features=datasets.Features({"label": feature}) if feature else None
    )


def matched(train, evaluated) -> tuple[list, list, list]:
    labels = match_labels(train, evaluated, "label")
    return labels.train.tolist(), labels.eval.tolist(), labels.classes


def test_class_labels_in_another_order_are_the_same_classes():
    train = column([0, 1, 2, 2], ["cat", "dog", "eel"])
    evaluated = column([0, 1, 2], ["eel", "cat", "dog"])
    assert matched(train, evaluated) == ([0, 1, 2, 2], [2, 0, 1], ["cat", "dog", "eel"])


def test_names_are_held_against_strings_either_way():
    names, strings = column([1, 0], ["cat", "dog"]), column(["dog", "cat", "dog"])
    assert matched(names, strings) == ([1, 0], [1, 0, 1], ["cat", "dog"])
    assert matched(strings, names) == ([1, 0, 1], [1, 0], ["cat", "dog"])
    rows = [{"label": "dog"}, {"label": "cat"}]
    assert matched(rows, rows) == ([1, 0], [1, 0], ["cat", "dog"])


def test_plain_integers_are_matched_by_value():
    assert matched(column([7, -3, 7]), column([-3])) == ([1, 0, 1], [0], [-3, 7])


def test_names_against_numbers_would_be_a_guess():
    with pytest.raises(ValueError, match="names of classes in the training data and numbers .* cast both"):
        match_labels(column([0, 1], ["cat", "dog"]), column([0, 1]), "label")


def test_a_named_class_without_training_images_is_unknown():
    with pytest.raises(ValueError, match=r"1 classes .* that the training data lacks \('eel'\)"):
        match_labels(column([0, 1], ["cat", "dog", "eel"]), column([2], ["cat", "dog", "eel"]), "label")


def test_a_class_without_evaluation_images_is_counted(caplog):
    labels = match_labels(column([0, 1, 2], ["cat", "dog", "eel"]), column([0], ["cat", "dog"]), "label")
    labels.warn_of_absent_classes()
    assert labels.classes == ["cat", "dog", "eel"]
    assert "2 of the 3 classes of the training data have no image" in caplog.text


@pytest.mark.parametrize(
    ("train", "message"),
    [
        (column([0, 0], ["cat", "dog"]), "the one class 'cat'"),
        (column([0, -1], ["cat", "dog"]), "row 1 is -1, but must be one of the 2 classes"),
        ([{"label": "cat"}, {"label": None}], "row 1 is None"),
        ([{"label": "cat"}, {"label": 3}], "row 1 is 3, but all must be integers or all strings"),
        ([{"label": 0.5}], "row 0 is 0.5"),
        ([{"name": "cat"}], "label_column='label' is not a column"),
    ],
)
def test_mistakes_are_named(train, message):
    with pytest.raises(ValueError, match=message):
        match_labels(train, column([0], ["cat"]), "label")
