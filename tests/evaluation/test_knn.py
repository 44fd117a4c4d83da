import math

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier
from transformers import BitImageProcessor, Dinov2Config, Dinov2Model

from dinov2_hf.evaluation.knn import _few_shot_rows, evaluate_knn, knn_class_scores
from dinov2_hf.features import FeatureExtractor

from .coloured_images import COLOURS, coloured_rows


def random_problem(num_bank=300, num_queries=41, size=16, num_classes=7):
    generator = torch.Generator().manual_seed(0)
    bank = torch.randn(num_bank, size, generator=generator) * 3
    labels = torch.randint(num_classes, (num_bank,), generator=generator)
    return bank, labels, torch.randn(num_queries, size, generator=generator)


def protocol_by_loops(bank, labels, queries, num_classes, ks, temperature):
    bank, queries = bank.double().numpy(), queries.double().numpy()
    scores = {k: np.zeros((len(queries), num_classes)) for k in ks}
    for q, query in enumerate(queries):
        similarities = [float(row @ query / np.linalg.norm(row) / np.linalg.norm(query)) for row in bank]
        order = sorted(range(len(bank)), key=lambda i: -similarities[i])[: max(ks)]
        exponentials = [math.exp(similarities[i] / temperature) for i in order]
        for k in ks:
            for i, exponential in zip(order[:k], exponentials[:k], strict=True):
                scores[k][q, labels[i]] += exponential / sum(exponentials)
    return scores


def test_scores_equal_a_plain_loop_over_the_protocol():
    bank, labels, queries = random_problem()
    ks = (200, 10, 20)
    scores = knn_class_scores(bank, labels, queries, num_classes=7, ks=ks)
    expected = protocol_by_loops(bank, labels, queries, 7, ks, 0.07)
    assert list(scores) == [10, 20, 200]
    for k in ks:
        assert scores[k].dtype == torch.float32
        np.testing.assert_allclose(scores[k].numpy(), expected[k], atol=1e-5)
    torch.testing.assert_close(scores[200].sum(dim=1), torch.ones(len(queries)))


def test_predictions_equal_scikit_learn():
    bank, labels, queries = random_problem()
    for k in (1, 5, 50):
        classifier = KNeighborsClassifier(
            k, metric="cosine", algorithm="brute", weights=lambda distance: np.exp((1 - distance) / 0.07)
        )
        expected = classifier.fit(bank.numpy(), labels.numpy()).predict(queries.numpy())
        scores = knn_class_scores(bank, labels, queries, num_classes=7, ks=(k,))
        np.testing.assert_array_equal(scores[k].argmax(dim=1).numpy(), expected)


def test_a_case_by_hand():
    # Cosines with the query (1, 0): 1, 0.6, 0. With temperature 0.5 the weights are as e^2 : e^1.2 : 1.
    bank = torch.tensor([[0.0, 5.0], [2.0, 0.0], [3.0, 4.0]])
    scores = knn_class_scores(
        bank, torch.tensor([1, 0, 1]), torch.tensor([[1.0, 0.0]]), num_classes=3, ks=(1, 2, 3), temperature=0.5
    )
    total = math.exp(2) + math.exp(1.2) + 1
    first, second, third = math.exp(2) / total, math.exp(1.2) / total, 1 / total
    torch.testing.assert_close(scores[1], torch.tensor([[first, 0.0, 0.0]]))
    torch.testing.assert_close(scores[2], torch.tensor([[first, second, 0.0]]))
    torch.testing.assert_close(scores[3], torch.tensor([[first, second + third, 0.0]]))


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 40])
def test_chunks_change_nothing(chunk_size):
    bank, labels, queries = random_problem()
    whole = knn_class_scores(bank, labels, queries, num_classes=7, ks=(3, 50))
    parts = knn_class_scores(bank, labels, queries, num_classes=7, ks=(3, 50), chunk_size=chunk_size)
    for k in (3, 50):
        assert torch.equal(parts[k].argmax(dim=1), whole[k].argmax(dim=1))
        torch.testing.assert_close(parts[k], whole[k], atol=1e-6, rtol=0)


