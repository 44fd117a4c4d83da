"""The `dinov2-hf` command, as it is typed."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
import torch
from PIL import Image
from pyarrow import parquet
from safetensors.torch import load_file, save_file
from transformers import AutoModelForDepthEstimation, Dinov2Model, ViTMAEConfig, ViTMAEForPreTraining, pipeline

from dinov2_hf import (
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForPreTraining,
    DINOv2ImageProcessor,
    DINOv2Model,
    DINOv2PreTrainingConfig,
)
from dinov2_hf.cli.features import features
from dinov2_hf.cli.talk import Talk
from dinov2_hf.options import options_of
from dinov2_hf_command import COMMANDS, summary
from tests import forked_python
from tests.cli.typed_commands import mistake, run


def unreadable(capsys, *words) -> str:
    """The line about a command line that cannot be read; another one has the usage of the subcommand."""
    with pytest.raises(SystemExit) as stop:
        run(*words)
    assert stop.value.code == 2
    said = capsys.readouterr().err
    sentence, usage = said.splitlines()
    assert sentence.startswith("error: ")
    assert usage.startswith(f"usage: dinov2-hf {words[0]} ")
    assert usage.endswith(f"[options]; `dinov2-hf {words[0]} --help` lists them.")
    return sentence


def test_convert_there_and_back(tmp_path, capsys, folder):
    run("convert", folder, tmp_path / "original.pth")
    run("convert", tmp_path / "original.pth", tmp_path / "again", "--num_attention_heads", 2)
    assert "original.pth holds a backbone: 2 blocks of 32 channels, 2 heads, MLP" in capsys.readouterr().out
    model, again = DINOv2Model.from_pretrained(folder), DINOv2Model.from_pretrained(tmp_path / "again")
    for name, tensor in model.state_dict().items():
        assert torch.equal(tensor, again.state_dict()[name])
    run("convert", folder, tmp_path / "chunked.pth", "--block_chunks", 2)
    assert "blocks.1.1.norm1.weight" in torch.load(tmp_path / "chunked.pth")


def test_convert_a_classifier(tmp_path, tiny_config, spread, folder):
    tiny_config.num_labels = 3
    classifier = spread(DINOv2ForImageClassification(tiny_config))
    classifier.save_pretrained(tmp_path / "classifier")
    run("convert", tmp_path / "classifier", tmp_path / "head.pth", "--part", "head")
    (tmp_path / "labels.json").write_text(json.dumps(["cat", "dog", "eel"]))
    run(
        "convert", tmp_path / "head.pth", tmp_path / "again", "--backbone", folder, "--id2label",
        tmp_path / "labels.json",
    )  # fmt: skip
    again = DINOv2ForImageClassification.from_pretrained(tmp_path / "again")
    assert torch.equal(again.classifier.weight, classifier.classifier.weight)
    assert again.config.id2label == {0: "cat", 1: "dog", 2: "eel"}
    image = Image.linear_gradient("L").convert("RGB")
    answers = pipeline("image-classification", model=str(tmp_path / "again"))(image, top_k=3)
    assert {answer["label"] for answer in answers} == {"cat", "dog", "eel"}


@pytest.mark.slow
def test_a_converted_depth_head_in_the_pipeline(tmp_path, folder, spread):
    """Images of any size: padded to patches on the way in, and cut on the way out."""
    config = DINOv2Config.from_pretrained(folder)
    config.max_depth = 80.0
    spread(DINOv2ForDepthEstimation(config)).save_pretrained(tmp_path / "depth")
    run("convert", tmp_path / "depth", tmp_path / "head.pth", "--part", "head")
    run(
        "convert", tmp_path / "head.pth", tmp_path / "again", "--backbone", folder, "--depth_range", "0.001", "80"
    )  # fmt: skip
    assert AutoModelForDepthEstimation.from_pretrained(tmp_path / "again").config.max_depth == 80
    answer = pipeline("depth-estimation", model=str(tmp_path / "again"))(
        Image.effect_noise((50, 39), 90).convert("RGB")
    )
    assert answer["predicted_depth"].shape == (39, 50)
    assert answer["depth"].size == (50, 39)
    run(
        "export",
        tmp_path / "again",
        "--format",
        "torch-export",
        "--output_dir",
        tmp_path / "pt2",
        "--image_size",
        24,
        40,
    )
    graph = torch.export.load(tmp_path / "pt2" / "model.pt2").module()
    assert graph(torch.zeros(2, 3, 24, 40))["predicted_depth"].shape == (2, 12, 20)


def test_export_to_transformers(tmp_path, capsys, folder):
    run("export", folder, "--format", "transformers", "--output_dir", tmp_path / "stock")
    assert "offset" in capsys.readouterr().out  # of the interpolation, which stock does not have
    stock, model = Dinov2Model.from_pretrained(tmp_path / "stock"), DINOv2Model.from_pretrained(folder)
    pixels = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(stock(pixels).pooler_output, model(pixels).pooler_output, atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_export_to_onnx(tmp_path, folder):
    onnxruntime = pytest.importorskip("onnxruntime")
    run("export", folder, "--format", "onnx", "--output_dir", tmp_path / "onnx")
    session = onnxruntime.InferenceSession(tmp_path / "onnx" / "model.onnx")
    pixels = torch.randn(2, 3, 32, 32)  # the crop of the image processor
    with torch.no_grad():
        expected = DINOv2Model.from_pretrained(folder)(pixels).pooler_output
    names = [output.name for output in session.get_outputs()]
    outputs = dict(zip(names, session.run(None, {"pixel_values": pixels.numpy()}), strict=True))
    np.testing.assert_allclose(outputs["pooler_output"], expected.numpy(), atol=1e-4)


def test_features(tmp_path, capsys, folder):
    images = tmp_path / "images"
    for name in ("cat", "dog"):
        (images / name).mkdir(parents=True)
        for number in range(3):
            Image.effect_noise((40, 40), 60).convert("RGB").save(images / name / f"{number}.png")
    run("features", folder, "--data", images, "--output", tmp_path / "features.npy", "--kind", "mean_patch")
    said = capsys.readouterr().out
    assert "6 rows of shape (32,)" in said
    assert "mean_patch: the mean of the patch tokens after the final norm; DINOv2ImageProcessor" in said
    assert "images resized to shortest_edge 36 pixels and cropped to 32 x 32 pixels" in said
    assert np.load(tmp_path / "features.npy").shape == (6, 32)


@pytest.fixture
def images(tmp_path):
    generator = np.random.default_rng(0)
    (tmp_path / "images").mkdir()
    for number in range(4):
        picture = generator.integers(0, 255, (40, 44, 3), dtype=np.uint8)
        Image.fromarray(picture).save(tmp_path / "images" / f"{number}.png")
    return tmp_path / "images"


def test_features_of_the_folder_of_a_run(tmp_path, folder, images):
    folder.rename(tmp_path / "again")
    (tmp_path / "run").mkdir()
    (tmp_path / "again").rename(tmp_path / "run" / "model")
    for model, name in ((tmp_path / "run", "a.npy"), (tmp_path / "run" / "model", "b.npy")):
        run("features", model, "--data", images, "--output", tmp_path / name)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), np.load(tmp_path / "b.npy"))


def test_features_mistakes_are_one_sentence_before_any_work(tmp_path, folder, images, tiny_config, spread):
    def wrong(*words, model=folder, data=images, output=tmp_path / "new.parquet"):
        return mistake("features", model, "--data", data, "--output", output, *words)

    def change_weights(name, change):
        shutil.copytree(folder, tmp_path / name)
        weights = load_file(folder / "model.safetensors")
        change(weights)
        save_file(weights, tmp_path / name / "model.safetensors", metadata={"format": "pt"})
        return tmp_path / name

    assert "--device foo is not on this machine, which has cpu" in wrong("--device", "foo")
    if not torch.accelerator.is_available():
        assert "--device cuda is not on this machine, which has cpu" in wrong("--device", "cuda")
    assert "`--kind` is cls; leave `--num_layers` out" in wrong("--num_layers", 2)
    assert "--num_layers is 3, but must be from 1 to the 2 blocks" in wrong("--kind", "last_layers", "--num_layers", 3)
    assert "--image_column" in wrong("--image_column", "picture")
    assert "--keep_columns file cannot be kept" in wrong("--keep_columns", "file", output=tmp_path / "new.npy")
    assert "--keep_columns nothing must be a list of columns" in wrong("--keep_columns", "nothing")
    assert "--output is '" in wrong(output=tmp_path / "new.csv")
    assert "is inside the source" in wrong(output=images / "new.npy")
    assert "is the same as the source" in wrong("--overwrite", output=images)
    (tmp_path / "file").touch()
    assert f"{'x' * 300}.npy: File name too long" in wrong(output=tmp_path / f"{'x' * 300}.npy")
    assert "cannot be created, because" in wrong(output=tmp_path / "file" / "new.npy")
    assert "is needed" in wrong(model=tmp_path / "none" / "model")
    assert "somebody/something" in wrong(model="somebody/something")
    assert "is not a model folder" in wrong(model=images)
    assert "lack `embeddings.cls_token`" in wrong(model=change_weights("lacking", lambda weights: weights.clear()))
    assert "NaN or infinite, in `layernorm.bias`" in wrong(
        model=change_weights("broken", lambda weights: weights["layernorm.bias"].fill_(torch.nan))
    )
    (tmp_path / "bare").mkdir()
    DINOv2Model(tiny_config).save_pretrained(tmp_path / "bare")
    assert "has no image processor that can be read" in wrong(model=tmp_path / "bare")
    DINOv2ForPreTraining(
        DINOv2PreTrainingConfig(backbone_config=tiny_config.to_dict(), num_prototypes=8, head_hidden_size=8)
    ).save_pretrained(tmp_path / "run" / "pretraining_model")
    sentence = wrong(model=tmp_path / "run" / "pretraining_model")
    assert "holds student, teacher and heads" in sentence
    assert len(sentence) < 400
    assert not list(tmp_path.glob("new*"))


# What has no effect on the features themselves, and why it is there.
WITHOUT_EFFECT = {
    "batch_size": "speed and memory",
    "num_workers": "speed",
    "device": "speed",
    "overwrite": "refused without it where the output is there",
    "split": "a folder without splits has one",
    "max_image_pixels": "leaves large images out: tests/cli/test_image_limits.py",
}


def test_every_option_of_features_changes_something_or_is_refused(tmp_path, folder, images):
    values = {
        "data": [images.parent / "other"], "output": ["x.npy"], "kind": ["mean_patch"], "num_layers": ["1"],
        "image_column": ["file"], "keep_columns": [], "dtype": ["float16"], "bf16": [],
    }  # fmt: skip
    for number in range(4):  # in two classes, so that there is a column to keep
        (images / f"class{number % 2}").mkdir(exist_ok=True)
        (images / f"{number}.png").rename(images / f"class{number % 2}" / f"{number}.png")
    (tmp_path / "other").mkdir()
    Image.effect_noise((40, 40), 60).convert("RGB").save(tmp_path / "other" / "0.png")
    names = {name for name, option in options_of(features).items() if not option.is_positional}
    assert names == set(values) | set(WITHOUT_EFFECT)
    output = tmp_path / "plain.parquet"
    run("features", folder, "--data", images, "--output", output)
    plain = parquet.read_table(output)
    for name, words in values.items():
        if name == "output":  # test_feature_files
            continue
        output = tmp_path / f"{name}.parquet"
        data = [] if name == "data" else ["--data", images]
        arguments = ["features", folder, *data, "--output", output, f"--{name}", *words]
        if name in ("num_layers", "image_column"):
            assert f"--{name}" in mistake(*arguments)
        else:
            run(*arguments)
            assert not parquet.read_table(output).equals(plain)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--batch_size", 0), "`--batch_size` is 0; it must be at least 1."),
        (("--num_workers", -1), "`--num_workers` is -1; it must be at least 0."),
        (("--num_layers", 0), "`--num_layers` is 0; it must be at least 1."),
        (("--batch_size", "many"), "`--batch_size` is many; it must be a whole number."),
        (("--batchsize", 3), "there is no flag --batchsize. Did you mean `--batch_size`?"),
        (("--batch", 3), "there is no flag --batch. Did you mean `--batch_size`?"),
        (("--batch_size", 3, "--batch-size", 4), "`--batch_size` is given twice; give it once, with all its values."),
        (("--batch_size",), "argument --batch_size: expected one argument."),
        (("--hub_tokn", "hf_abc", "--y=hf_abc"), "there is no flag --hub_tokn."),
        (("--dtype", f"hf_abc{'d' * 30}"), '`--dtype` is "hf_***"; it must be "float32" or "float16".'),
        (("hf_abc",), "a word on the command line belongs to no flag (it is not repeated here"),
    ],
)
def test_a_command_line_that_cannot_be_read_is_one_line(capsys, words, message):
    said = unreadable(capsys, "features", "model", "--data", "x", "--output", "y", *words)
    assert said.startswith(f"error: {message}")
    assert "hf_abc" not in said


def test_what_must_be_given_is_named(capsys):
    assert "`--data` and `--output` must be given" in unreadable(capsys, "features", "model")
    assert "`--model`, `--data` and `--output` must be given" in unreadable(capsys, "features")
    assert unreadable(capsys, "pretrain") == "error: `--train_data` must be given."
    assert "no flag --learning_rat. Did you mean `--learning_rate`" in unreadable(
        capsys, "distill", "--learning_rat", 1
    )


def test_a_model_and_an_output_are_named_in_one_way(tmp_path, folder, images):
    """By place or by flag, and by the names that other commands, or earlier versions, have for them."""
    outputs = [tmp_path / f"{number}.npy" for number in range(3)]
    run("features", folder, "--data", images, "--output", outputs[0])
    run("features", "--model", folder, "--data", images, "--output-dir", outputs[1])
    run("features", "--data", images, "--output", outputs[2], "--", folder)
    assert len({output.read_bytes() for output in outputs}) == 1
    run("convert", "--source", folder, "--destination", tmp_path / "a.pth")
    run("convert", folder, "--output", tmp_path / "b.pth")
    assert torch.load(tmp_path / "a.pth").keys() == torch.load(tmp_path / "b.pth").keys()
    run("export", "--format", "transformers", "--folder", folder, "--output", tmp_path / "stock")
    assert (tmp_path / "stock" / "config.json").is_file()


def test_results_as_json(tmp_path, capsys, folder, images):
    """And nothing else on standard output."""
    run("features", folder, "--data", images, "--output", tmp_path / "a.npy", "--json")
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert (found["num_rows"], found["shape"], found["output"]) == (4, [32], str(tmp_path / "a.npy"))
    assert "4 rows of shape" in said.err
    run("convert", folder, tmp_path / "a.pth", "--json", "-q")
    said = capsys.readouterr()
    assert json.loads(said.out)["output"] == str(tmp_path / "a.pth")
    assert said.err == ""
    assert "there is no flag --json" in unreadable(capsys, "pretrain", "--train_data", images, "--json")


def test_libraries_show_bars_on_terminals_only(monkeypatch):
    name = "HF_HUB_DISABLE_PROGRESS_BARS"
    monkeypatch.delenv(name, raising=False)
    for is_terminal, talk in ((False, Talk()), (True, Talk()), (True, Talk(quiet=True))):
        monkeypatch.setattr(sys.stderr, "isatty", lambda is_terminal=is_terminal: is_terminal)
        with talk.in_force():
            assert (name in os.environ) == (talk.quiet or not is_terminal)
        assert name not in os.environ


def test_more_and_less_is_said(tmp_path, capsys, folder, images):
    run("features", folder, "--data", images, "--output", tmp_path / "a.npy", "-q")
    assert capsys.readouterr().out == ""
    assert mistake("features", folder, "--data", images, "--output", tmp_path / "a.npy", "-v")
    assert "Traceback" in capsys.readouterr().err
    assert "TQDM_DISABLE" not in os.environ  # the next command of this process says what it says
    assert "leave one of them out" in unreadable(capsys, "features", "-q", "-v")


def test_hyphens_and_switches(tmp_path, folder, images):
    run("features", "--bf16", folder, "--data", images, "--output", tmp_path / "a.npy", "--batch-size=2")
    run("features", folder, "--data", images, "--output", tmp_path / "a.npy", "--overwrite", "true", "--no-bf16")


def test_the_command_itself_imports_nothing_heavy():
    code = "import sys; from dinov2_hf_command import main; main(sys.argv[1:]); assert 'torch' not in sys.modules"
    code += "; assert 'dinov2_hf' not in sys.modules"
    for words in ([], ["--help"], ["help"], ["--version"], ["exprt"]):
        done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
        assert "Traceback" not in done.stderr
        assert done.returncode == (2 if words in ([], ["exprt"]) else 0)
        assert all(command in done.stdout for command in COMMANDS) == (words in (["--help"], ["help"]))
    assert "did you mean export?" in done.stderr


def test_the_module_is_the_command():
    for words in (["--version"], ["help", "push"]):
        said = [
            subprocess.run([sys.executable, "-m", module, *words], capture_output=True, text=True, check=True).stdout
            for module in ("dinov2_hf", "dinov2_hf.cli", "dinov2_hf_command")
        ]
        assert said[0] == said[1] == said[2] != ""


# What takes seconds to import.
SLOW = ("torch", "transformers", "datasets", "accelerate", "torchvision", "huggingface_hub", "numpy")


@pytest.mark.parametrize("words", [*([command] for command in COMMANDS), ["evaluate", "knn,depth"]], ids="-".join)
def test_help_waits_for_no_import(words):
    """Nor does a mistake in the words."""
    code = "import sys; from dinov2_hf_command import main\ntry: main(sys.argv[1:])\n"
    code += f"finally: assert not set({SLOW}) & set(sys.modules)"
    for end, printed in (("--help", f"usage: dinov2-hf {words[0]} "), ("--modle", "")):
        done = subprocess.run([sys.executable, "-c", code, *words, end], capture_output=True, text=True)
        assert done.stdout.startswith(printed)
        assert "Traceback" not in done.stderr
        assert done.returncode == (0 if printed else 2)


@pytest.mark.parametrize("words", [["--help"], ["evaluate", "--help"]])
def test_a_reader_that_reads_no_further_is_no_fault(words):
    reading, writing = os.pipe()
    os.close(reading)
    with os.fdopen(writing, "w") as nobody:
        command = [sys.executable, "-m", "dinov2_hf_command", *words]
        done = subprocess.run(command, stdout=nobody, stderr=subprocess.PIPE, text=True)
    assert done.returncode == (1 if words == ["--help"] else 0)  # argparse does not mind
    assert "Error" not in done.stderr


def test_an_image_that_cannot_be_read_is_counted_and_named(tmp_path, capsys, folder, images):
    (images / "2.png").write_bytes(b"no image")
    Image.new("RGB", (100_000, 1)).save(images / "3.png")
    run("features", folder, "--data", images, "--output", tmp_path / "new.npy")
    said = capsys.readouterr()
    assert re.search(r"new.npy: 4 rows of shape \(\d+,\), 2 of them NaN", said.out)
    assert "row 2 has no feature" in said.err
    assert "row 3 has no feature" in said.err
    assert "100000 x 1" in said.err
    assert np.isnan(np.load(tmp_path / "new.npy")).all(axis=1).tolist() == [False, False, True, True]


def test_mae_is_loaded_with_all_its_patches(tmp_path, capsys, images, spread):
    config = {"hidden_size": 12, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 24}
    model = spread(ViTMAEForPreTraining(ViTMAEConfig(**config, image_size=32, patch_size=8)))
    model.save_pretrained(tmp_path / "mae")
    processor = DINOv2ImageProcessor(size={"height": 32, "width": 32}, do_center_crop=False)
    processor.save_pretrained(tmp_path / "mae")
    for name in ("a.npy", "b.npy"):
        run("features", tmp_path / "mae", "--data", images, "--output", tmp_path / name)
    assert "the CLS token after the final norm; DINOv2ImageProcessor" in capsys.readouterr().out
    features = np.load(tmp_path / "a.npy")
    np.testing.assert_array_equal(features, np.load(tmp_path / "b.npy"))
    model.vit.config.mask_ratio = 0.0
    pictures = [Image.open(images / f"{number}.png") for number in range(4)]
    pixel_values = processor(images=pictures, return_tensors="pt")["pixel_values"]
    with torch.no_grad():
        tokens = model.vit(pixel_values, noise=torch.arange(16.0).repeat(4, 1)).last_hidden_state
    np.testing.assert_allclose(features, tokens[:, 0].numpy(), atol=1e-5)


@pytest.mark.slow
def test_an_interruption_is_one_line(tmp_path, folder):
    """Ctrl-C reaches all processes of the terminal's foreground, the workers as well."""
    pixels = np.zeros((400, 400, 3), dtype=np.uint8)
    (tmp_path / "images").mkdir()
    for number in range(2000):
        (tmp_path / "images" / f"{number}.png").symlink_to(tmp_path / "picture.png")
    Image.fromarray(pixels).save(tmp_path / "picture.png")
    words = ["features", folder, "--data", tmp_path / "images", "--output", tmp_path / "out" / "new.npy"]
    process = forked_python.start(["-m", "dinov2_hf.cli", *words, "--batch_size", "2", "--num_workers", "1"])
    while process.poll() is None and not list(tmp_path.glob("out/.new.npy.*.unfinished/new.npy")):
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said = process.communicate()[1]
    assert process.returncode == 130
    assert "Traceback" not in said
    assert said.splitlines()[-1] == "interrupted"
    assert not list((tmp_path / "out").iterdir())


