"""Every public class goes to the Hub and comes back the same, online and then from the cache."""

import tempfile
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from huggingface_hub.errors import HfHubHTTPError
from PIL import Image
from transformers import (
    AutoBackbone,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForImageClassification,
    AutoModelForPreTraining,
    AutoModelForSemanticSegmentation,
    pipeline,
)

import dinov2_hf
from dinov2_hf import (
    DINOv2Backbone,
    DINOv2Config,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForPreTraining,
    DINOv2ForSemanticSegmentation,
    DINOv2ImageProcessor,
    DINOv2ImageProcessorPil,
    DINOv2Model,
    DINOv2PreTrainingConfig,
)


def tiny_config(**values) -> DINOv2Config:
    return DINOv2Config(hidden_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=28, **values)


def tiny_pretraining_config() -> DINOv2PreTrainingConfig:
    return DINOv2PreTrainingConfig(
        backbone_config=tiny_config(), num_prototypes=8, head_hidden_size=8, bottleneck_size=4
    )


class Kind(NamedTuple):
    """How a class is made, which Auto class should find it, and whether it is a model."""

    make: Callable[[], Any]
    auto_class: type
    is_model: bool = True


KINDS = {
    "DINOv2Model": Kind(lambda: DINOv2Model(tiny_config(num_register_tokens=2)), AutoModel),
    "DINOv2Backbone": Kind(lambda: DINOv2Backbone(tiny_config(out_indices=[1, 2])), AutoBackbone),
    "DINOv2ForImageClassification": Kind(
        lambda: DINOv2ForImageClassification(tiny_config(num_labels=3)), AutoModelForImageClassification
    ),
    "DINOv2ForSemanticSegmentation": Kind(
        lambda: DINOv2ForSemanticSegmentation(tiny_config(num_labels=3)), AutoModelForSemanticSegmentation
    ),
    "DINOv2ForDepthEstimation": Kind(lambda: DINOv2ForDepthEstimation(tiny_config()), AutoModelForDepthEstimation),
    "DINOv2ForPreTraining": Kind(lambda: DINOv2ForPreTraining(tiny_pretraining_config()), AutoModelForPreTraining),
    "DINOv2Config": Kind(tiny_config, AutoConfig, is_model=False),
    "DINOv2PreTrainingConfig": Kind(tiny_pretraining_config, AutoConfig, is_model=False),
    "DINOv2ImageProcessor": Kind(
        lambda: DINOv2ImageProcessor(crop_size={"height": 28, "width": 28}), AutoImageProcessor, is_model=False
    ),
    "DINOv2ImageProcessorPil": Kind(
        lambda: DINOv2ImageProcessorPil(crop_size={"height": 28, "width": 28}), AutoImageProcessor, is_model=False
    ),
}
LOAD_OPTIONS = {"DINOv2ImageProcessorPil": {"backend": "pil"}}


# What a distillation leaves are `DINOv2ForPreTraining` and `DINOv2Model`: these two are only of the run itself.
NEVER_SAVED = {"DINOv2DistillationConfig", "DINOv2ForDistillation"}


def test_every_public_class_is_here():
    public = {name for name in dinov2_hf.__all__ if isinstance(getattr(dinov2_hf, name), type)}
    assert set(KINDS) == public - NEVER_SAVED


def repo_of(name: str) -> str:
    return f"ada/{name.lower()}"


WRITTEN_WHEN_SAVED = ("architectures", "dtype", "transformers_version")


def content(thing) -> dict:
    """What must come back: configuration and weights of a model, or all values of the others."""
    values = plain((thing.config if hasattr(thing, "config") else thing).to_dict())
    return values | (thing.state_dict() if hasattr(thing, "state_dict") else {})


def plain(values: dict) -> dict:
    return {
        key: plain(value) if isinstance(value, dict) else value
        for key, value in values.items()
        if key not in WRITTEN_WHEN_SAVED and not str(key).startswith("_")
    }


def differences(one: dict, other: dict) -> set[str]:
    """Keys that are missing on one side or have another value."""
    return {
        key
        for key in {*one, *other}
        if key not in one
        or key not in other
        or not (torch.equal(one[key], other[key]) if torch.is_tensor(one[key]) else one[key] == other[key])
    }


# --- what runs at the user's: functions that the client process calls by name


def push(name: str, how: str, options: dict | None = None) -> None:
    torch.manual_seed(0)
    thing, options = KINDS[name].make(), options or {}
    if how == "push_to_hub":
        thing.push_to_hub(repo_of(name), **options)
    else:
        with tempfile.TemporaryDirectory() as folder:
            thing.save_pretrained(folder, push_to_hub=True, repo_id=repo_of(name), **options)


