"""
Registration with transformers' Auto classes and pipelines, in one place. Other models are not affected.

It imports nothing heavy. Each part is registered when the module of transformers that it belongs to has been imported.
Classes are registered by their names, and imported at their first use.
"""

import sys
from collections.abc import Callable, Iterator, Mapping
from importlib import import_module
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec, PathFinder
from types import ModuleType
from typing import Any


def register() -> None:
    """Register our classes with the Auto classes, and make pipelines decode images for them as in training."""
    for name, function in WHEN_IMPORTED.items():
        if name in sys.modules:
            function()
    if not any(isinstance(finder, _CallsWhenImported) for finder in sys.meta_path):
        sys.meta_path.insert(0, _CallsWhenImported())


def _register_configurations() -> None:
    from transformers import AutoConfig

    for config in (_ours("DINOv2Config"), _ours("DINOv2PreTrainingConfig")):
        AutoConfig.register(config.model_type, config)


def _register_models() -> None:
    import transformers

    backbone, pretraining = _ours("DINOv2Config"), _ours("DINOv2PreTrainingConfig")
    for auto_class, config, name in (
        (transformers.AutoModel, backbone, "DINOv2Model"),
        (transformers.AutoBackbone, backbone, "DINOv2Backbone"),
        (transformers.AutoModelForImageClassification, backbone, "DINOv2ForImageClassification"),
        (transformers.AutoModelForSemanticSegmentation, backbone, "DINOv2ForSemanticSegmentation"),
        (transformers.AutoModelForDepthEstimation, backbone, "DINOv2ForDepthEstimation"),
        (transformers.AutoModelForPreTraining, pretraining, "DINOv2ForPreTraining"),
    ):
        mapping = auto_class._model_mapping
        mapping._extra_content = _Registered(mapping._extra_content)
        auto_class.register(config, _ClassName(name))


def _register_image_processors() -> None:
    from transformers.models.auto.image_processing_auto import IMAGE_PROCESSOR_MAPPING
    from transformers.utils import is_torchvision_available

    names = {"pil": "DINOv2ImageProcessorPil"}
    if is_torchvision_available():  # without it, that class can be constructed, but fails at its first image
        names["torchvision"] = "DINOv2ImageProcessor"
    # Not by `AutoImageProcessor.register`, which looks at the classes.
    IMAGE_PROCESSOR_MAPPING.register(_ours("DINOv2Config"), _NamedClasses(names))


def _register_pipelines() -> None:
    from .models.pipelines import register_pipelines

    register_pipelines()


WHEN_IMPORTED: dict[str, Callable[[], None]] = {
    "transformers.models.auto.configuration_auto": _register_configurations,
    "transformers.models.auto.modeling_auto": _register_models,
    "transformers.models.auto.image_processing_auto": _register_image_processors,
    "transformers.pipelines": _register_pipelines,
}


def _ours(name: str) -> type:
    return getattr(import_module(__package__), name)


class _ClassName(str):
    """Name of a class of this package."""


class _Registered(dict):
    """The entries of an Auto class. The name of one of our classes is resolved when it is looked up."""

    def __getitem__(self, config: type) -> Any:
        value = super().__getitem__(config)
        return _ours(value) if isinstance(value, _ClassName) else value

    def values(self) -> list:
        return [self[config] for config in self]

    def items(self) -> list[tuple]:
        return [(config, self[config]) for config in self]


class _NamedClasses(Mapping):
    """Classes of this package by kind, each imported when it is looked up."""

    def __init__(self, names: dict[str, str]):
        self.names = names

    def __getitem__(self, kind: str) -> type:
        return _ours(self.names[kind])

    def __iter__(self) -> Iterator[str]:
        return iter(self.names)

    def __len__(self) -> int:
        return len(self.names)


class _CallsWhenImported(MetaPathFinder):
    """Calls the functions above as soon as their modules have been imported."""

    def find_spec(self, name: str, path: Any, target: ModuleType | None = None) -> ModuleSpec | None:
        if name not in WHEN_IMPORTED:
            return None
        spec = PathFinder.find_spec(name, path, target)
        execute = spec.loader.exec_module

        def execute_and_call(module: ModuleType) -> None:
            execute(module)
            WHEN_IMPORTED[name]()

        spec.loader.exec_module = execute_and_call
        return spec