def test_mistakes_are_one_sentence(tmp_path, folder):
    assert "none.pth is not a file" in mistake("convert", tmp_path / "none.pth", tmp_path / "new")
    assert "leave `--block_chunks` out" in mistake("convert", __file__, tmp_path / "new", "--block_chunks", 2)
    assert "leave `--backbone` out" in mistake("convert", folder, tmp_path / "x.pth", "--backbone", "y")
    assert "leave `--image_size` out" in mistake(
        "export", folder, "--format", "dual", "--output_dir", tmp_path / "new", "--image_size", 32
    )
    assert "leave `--opset` out" in mistake(
        "export", folder, "--format", "torch-export", "--output_dir", tmp_path / "new", "--opset", 18
    )
    assert "give one, or height and width" in mistake(
        "export", folder, "--format", "onnx", "--output_dir", tmp_path / "new", "--image_size", 1, 2, 3
    )
    assert "multiples of the model's patch size, 8" in mistake(
        "export", folder, "--format", "onnx", "--output_dir", tmp_path / "new", "--image_size", 30
    )
    assert "`--id2label` is" in mistake("convert", __file__, tmp_path / "new", "--id2label", __file__)
    assert not (tmp_path / "new").exists()


def test_every_command_explains_itself(capsys):
    for command in COMMANDS:
        with pytest.raises(SystemExit) as stop:
            run(command, "--help")
        assert stop.value.code == 0
        said = capsys.readouterr().out
        assert said.startswith(f"usage: dinov2-hf {command} ")
        assert " ".join(summary(command).split()) in " ".join(said.split())
