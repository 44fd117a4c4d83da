"""`init_from` with names on the Hub: the backbone at the root of a repository, and the whole run beside it."""

import numpy as np
import pytest
import torch

from dinov2_hf import DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.runs.initial_weights import load_initial_model

from .fake_hub import Repo


def load(source: str) -> tuple[str, dict[str, np.ndarray]]:
    initial = load_initial_model(source)
    return type(initial).__name__, {name: value.numpy() for name, value in initial.state_dict().items()}


def complaint(source: str) -> str:
    with pytest.raises(ValueError, match="read from") as error:
        load_initial_model(source)
    return str(error.value)


def test_backbone_and_whole_run(hub, client, tiny_config, spread, tmp_path):
    config = DINOv2PreTrainingConfig(
        backbone_config=tiny_config, num_prototypes=8, head_hidden_size=8, bottleneck_size=4
    )
    run = spread(DINOv2ForPreTraining(config))
    run.teacher.backbone.save_pretrained(tmp_path)
    run.save_pretrained(tmp_path / "pretraining_model")
    files = {str(path.relative_to(tmp_path)): path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    hub.repos["ada/vit"] = Repo(private=False)
    hub.repos["ada/vit"].branches["main"].update(files)
    expected = {"ada/vit": run.teacher.backbone, "ada/vit/pretraining_model": run}
    for source, model in expected.items():
        kind, state = client(load, source)
        assert kind == type(model).__name__
        assert state.keys() == model.state_dict().keys()
        assert all(torch.equal(torch.from_numpy(state[name]), value) for name, value in model.state_dict().items())
    assert "No DINOv2Model can be read from ada/other" in client(complaint, "ada/other")
