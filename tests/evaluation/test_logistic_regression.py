"""The logistic regression protocol beside scikit-learn's own tools."""

from functools import partial

import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import balanced_accuracy_score
from transformers import BitImageProcessor

from dinov2_hf.evaluation.classification.labelled_features import random_split
from dinov2_hf.evaluation.logistic_regression import (
    evaluate_logistic_regression,
    fit_logistic_regression,
    without_margin,
)
from dinov2_hf.features import FeatureExtractor

from .coloured_images import coloured_dataset, coloured_rows


def noisy(names, per_class, seed):
    """Rows of which a quarter has the label of another class."""
    rows = coloured_rows(names, per_class, seed)
    generator = np.random.default_rng(seed)
    return [{**row, "label": generator.choice(names)} if generator.random() < 0.33 else row for row in rows]


def test_it_is_scikit_learn_on_the_cls_tokens(model, processor, extractor):
    names = ["red", "green", "blue"]
    train, evaluated = noisy(names, 20, 0), [*noisy(names, 5, 1), *coloured_rows(["red"], 8, 2)]
    metrics = evaluate_logistic_regression(
        extractor, train, evaluated, log10_c_range=(-3, 2), num_cs=6, validation_fraction=0.2
    )
    squeezed = partial(processor, size={"shortest_edge": 32})
    features, queries = (
        FeatureExtractor(model, squeezed).features(rows).values.double().numpy() for rows in (train, evaluated)
    )
    labels, answers = (np.array([row["label"] for row in rows]) for rows in (train, evaluated))
    fit_rows, validation_rows = random_split(60, 0.2, 0)
    assert len(validation_rows) == 12
    assert sorted([*fit_rows.tolist(), *validation_rows.tolist()]) == list(range(60))
    scores = {}
    for c in np.logspace(-3, 2, 6):
        classifier = LogisticRegression(C=c, max_iter=1000, tol=1e-12).fit(features[fit_rows], labels[fit_rows])
        scores[c] = classifier.score(features[validation_rows], labels[validation_rows])
    best = max(scores, key=scores.get)
    assert metrics["logistic_regression_c"] == pytest.approx(best)
    assert metrics["logistic_regression_validation_top1"] == pytest.approx(scores[best])
    predicted = LogisticRegression(C=best, max_iter=1000, tol=1e-12).fit(features, labels).predict(queries)
    assert metrics["logistic_regression_top1"] == pytest.approx((predicted == answers).mean())
    assert metrics["logistic_regression_mean_per_class"] == pytest.approx(balanced_accuracy_score(answers, predicted))


def test_a_fit_that_starts_from_another_ends_where_one_from_zero_does():
    generator = torch.Generator().manual_seed(0)
    features = torch.randn(80, 5, generator=generator)
    labels = (features @ torch.randn(5, 3, generator=generator) + torch.randn(80, 3, generator=generator)).argmax(1)
    options = {"max_iterations": 1000, "tolerance": 1e-12}
    start = fit_logistic_regression(features, labels, c=0.1, **options)
    warm = fit_logistic_regression(features, labels, c=1.0, start=start, **options)
    cold = fit_logistic_regression(features, labels, c=1.0, **options)
    np.testing.assert_allclose(warm.coef_, cold.coef_, atol=1e-5)


def test_the_short_side_is_resized_to_the_crop(processor):
    image = Image.effect_noise((64, 48), 60).convert("RGB")
    seen = without_margin(processor)(images=[image], return_tensors="pt")["pixel_values"]
    expected = processor(images=[image], return_tensors="pt", size={"shortest_edge": 32})["pixel_values"]
    assert torch.equal(seen, expected)
    assert not torch.equal(seen, processor(images=[image], return_tensors="pt")["pixel_values"])
    uncropped = BitImageProcessor(do_center_crop=False)
    assert without_margin(uncropped) is uncropped


def test_two_classes_and_a_plot(tmp_path, extractor):
    train, evaluated = coloured_dataset(["red", "blue"], 10, 0), coloured_dataset(["red", "blue"], 2, 1)
    metrics = evaluate_logistic_regression(extractor, train, evaluated, num_cs=4, output_dir=tmp_path)
    assert metrics["logistic_regression_top1"] == 1.0
    assert Image.open(tmp_path / "logistic_regression.png").width > 300


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_cs": 0}, "`num_cs` is 0"),
        ({"log10_c_range": (3, 1)}, r"`log10_c_range` is 3 1"),
        ({"validation_fraction": 0.0}, "`validation_fraction` is 0.0, .* 12 training images"),
        ({"max_iterations": 0}, "`max_iterations` is 0"),
    ],
)
def test_mistakes_are_named_before_any_image_is_read(model, processor, change, message):
    rows = [{"image": b"", "label": name} for name in ("red", "blue") * 6]
    with pytest.raises(ValueError, match=message):
        evaluate_logistic_regression(FeatureExtractor(model, processor), rows, rows, **change)


def test_one_class_left_to_fit_is_named(extractor):
    rows = coloured_rows(["red", "blue"], 1, 0)
    with pytest.raises(ValueError, match="leaves images of only one class to fit"):
        evaluate_logistic_regression(extractor, rows, rows, validation_fraction=0.5)
