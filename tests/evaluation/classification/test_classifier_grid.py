"""A grid of classifiers is what each of them would be alone."""

import math

import pytest
import torch
from torch import nn

from dinov2_hf.data.sample_order import PreTrainingBatchSampler
from dinov2_hf.evaluation.classification.best_classifier import GridTraining
from dinov2_hf.evaluation.classification.classifier_grid import (
    INITIAL_STD,
    LEARNING_RATES,
    Choice,
    ClassifierGrid,
    accuracies,
    best_choice,
    train_grid,
)
from dinov2_hf.features import FeatureExtractor


GROUPS = {"last": slice(8, 12), "all": slice(0, 12), "most": slice(4, 16)}
RATES = (0.01, 0.3, 2.0)


def problem(count=96, num_features=16, num_classes=7):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(count, num_features, generator=generator)
    labels = (features @ torch.randn(num_features, num_classes, generator=generator)).argmax(dim=1)
    return features, labels


def trained_grid(features, labels, steps, groups=GROUPS, rates=RATES):
    grid = ClassifierGrid(groups, rates, learning_rate_scale=0.5, num_features=16, num_classes=7, seed=3)
    training = GridTraining("code", steps, train_batch_size=32, validation_fraction=0.0, seed=5)
    rows = torch.arange(len(labels))
    train_grid(grid, training.cached_batches(features, labels, rows, FeatureExtractor(nn.Linear(1, 1), None)), steps)
    return grid


def trained_alone(features, labels, columns, rate, steps):
    """A `Linear` under torch's SGD and cosine schedule, on the same batches."""
    width = len(range(*columns.indices(16)))
    layer = nn.Linear(width, 7)
    with torch.no_grad():
        draws = torch.randn(width, 1, 7, generator=torch.Generator().manual_seed(3))
        layer.weight.copy_(INITIAL_STD * draws[:, 0].T)
        layer.bias.zero_()
    optimizer = torch.optim.SGD(layer.parameters(), lr=rate * 0.5, momentum=0.9, weight_decay=0)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=steps, eta_min=0)
    for _, keys in zip(range(steps), PreTrainingBatchSampler(len(labels), 32, seed=5), strict=False):
        rows = [key.row for key in keys]
        loss = nn.functional.cross_entropy(layer(features[rows][:, columns]), labels[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return layer


def test_every_classifier_of_the_grid_equals_one_trained_alone():
    features, labels = problem()
    grid = trained_grid(features, labels, steps=40)
    assert len(grid.choices) == 9
    found = accuracies(grid, features, labels)
    for choice in grid.choices:
        layer = trained_alone(features, labels, GROUPS[choice.features], choice.learning_rate, 40)
        weight, bias = grid.classifier(choice)
        torch.testing.assert_close(weight, layer.weight.detach(), atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(bias, layer.bias.detach(), atol=1e-5, rtol=1e-5)
        predicted = layer(features[:, GROUPS[choice.features]]).argmax(dim=1)
        assert found[choice] == pytest.approx((predicted == labels).double().mean().item())


def test_a_classifier_does_not_depend_on_the_rest_of_the_grid():
    features, labels = problem()
    whole = trained_grid(features, labels, steps=10)
    small = trained_grid(features, labels, steps=10, groups={"all": GROUPS["all"]}, rates=(0.3,))
    choice = Choice("all", 0.3)
    for one, other in zip(whole.classifier(choice), small.classifier(choice), strict=True):
        torch.testing.assert_close(one, other, atol=1e-6, rtol=1e-6)


def test_topk_accuracy_is_a_loop():
    features, labels = problem()
    grid = trained_grid(features, labels, steps=3)
    found = accuracies(grid, features, labels, topk=3, batch_size=10)
    for choice in grid.choices:
        weight, bias = grid.classifier(choice)
        hits = 0
        for row, label in zip(features, labels, strict=True):
            scores = (weight @ row[GROUPS[choice.features]] + bias).tolist()
            hits += int(label) in sorted(range(7), key=lambda index: -scores[index])[:3]
        assert found[choice] == pytest.approx(hits / len(labels))


def test_a_classifier_that_diverged_is_never_right():
    features, labels = problem()
    grid = trained_grid(features, labels, steps=5, rates=(0.1, math.inf))
    found = accuracies(grid, features, labels)
    assert found[Choice("all", math.inf)] == 0
    assert best_choice(found).learning_rate == 0.1


def test_features_that_are_not_finite_are_named():
    features, labels = problem()
    features[:] = math.nan
    with pytest.raises(ValueError, match="features that are not finite"):
        trained_grid(features, labels, steps=2)


def test_both_grids_have_13_ascending_rates():
    for rates in LEARNING_RATES.values():
        assert len(rates) == 13
        assert list(rates) == sorted(rates)
    assert (LEARNING_RATES["code"][0], LEARNING_RATES["code"][-1]) == (1e-5, 0.1)
    assert (LEARNING_RATES["paper"][0], LEARNING_RATES["paper"][-1]) == (1e-4, 0.5)


def test_a_batch_larger_than_the_data_is_named():
    with pytest.raises(ValueError, match="`train_batch_size` is 128 on each of 1 processes, .* between 1 and the 10"):
        GridTraining("code", 1, 128, 0.0, 0).check(10, FeatureExtractor(nn.Linear(1, 1), None))
