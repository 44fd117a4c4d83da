"""Instance retrieval and copy detection: hand-computed cases, second ways of computing, and bad ground truth."""

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.metrics import average_precision_score

from dinov2_hf import DINOv2Config, DINOv2ImageProcessor, DINOv2Model
from dinov2_hf.evaluation.copy_detection import evaluate_copy_detection
from dinov2_hf.evaluation.ranking.average_precision import (
    average_precision,
    micro_average_precision,
    precision_at,
    precision_recall,
)
from dinov2_hf.evaluation.ranking.similarity_search import searchable_features
from dinov2_hf.evaluation.ranking.truth import truths_by_lists
from dinov2_hf.evaluation.retrieval import evaluate_retrieval, ranking_quality
from dinov2_hf.features import FeatureExtractor


SIDE = 32
FEATURES = datasets.Features({"image": datasets.Image(), "label": datasets.Value("string")})


@pytest.fixture(scope="module")
def model() -> DINOv2Model:
    torch.manual_seed(0)
    config = DINOv2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=32, patch_size=8, layerscale_value=1.0
    )
    model = DINOv2Model(config).eval()
    with torch.no_grad():
        model.embeddings.patch_embeddings.projection.weight.mul_(10)
    return model


@pytest.fixture(scope="module")
def processor() -> DINOv2ImageProcessor:
    return DINOv2ImageProcessor(size={"shortest_edge": SIDE}, crop_size={"height": SIDE, "width": SIDE})


