"""An export format of one's own: named on the command line, with its option there and in the help."""

import numpy as np
import pytest

from dinov2_hf import DINOv2Model
from dinov2_hf.cli import main


NAME = "numpy_archive:numpy_archive"


@pytest.fixture
def model(tmp_path, tiny_config):
    DINOv2Model(tiny_config).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def export(model, format, output_dir, *words):
    main(["export", str(model), "--format", format, "--output_dir", str(output_dir), *words])


def test_it_writes_and_says_what_it_wrote(tmp_path, capsys, model):
    export(model, NAME, tmp_path / "plain")
    export(model, NAME, tmp_path / "small", "--compressed")
    assert f"arrays in {tmp_path / 'small' / 'weights.npz'}" in capsys.readouterr().out
    expected = DINOv2Model.from_pretrained(model).state_dict()
    for name in ("plain", "small"):
        found = np.load(tmp_path / name / "weights.npz")
        assert set(found) == set(expected)
        assert all(np.array_equal(found[key], tensor.numpy()) for key, tensor in expected.items())
    sizes = [(tmp_path / name / "weights.npz").stat().st_size for name in ("plain", "small")]
    assert sizes[0] > sizes[1]


def test_its_option_is_in_the_help_where_it_is_named(capsys):
    with pytest.raises(SystemExit):
        main(["export", "--format", NAME, "--help"])
    assert "write a smaller file, slower" in capsys.readouterr().out


def test_options_of_other_formats_are_refused(tmp_path, model):
    with pytest.raises(SystemExit, match=f"`--format` is {NAME}; leave `--opset` out"):
        export(model, NAME, tmp_path / "out", "--opset", "18")
    with pytest.raises(SystemExit, match="there is no export format 'onx'. Did you mean `onnx`?"):
        export(model, "onx", tmp_path / "out")
    assert not (tmp_path / "out").exists()