def test_scale_and_an_outer_autocast_change_nothing():
    bank, labels, queries = random_problem()
    expected = knn_class_scores(bank, labels, queries, num_classes=7, ks=(10,))[10]
    with torch.autocast("cpu", dtype=torch.bfloat16):
        scores = knn_class_scores(bank * 100, labels, queries * 0.01, num_classes=7, ks=(10,))[10]
    torch.testing.assert_close(scores, expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"ks": (10, 400)}, "asks for 400 neighbours, but the bank has 300"),
        ({"ks": ()}, "`ks` is empty"),
        ({"ks": (0, 3)}, "`ks` is 0 3"),
        ({"temperature": 0.0}, "`temperature` is 0.0"),
        ({"chunk_size": 0}, "chunk_size=0"),
        ({"num_classes": 4}, "bank_labels ranges from 0 to 6"),
    ],
)
def test_arguments_out_of_range_are_named(change, message):
    with pytest.raises(ValueError, match=message):
        knn_class_scores(*random_problem(), **{"num_classes": 7, "ks": (10,)} | change)


def test_bad_tensors_are_named():
    bank, labels, queries = random_problem()
    with pytest.raises(ValueError, match="bank_labels has shape"):
        knn_class_scores(bank, labels[:-1], queries, num_classes=7)
    queries[3, 0] = math.nan
    with pytest.raises(ValueError, match="query_features has 1 of 41 rows"):
        knn_class_scores(bank, labels, queries, num_classes=7)


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    return Dinov2Model(
        Dinov2Config(
            hidden_size=24, num_hidden_layers=1, num_attention_heads=2, mlp_ratio=2, image_size=28, patch_size=14
        )
    )


@pytest.fixture(scope="module")
def processor():
    return BitImageProcessor(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})


def as_dataset(rows, names):
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=names)})
    return datasets.Dataset.from_list(rows, features=features)


def test_class_labels_are_matched_by_name(extractor):
    names = list(COLOURS)
    bank = as_dataset(coloured_rows(names, 4, 0), names)
    queries = as_dataset(coloured_rows(names, 2, 1), names[::-1])
    result = evaluate_knn(extractor, bank, queries, ks=(1, 3))
    assert result == {"knn_top1_k1": 1.0, "knn_top1_k3": 1.0, "knn_top5_k1": 1.0, "knn_top5_k3": 1.0}


def test_strings_and_integers_are_matched_by_value(extractor):
    names = ["red", "green", "blue"]
    bank, queries = coloured_rows(names, 3, 0), coloured_rows(names, 2, 1)
    ids = {"red": 40, "green": -1, "blue": 7}
    for label in (str, ids.get):
        bank_rows, query_rows = ([{**row, "label": label(row["label"])} for row in rows] for rows in (bank, queries))
        # Only top-1, because there are no more than 5 classes.
        assert evaluate_knn(extractor, bank_rows, query_rows, ks=(3,)) == {"knn_top1_k3": 1.0}
        # Wrong labels give a wrong accuracy: those of two of the three classes.
        query_rows = [{**row, "label": label("red")} for row in query_rows]
        assert evaluate_knn(extractor, bank_rows, query_rows, ks=(3,)) == {"knn_top1_k3": pytest.approx(1 / 3)}


