"""`dinov2-hf evaluate` and `dinov2-hf visualize`, as they are typed."""

import json
import re

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image
from transformers import AutoModelForImageClassification

from dinov2_hf import DINOv2ImageProcessor
from dinov2_hf.cli.more_options.evaluate import as_typed, flags_of, more_options
from dinov2_hf.evaluation.protocols import PROTOCOLS
from tests.cli.typed_commands import mistake, run
from tests.evaluation.coloured_images import COLOURS, coloured_dataset


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("data")
    names = list(COLOURS)
    coloured_dataset(names, 6, 0).to_parquet(folder / "train.parquet")
    coloured_dataset(names, 2, 1, names[::-1]).rename_column("image", "img").to_parquet(folder / "test.parquet")
    return folder


def evaluate_words(folder, data, protocol, output):
    return (
        "evaluate", "--model", folder, "--protocol", protocol, "--train_data", data / "train.parquet", "--eval_data",
        data / "test.parquet", "--output_dir", output,
    )  # fmt: skip


def test_three_protocols_and_a_card(tmp_path, folder, data, capsys):
    output = tmp_path / "results"
    run(
        *evaluate_words(folder, data, "knn,linear,logistic_regression", output), "--knn_ks", 1, 5, "--knn_shots", 2,
        "--linear_cache_features", "--linear_num_steps", 30, "--linear_train_batch_size", 16,
        "--linear_grid", "paper", "--logistic_regression_num_cs", 5, "--update_card",
    )  # fmt: skip
    printed = capsys.readouterr().out
    assert "knn: Classify `--eval_data` by the neighbours of its images in `--train_data`, the bank." in printed
    assert re.search(r"\| knn +\| knn_top1_k5 +\| +1 \|", printed)
    assert str(output / "metrics.json") in printed
    found = json.loads((output / "metrics.json").read_text())
    assert list(found["protocols"]) == ["knn", "linear", "logistic_regression"]
    of_knn = found["protocols"]["knn"]
    assert of_knn["options"] == {
        "ks": [1, 5], "shots": [2], "temperature": 0.07, "num_tries": 5, "image_column": "image",
        "label_column": "label", "batch_size": None, "num_workers": 0, "bf16": False,
    }  # fmt: skip
    assert of_knn["precision"] == "float32"
    assert (of_knn["device"], of_knn["num_processes"]) == ("cpu", 1)
    assert of_knn["findings"]["num_classes"] == 6
    assert of_knn["findings"]["num_bank_images"] == found["num_train_rows"] == 36
    assert of_knn["command"].startswith(
        f"dinov2-hf evaluate --protocol knn,linear,logistic_regression --model {folder}"
    )
    assert "--knn_ks 1 5 --knn_shots 2" in of_knn["command"]
    assert torch.__version__.startswith(of_knn["versions"]["torch"])
    # The model has 2 blocks: the last one, and all, in place of 1 and 4.
    assert found["protocols"]["linear"]["options"]["num_layers"] == [1, 2]
    assert found["protocols"]["linear"]["options"]["seed"] == 0
    assert found["eval_data"] == str(data / "test.parquet")
    assert (found["image_size"], found["num_eval_rows"]) == ([32, 32], 12)
    assert found["image_processor"]["size"]["shortest_edge"] == 36
    for protocol in found["protocols"].values():
        assert all(0 <= value for value in protocol["metrics"].values())
    assert found["protocols"]["knn"]["metrics"]["knn_top1_k1"] == 1.0
    assert found["protocols"]["logistic_regression"]["metrics"]["logistic_regression_top1"] == 1.0
    for name in ("knn/knn.png", "linear/linear.png", "logistic_regression/logistic_regression.png"):
        assert Image.open(output / name).width > 300
    AutoModelForImageClassification.from_pretrained(output / "linear" / "model")
    results = ModelCard.load(folder / "README.md").data.eval_results
    assert {result.metric_name for result in results} >= {"knn_top1_k5", "linear_top1", "logistic_regression_top1"}


def test_the_same_rows_to_learn_from_and_to_measure_on_are_named(tmp_path, folder, data, capsys):
    words = list(evaluate_words(folder, data, "knn", tmp_path / "same"))
    words[words.index("--eval_data") + 1] = data / "train.parquet"
    run(*words, "--knn_ks", 1)
    assert "knn: `--train_data` and `--eval_data` are the same rows" in capsys.readouterr().out
    (note,) = json.loads((tmp_path / "same" / "metrics.json").read_text())["protocols"]["knn"]["notes"]
    assert "says nothing about other images" in note
    run(*evaluate_words(folder, data, "knn", tmp_path / "other"), "--knn_ks", 1)
    assert "are the same rows" not in capsys.readouterr().out