def picture(seed: int, noise: int = 0) -> Image.Image:
    """Four blocks of colour, always the same for a seed but for the noise."""
    blocks = np.random.default_rng(seed).integers(0, 255, size=(2, 2, 3))
    pixels = np.kron(blocks, np.ones((SIDE // 2, SIDE // 2, 1)))
    pixels += noise * np.random.default_rng(seed + 1000 * noise).standard_normal(pixels.shape)
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def labelled(seeds: list[int], labels: list, noise: int) -> datasets.Dataset:
    images = [picture(seed, noise) for seed in seeds]
    return datasets.Dataset.from_dict({"image": images, "label": labels}, features=FEATURES)


def test_average_precision_by_hand():
    # Relevant at ranks 1 and 3 of 4: trapezoids (1 + 1) / 2 and (1 / 2 + 2 / 3) / 2, each half of the recall.
    assert average_precision([True, False, True, False]) == pytest.approx((1 + 7 / 12) / 2)
    # At rank 2 alone: (0 + 1 / 2) / 2.
    assert average_precision([False, True]) == pytest.approx(1 / 4)
    assert average_precision([True, True, False]) == 1
    assert np.isnan(average_precision([False, False]))


def test_average_precision_against_a_loop():
    relevant = np.random.default_rng(0).random(60) < 0.2
    area = found = 0
    last = 1.0
    for rank, hit in enumerate(relevant, start=1):
        found += hit
        if hit:  # Philbin's program walks through the ranking like this
            area += (last + found / rank) / 2 / relevant.sum()
        last = found / rank
    assert average_precision(relevant) == pytest.approx(area)


def test_precision_ends_with_the_last_relevant_one():
    relevant = np.array([True, False, True, False, False])
    assert precision_at(relevant, 1) == 1
    assert precision_at(relevant, 2) == 0.5
    assert precision_at(relevant, 10) == pytest.approx(2 / 3)


def test_micro_average_precision():
    rng = np.random.default_rng(0)
    scores, correct = rng.random(80), rng.random(80) < 0.3
    everything = micro_average_precision(scores, correct, int(correct.sum()))
    assert everything == pytest.approx(average_precision_score(correct, scores))
    # What was never a candidate is not found: the same area over more to be found.
    assert micro_average_precision(scores, correct, 2 * int(correct.sum())) == pytest.approx(everything / 2)
    # By hand: 0.9 right, 0.8 wrong, 0.8 right (a tie, the wrong one first), one not found.
    precision, recall = precision_recall([0.8, 0.9, 0.8], [True, True, False], 3)
    assert precision.tolist() == pytest.approx([1, 2 / 3])
    assert recall.tolist() == pytest.approx([1 / 3, 2 / 3])
    assert micro_average_precision([0.8, 0.9, 0.8], [True, True, False], 3) == pytest.approx((1 + 2 / 3) / 3)


def test_difficulties_by_hand():
    """One query; the ranking of the database is 4, 2, 0, 3, 1, 5."""
    ranking = np.array([[4, 2, 0, 3, 1, 5]])
    truths = truths_by_lists([{"easy": [0], "hard": [1], "junk": [4]}], 6)
    expected = {
        "easy": 0.25,  # without 4 and 1: 2, 0, 3, 5, found at rank 2: (0 + 1 / 2) / 2
        "medium": (0.25 + (1 / 3 + 2 / 4) / 2) / 2,  # without 4: 2, 0, 3, 1, 5, found at ranks 2 and 4
        "hard": (0 + 1 / 3) / 2,  # without 4 and 0: 2, 3, 1, 5, found at rank 3
    }
    for difficulty, value in expected.items():
        assert ranking_quality(ranking, truths[difficulty])["map"] == pytest.approx(value), difficulty
    assert ranking_quality(ranking, truths["medium"])["mp1"] == 0
    assert ranking_quality(ranking, truths["medium"])["mp5"] == pytest.approx(2 / 4)  # up to rank 4, the last one


def test_queries_without_anything_to_find_are_left_out():
    ranking = np.array([[0, 1], [0, 1]])
    truths = truths_by_lists([{"easy": [0], "hard": [], "junk": []}, {"easy": [], "hard": [0], "junk": None}], 2)
    assert ranking_quality(ranking, truths["easy"])["map"] == 1
    assert ranking_quality(ranking, truths["medium"])["map"] == 1


def test_revisited_protocol_from_images(extractor):
    database = datasets.Dataset.from_dict(
        {"image": [picture(seed, 5) for seed in (0, 0, 1, 2, 3)]},
        features=datasets.Features({"image": datasets.Image()}),
    )
    wide = Image.new("RGB", (2 * SIDE, SIDE), "white")
    wide.paste(picture(0), (SIDE, 0))
    queries = [
        {"image": wide, "bbx": [SIDE, 0, 2 * SIDE, SIDE], "easy": [0], "hard": [1], "junk": [2]},
        {"image": picture(3), "bbx": None, "easy": [4], "hard": [], "junk": []},
    ]
    metrics = evaluate_retrieval(extractor, database, queries)
    assert set(metrics) == {
        f"retrieval_{name}_{difficulty}"
        for name in ("map", "mp1", "mp5", "mp10")
        for difficulty in ("easy", "medium", "hard")
    }
    assert all(value == 1 for value in metrics.values())
    queries[0]["bbx"] = [0, 0, 100, SIDE]
    with pytest.raises(ValueError, match="bbx of query 0 is .*, but must be left, top, right and bottom inside"):
        evaluate_retrieval(extractor, database, queries)


def test_labels_and_distractors(extractor):
    database = labelled([0, 1, 2, 3], ["a", "b", "c", "d"], noise=5)
    queries = labelled([0, 1, 3, 9], ["a", "b", "c", None], noise=0)  # the third looks like d, but is said to be c
    metrics = evaluate_retrieval(extractor, database, queries)
    similarity = torch.nn.functional.normalize(extractor.features(queries).values, dim=1) @ (
        torch.nn.functional.normalize(extractor.features(database).values, dim=1).T
    )
    scores, nearest = similarity.max(dim=1)
    assert nearest[:3].tolist() == [0, 1, 3]
    assert metrics["retrieval_accuracy"] == pytest.approx(2 / 3)
    rank_of_c = int((similarity[2] > similarity[2, 2]).sum()) + 1
    assert metrics["retrieval_map"] == pytest.approx((1 + 1 + 1 / rank_of_c / 2) / 3)
    order = scores.argsort(descending=True).tolist()
    for name, queries_of in (("gap", order), ("gap_no_distractors", [row for row in order if row != 3])):
        found = area = 0
        for place, row in enumerate(queries_of, start=1):
            if row < 2:
                found += 1
                area += found / place
        assert metrics[f"retrieval_{name}"] == pytest.approx(area / 3)


def test_names_are_matched_and_not_numbers(extractor):
    def with_names(dataset: datasets.Dataset, names: list[str]) -> datasets.Dataset:
        return dataset.cast_column("label", datasets.ClassLabel(names=names))

    database = with_names(labelled([0, 1], ["a", "b"], noise=5), ["a", "b"])
    queries = with_names(labelled([0, 1], ["a", "b"], noise=0), ["b", "a"])
    assert evaluate_retrieval(extractor, database, queries)["retrieval_map"] == 1


def test_whitening(extractor):
    database = labelled(list(range(12)), [str(seed) for seed in range(12)], noise=5)
    queries = labelled([3, 7], ["3", "7"], noise=0)
    found, found_queries = searchable_features(extractor, database, queries, pca_dimensions=4)
    raw = torch.nn.functional.normalize(extractor.features(database).values, dim=1).double()
    raw_queries = torch.nn.functional.normalize(extractor.features(queries).values, dim=1).double()
    values, directions = torch.linalg.eigh((raw - raw.mean(dim=0)).T.cov())
    whiten = directions[:, -4:] / values[-4:].sqrt()
    expected = torch.nn.functional.normalize((raw - raw.mean(dim=0)) @ whiten, dim=1)
    expected_queries = torch.nn.functional.normalize((raw_queries - raw.mean(dim=0)) @ whiten, dim=1)
    torch.testing.assert_close(found_queries @ found.T, (expected_queries @ expected.T).float(), atol=1e-3, rtol=1e-3)
    metrics = evaluate_retrieval(extractor, database, queries, pca_dimensions=4)
    assert metrics["retrieval_map"] > 0.2
    with pytest.raises(
        ValueError, match="`pca_dimensions` is 13, but must be from 1 to 12, the smaller of the database's 12 im"
    ):
        evaluate_retrieval(extractor, database, queries, pca_dimensions=13)


def test_copies_are_found(tmp_path, extractor):
    references = labelled(list(range(6)), [str(seed) for seed in range(6)], noise=0)
    queries = labelled([1, 4, 20, 2], ["1", "4", None, "3"], noise=5)  # the last one looks like 2
    metrics = evaluate_copy_detection(extractor, references, queries, num_candidates=6, output_dir=tmp_path)
    unit = [torch.nn.functional.normalize(extractor.features(d).values, dim=1) for d in (references, queries)]
    similarity = (unit[1] @ unit[0].T).numpy()
    truth = np.zeros((4, 6), dtype=bool)
    truth[[0, 1, 3], [1, 4, 3]] = True
    expected = average_precision_score(truth.ravel(), similarity.ravel())
    assert metrics["copy_detection_micro_ap"] == pytest.approx(expected)
    assert metrics["copy_detection_recall_at_1"] == pytest.approx(2 / 3)
    assert (tmp_path / "copy_detection.png").stat().st_size > 5_000
    fewer = evaluate_copy_detection(extractor, references, queries, num_candidates=1)
    assert fewer["copy_detection_micro_ap"] <= expected


@pytest.mark.parametrize("evaluate", [evaluate_retrieval, evaluate_copy_detection])
def test_bad_labels(model, processor, evaluate):
    database = labelled([0, 1], ["a", "b"], noise=0)
    with pytest.raises(ValueError, match="has no label that a query shares with the database"):
        evaluate(FeatureExtractor(model, processor), database, labelled([0, 1], ["x", "y"], noise=5))
    with pytest.raises(ValueError, match="holds no labels in the database and the queries"):
        evaluate(FeatureExtractor(model, processor), labelled([0], [None], noise=0), database)
    numbers = [{"image": picture(0), "label": 0}]
    with pytest.raises(ValueError, match="holds names and numbers in the database and the queries"):
        evaluate(FeatureExtractor(model, processor), database, numbers)
    with pytest.raises(ValueError, match="label_column='instance' is not a column of the dataset"):
        evaluate(FeatureExtractor(model, processor), database, database, label_column="instance")
    with pytest.raises(
        ValueError, match="`label_column` 'label' of row 0 is 0.5, but must be an integer, a string or"
    ):
        evaluate(FeatureExtractor(model, processor), database, [{"image": picture(0), "label": 0.5}])


@pytest.mark.parametrize(
    ("lists", "problem"),
    [
        ({"easy": [2], "hard": [], "junk": []}, "hold 2, but must list rows of the database, from 0 to 1"),
        ({"easy": ["a"], "hard": [], "junk": []}, "hold 'a', but must list rows"),
        ({"easy": [0], "hard": [0], "junk": []}, "hold a number twice"),
    ],
)
def test_bad_lists(model, processor, lists, problem):
    database = labelled([0, 1], ["a", "b"], noise=0)
    with pytest.raises(ValueError, match=problem):
        evaluate_retrieval(FeatureExtractor(model, processor), database, [{"image": picture(0), **lists}])


def test_features_that_are_not_finite(processor, model):
    database = labelled([0, 1], ["a", "b"], noise=0)
    broken = DINOv2Model(model.config).eval()
    torch.nn.init.constant_(broken.layernorm.bias, float("nan"))
    with pytest.raises(ValueError, match="the database features are not all finite"):
        evaluate_retrieval(FeatureExtractor(broken, processor), database, database)