def test_accuracies_are_those_of_the_class_scores(extractor):
    rows = coloured_rows(list(COLOURS), 6, 0)
    generator = np.random.default_rng(0)
    labels = [int(label) for label in generator.permutation([i % 8 for i in range(36)])]
    rows = [{"image": row["image"], "label": label} for row, label in zip(rows, labels, strict=True)]
    bank, queries = rows[:24], [row for row in rows[24:] if row["label"] in labels[:24]]
    result = evaluate_knn(extractor, bank, queries, ks=(5, 20), temperature=0.2)

    scores = knn_class_scores(
        extractor.features(bank).values,
        torch.tensor([row["label"] for row in bank]),
        extractor.features(queries).values,
        num_classes=8,
        ks=(5, 20),
        temperature=0.2,
    )
    answers = torch.tensor([row["label"] for row in queries])
    for k in (5, 20):
        top1 = (scores[k].argmax(dim=1) == answers).float().mean().item()
        assert result[f"knn_top1_k{k}"] == pytest.approx(top1)
    top5 = (scores[20].topk(5).indices == answers[:, None]).any(dim=1).float().mean().item()
    assert result["knn_top5_k20"] == pytest.approx(top5)


def top_k_by_loops(bank, labels, queries, answers, k, temperature, topk):
    """The share of queries whose class is among the `topk` best of the classes that their neighbours have."""
    correct = 0
    for query, answer in zip(queries.double().numpy(), answers, strict=True):
        similarity = [
            float(row @ query / np.linalg.norm(row) / np.linalg.norm(query)) for row in bank.double().numpy()
        ]
        votes = {}
        for row in sorted(range(len(bank)), key=lambda i: -similarity[i])[:k]:
            votes[labels[row]] = votes.get(labels[row], 0.0) + math.exp(
                (similarity[row] - max(similarity)) / temperature
            )
        correct += answer in sorted(votes, key=lambda label: -votes[label])[:topk]
    return correct / len(answers)


# At the low temperature all weights but the nearest underflow, and are votes still.
@pytest.mark.parametrize(("temperature", "ks"), [(0.07, (1, 2, 3, 6, 20)), (0.0005, (1, 2, 3))])
def test_a_class_without_votes_is_no_answer(model, processor, temperature, ks):
    rows = coloured_rows(list(COLOURS), 6, 0)
    generator = np.random.default_rng(0)
    labels = [int(label) for label in generator.permutation([i % 9 for i in range(36)])]
    rows = [{"image": row["image"], "label": label} for row, label in zip(rows, labels, strict=True)]
    bank, queries = rows[:24], [row for row in rows[24:] if row["label"] in labels[:24]]
    result = evaluate_knn(FeatureExtractor(model, processor), bank, queries, ks=ks, temperature=temperature)
    assert result["knn_top5_k1"] == result["knn_top1_k1"]
    features = [FeatureExtractor(model, processor).features(part).values for part in (bank, queries)]
    bank_labels, answers = ([row["label"] for row in part] for part in (bank, queries))
    for k in ks:
        for topk in (1, 5):
            expected = top_k_by_loops(features[0], bank_labels, features[1], answers, k, temperature, topk)
            assert result[f"knn_top{topk}_k{k}"] == pytest.approx(expected), (topk, k)


def test_dataset_mistakes_are_named_before_any_image_is_read(extractor):
    names = ["red", "green"]
    unreadable = {"bytes": b"", "path": None}
    bank = [{"image": unreadable, "label": name} for name in names * 3]

    def evaluate(bank, queries, **options):
        evaluate_knn(extractor, bank, queries, **{"ks": (2,)} | options)

    with pytest.raises(ValueError, match="evaluation data that the training data lacks .'blue'."):
        evaluate(bank, [{"image": unreadable, "label": "blue"}])
    with pytest.raises(ValueError, match="one class 'red'"):
        evaluate(bank[::2], bank[::2])
    with pytest.raises(ValueError, match="label_column='fine' is not a column of the training data, which has"):
        evaluate(bank, bank, label_column="fine")
    with pytest.raises(ValueError, match="row 0 is None"):
        evaluate(bank, [{"image": unreadable, "label": None}])
    with pytest.raises(ValueError, match="asks for 200 neighbours, but the bank has 6"):
        evaluate(bank, bank, ks=(2, 200))
    with pytest.raises(ValueError, match="`temperature` is -1"):
        evaluate(bank, bank, temperature=-1)

    labelled = as_dataset(coloured_rows(names, 2, 0), names)
    with pytest.raises(ValueError, match="evaluation data that the training data lacks .'blue'."):
        evaluate(labelled, as_dataset(coloured_rows(["blue"], 1, 0), ["green", "blue"]))
    unlabelled = as_dataset([{"image": Image.new("RGB", (28, 28)), "label": -1}], names)
    with pytest.raises(ValueError, match="row 0 is -1, but must be one of the 2 classes"):
        evaluate(labelled, unlabelled)