def push_and_catch(name: str, how: str, options: dict) -> int | None:
    """The HTTP status that the push failed with."""
    try:
        push(name, how, options)
    except HfHubHTTPError as error:
        return error.response.status_code
    return None


def load(name: str, revision: str = "main", through_auto_class: bool = True) -> tuple[str, set[str]]:
    """Class of what comes from the Hub, and in what it differs from what `push` pushed."""
    kind = KINDS[name]
    torch.manual_seed(0)
    pushed = kind.make()
    loader = kind.auto_class if through_auto_class else getattr(dinov2_hf, name)
    loaded = loader.from_pretrained(repo_of(name), revision=revision, **LOAD_OPTIONS.get(name, {}))
    return type(loaded).__name__, differences(content(pushed), content(loaded))


def push_features(repo_id: str) -> torch.Tensor:
    """Push a model and its processor to one repository; features of an image before that, `(1, T, D)`."""
    torch.manual_seed(0)
    model, processor = DINOv2Model(tiny_config()).eval(), KINDS["DINOv2ImageProcessor"].make()
    model.push_to_hub(repo_id, tags=["digits"])
    processor.push_to_hub(repo_id)
    with torch.no_grad():
        return model(**processor(image(), return_tensors="pt")).last_hidden_state


def features_of(repo_id: str) -> torch.Tensor:
    return pipeline("image-feature-extraction", model=repo_id)(image(), return_tensors=True)


def image() -> Image.Image:
    generator = torch.Generator().manual_seed(0)
    return Image.fromarray(torch.randint(0, 256, (40, 50, 3), generator=generator, dtype=torch.uint8).numpy())


# --- the tests


@pytest.mark.parametrize("how", ["push_to_hub", "save_pretrained"])
@pytest.mark.parametrize("name", KINDS)
def test_push_and_load(hub, client, offline_client, name, how):
    client(push, name, how)
    assert not hub.repos[repo_of(name)].private
    assert client(load, name) == (name, set())
    # transformers' AutoBackbone asks the Hub whether the repository exists; the class itself does not.
    assert offline_client(load, name, "main", name != "DINOv2Backbone") == (name, set())


PRIVATELY = {"private": True, "token": "hf_writer", "commit_message": "A second version"}
# save_pretrained hands its options to create_repo, which knows no revision: so it is in transformers itself.
OPTIONS = {"push_to_hub": {**PRIVATELY, "revision": "second"}, "save_pretrained": PRIVATELY}


@pytest.mark.parametrize("how", OPTIONS)
@pytest.mark.parametrize("name", KINDS)
def test_options_reach_the_hub(hub, client, name, how):
    client(push, name, how, OPTIONS[how])
    repo, branch = hub.repos[repo_of(name)], OPTIONS[how].get("revision", "main")
    assert repo.private
    assert repo.commits == ["A second version"]
    written = "config.json" if "ImageProcessor" not in name else "preprocessor_config.json"
    assert [other for other in repo.branches if written in hub.files(repo_of(name), other)] == [branch]
    assert client(load, name, branch) == (name, set())
    # The environment holds a token that may write: that these fail shows that the one given is used.
    assert client(push_and_catch, name, how, {"token": "hf_reader"}) == 403
    assert client(push_and_catch, name, how, {"token": "hf_nobody"}) == 401


@pytest.mark.parametrize("name", [name for name, kind in KINDS.items() if kind.is_model])
def test_sharded(hub, client, name):
    client(push, name, "push_to_hub", {"max_shard_size": "20KB"})
    files = hub.files(repo_of(name))
    assert "model.safetensors.index.json" in files
    assert sum(path.endswith(".safetensors") for path in files) > 1
    assert client(load, name) == (name, set())


def test_pipeline_from_the_hub_and_then_from_the_cache(hub, client, offline_client):
    expected = client(push_features, "ada/features")
    assert {"README.md", "config.json", "model.safetensors", "preprocessor_config.json"} == set(
        hub.files("ada/features")
    )
    assert "- digits" in hub.files("ada/features")["README.md"].decode()
    assert "- dinov2" in hub.files("ada/features")["README.md"].decode()
    assert torch.equal(client(features_of, "ada/features"), expected)
    assert torch.equal(offline_client(features_of, "ada/features"), expected)


def test_a_refused_push_changes_nothing(hub, client):
    client(push, "DINOv2Model", "push_to_hub")
    before = hub.files(repo_of("DINOv2Model"))
    hub.failures["/commit/"] = 500
    assert client(push_and_catch, "DINOv2Model", "push_to_hub", {"revision": "main"}) == 500
    assert hub.files(repo_of("DINOv2Model")) == before