@pytest.mark.parametrize("baseline", ["untrained", "pixels"])
def test_baselines(tmp_path, folder, data, baseline):
    output = tmp_path / baseline
    run(
        *evaluate_words(folder, data, "knn", output),
        "--knn_ks",
        1,
        "--baseline",
        baseline,
        "--train_split",
        "train[:12]",
    )
    found = json.loads((output / "metrics.json").read_text())
    assert found["baseline"] == baseline
    assert found["protocols"]["knn"]["metrics"]["knn_top1_k1"] == 1.0


def test_mistakes_are_one_sentence(tmp_path, folder, data):
    output = tmp_path / "none"

    def answer(protocol, *words):
        return mistake(*evaluate_words(folder, data, protocol, output), *words)

    assert "no evaluation protocol 'nearest'. Did you mean `linear`? There are knn, linear, " in answer("knn,nearest")
    assert "`--protocol` is knn; leave `--linear_grid`, `--video_num_frames` out" in answer(
        "knn", "--linear_grid", "paper", "--video_num_frames", 4
    )
    assert "leave `--video_column` out" in answer("knn", "--video_column", "clip")
    assert "some for images and some for videos" in answer("knn,video")
    assert "`--knn_ks` asks for 200 neighbours, but the bank has 36 images" in answer("knn")
    assert "`--linear_num_layers` is 1 4, but must be numbers from 1 to the 2 blocks" in answer(
        "linear", "--linear_num_layers", 1, 4
    )
    assert "--label_column fine is not a column" in answer("knn", "--label_column", "fine")
    assert "`--baseline` is untrained" in answer("knn", "--update_card", "--baseline", "untrained")
    assert "does not exist, and a model folder" in mistake(*evaluate_words(tmp_path / "no", data, "knn", output))
    DINOv2ImageProcessor(image_mean=[0.5] * 4, image_std=[0.5] * 4).save_pretrained(folder)
    assert "a network for 3 channels, but `image_mean` of its image processor" in answer("knn")
    DINOv2ImageProcessor().save_pretrained(folder)
    assert not output.exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch_size", 0), "`--batch_size` is 0; it must be at least 1."),
        (("--num_workers", -1), "`--num_workers` is -1; it must be at least 0."),
        (("--linear_seed", 2**70), "it must be between 0 and 4294967295."),
        (("--linear_num_steps", 0), "`--linear_num_steps` is 0; it must be at least 1."),
        (("--depth_max_grad_norm", -1), "`--depth_max_grad_norm` is -1.0; it must be above 0."),
        (("--linear_grid", "other"), '`--linear_grid` is "other"; it must be "code" or "paper".'),
        (("--knn_k", 3), "there is no flag --knn_k. Did you mean `--knn_ks`?"),
    ],
)
def test_words_that_cannot_be_read(tmp_path, folder, data, capsys, words, message):
    with pytest.raises(SystemExit) as stop:
        run(*evaluate_words(folder, data, "knn,linear", tmp_path / "none"), *words)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_help_is_of_the_protocols_that_are_named(capsys):
    for words, shown in (((), False), (("--protocol", "knn"), True), (("knn",), True)):
        with pytest.raises(SystemExit):
            run("evaluate", *words, "--help")
        helped = capsys.readouterr().out
        assert "--keep_features" in helped
        assert ("--knn_temperature" in helped) == shown
        assert "--linear_grid" not in helped
        assert ("  copy_detection " in helped) != shown


@pytest.mark.parametrize("protocol", PROTOCOLS.names())
def test_every_option_of_a_protocol_is_explained(protocol):
    options = more_options(["--protocol", protocol])
    assert list(options) == list(flags_of(PROTOCOLS.named(protocol)))
    for name, option in options.items():
        assert len(option.help) > 10, name