def test_few_shot_banks_are_means_over_tries(extractor):
    names = ["red", "green", "blue"]
    generator = np.random.default_rng(3)
    rows = coloured_rows(names, 12, 0)
    labels = [name if generator.random() < 0.6 else str(generator.choice(names)) for name in names * 12]
    bank = [{**row, "label": label} for row, label in zip(rows, labels, strict=True)]
    queries = coloured_rows(names, 5, 1)
    result = evaluate_knn(extractor, bank, queries, ks=(1, 5, 20), shots=(2, 4), num_tries=3)

    features, query_features = (extractor.features(part).values for part in (bank, queries))
    index = {name: i for i, name in enumerate(sorted(names))}
    targets = torch.tensor([index[label] for label in labels])
    answers = torch.tensor([index[row["label"]] for row in queries])
    for n in (2, 4):
        assert f"knn_{n}shot_top1_k20" not in result  # more than the bank of 3 * n images
        tries = []
        for seed in range(3):
            rows_of_bank = _few_shot_rows(targets, n, seed)
            assert targets[rows_of_bank].bincount().tolist() == [n, n, n]
            assert len(set(rows_of_bank.tolist())) == 3 * n
            scores = knn_class_scores(
                features[rows_of_bank], targets[rows_of_bank], query_features, num_classes=3, ks=(1, 5)
            )
            tries.append((scores[5].argmax(dim=1) == answers).double().mean().item())
        assert result[f"knn_{n}shot_top1_k5"] == pytest.approx(np.mean(tries))
        assert result[f"knn_{n}shot_top1_k5_std"] == pytest.approx(np.std(tries))


def test_bad_shots_are_named(extractor):
    rows = [{"image": b"", "label": name} for name in ("red", "green", "red", "green", "red")]
    with pytest.raises(
        ValueError, match=r"`shots` is 3, but must lie between 1 and the 2 images that the class 'green' has"
    ):
        evaluate_knn(extractor, rows, rows, ks=(1,), shots=(3,))
    with pytest.raises(ValueError, match="`shots` makes a bank of 2 images, but the fewest neighbours of `ks` are 3"):
        evaluate_knn(extractor, rows, rows, ks=(3,), shots=(1,))
    with pytest.raises(ValueError, match="`num_tries` is 0"):
        evaluate_knn(extractor, rows, rows, ks=(1,), shots=(1,), num_tries=0)


def test_the_plot_is_written(tmp_path, extractor):
    rows = coloured_rows(["red", "green"], 4, 0)
    evaluate_knn(extractor, rows, rows, ks=(1, 2), shots=(2,), output_dir=tmp_path / "knn")
    with Image.open(tmp_path / "knn" / "knn.png") as picture:
        assert picture.width > 300


def test_a_bank_of_images_of_another_kind_is_named(processor):
    model = Dinov2Model(
        Dinov2Config(hidden_size=24, num_hidden_layers=1, num_attention_heads=2, image_size=28, num_channels=4)
    )
    rows = coloured_rows(["red", "green"], 3, 0)
    with pytest.raises(ValueError, match=r"no image that can be decoded, from row 0 on .it has shape .32, 32, 3."):
        evaluate_knn(FeatureExtractor(model, processor), rows, rows, ks=(1,))