@pytest.mark.slow
def test_pictures(tmp_path, folder, data, capsys):
    images = []
    for number in range(2):
        images.append(tmp_path / f"{number}.png")
        Image.effect_noise((60, 50), 60 + 30 * number).convert("RGB").save(images[-1])
    for words in (
        ("pca", "--images", *images, "--foreground", "--image_size", 64),
        ("attention", "--images", *images, "--layer", 0, "--title", "Block 0"),
        ("matching", "--images", *images, "--no-foreground", "--max_matches", 5),
        (
            "neighbors",
            "--data",
            data / "train.parquet",
            "--rows",
            0,
            7,
            "--num_neighbors",
            3,
            "--label_column",
            "label",
        ),
        ("neighbors", "--data", data / "train.parquet", "--images", images[0]),
        ("pca", "--data", data / "train.parquet"),
    ):
        output = tmp_path / "pictures" / "one.png"
        run("visualize", folder, "--kind", *words, "--output", output)
        assert str(output) in capsys.readouterr().out
        assert Image.open(output).width > 300
        assert "exists already" in mistake("visualize", folder, "--kind", *words, "--output", output)
        run("visualize", folder, "--kind", *words, "--output", output, "--overwrite")
        output.unlink()


def test_a_broken_image_is_not_searched(tmp_path, folder, capsys):
    """The neighbours are those of the folder without it, and a row keeps its number."""
    pictures = []
    for name in ("with", "without"):
        images = tmp_path / name
        images.mkdir()
        for number in range(6):
            colour = (40 * number, 255 - 40 * number, 90)
            Image.new("RGB", (40, 40), colour).save(images / f"{number}.png")
        if name == "with":
            (images / "2a.png").write_bytes(b"no image")
        rows = (0, 6) if name == "with" else (0, 5)
        output = tmp_path / f"{name}.png"
        words = ("--kind", "neighbors", "--data", images, "--rows", *rows, "--num_neighbors", 3, "--output", output)
        run("visualize", folder, *words)
        said = capsys.readouterr().err
        assert ("row 3 is not searched, since its image cannot be decoded: " in said) == (name == "with")
        pictures.append(Image.open(output).convert("RGB").tobytes())
    assert pictures[0] == pictures[1]


def test_mistakes_about_pictures(tmp_path, folder, data):
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")

    def answer(*words, output="x.png"):
        return mistake("visualize", folder, "--output", tmp_path / output, "--kind", *words)

    image = ("--images", tmp_path / "image.png")
    assert "`--kind` is pca; leave `--layer` out" in answer("pca", *image, "--layer", 1)
    assert "must end in .png" in answer("pca", *image, output="x.jpg")
    assert "`--images` or `--data` must be given" in answer("pca")
    assert "`--data`, the images to search, must be given" in answer("neighbors", *image)
    assert "leave `--rows`" in answer("pca", *image, "--rows", 3)
    assert "takes 2 images, but there are 1" in answer("matching", *image)
    assert "`--rows` holds 99, but the data has the rows 0 to 35" in answer(
        "pca", "--data", data / "train.parquet", "--rows", 99
    )
    assert "cannot be decoded" in answer("pca", "--images", __file__)
    assert "there is no file nope.png; name the images" in answer("pca", "--images", "nope.png")
    assert "`--image_size` is 30, but must be a multiple of the patch size, 8 x 8" in answer(
        "pca", *image, "--image_size", 30
    )
    assert "`--layer` is 7, but the model has the blocks 0 to 1" in answer("attention", *image, "--layer", 7)
    picture = (tmp_path / "image.png").read_bytes()
    assert "is the same as the source" in answer("pca", *image, "--overwrite", output="image.png")
    assert (tmp_path / "image.png").read_bytes() == picture
    assert not (tmp_path / "x.png").exists()


def test_numbers_of_pictures_out_of_range(tmp_path, folder, capsys):
    for name in ("max_matches", "num_neighbors", "batch_size"):
        with pytest.raises(SystemExit):
            run("visualize", folder, "--output", tmp_path / "x.png", "--kind", "matching", f"--{name}", 0)
        assert f"`--{name}` is 0; it must be at least 1." in capsys.readouterr().err


def test_the_seed_of_an_untrained_network(folder):
    from dinov2_hf.cli.backbone import load_backbone

    first, second = (load_backbone(str(folder), "untrained")[0].state_dict() for _ in range(2))
    trained = load_backbone(str(folder))[0].state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not torch.equal(first["embeddings.position_embeddings"], trained["embeddings.position_embeddings"])


def test_notes_and_splits_are_named_as_they_are_typed(tmp_path, folder, data, capsys, monkeypatch):
    sentence = "the best k of `ks`, 3, is the largest that was tried; see `train_dataset`"
    note = as_typed(PROTOCOLS.named("knn"), sentence)
    assert note == "the best k of `--knn_ks`, 3, is the largest that was tried; see `--train_data`"
    said = mistake(*evaluate_words(folder, data, "knn", tmp_path / "out"), "--label_column", "fine")
    assert "--label_column fine is not a column of the training data (split train), which has image, label" in said
    assert "a folder for each class" in said
