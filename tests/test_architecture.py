"""The house: who may import whom, no drawers, no file that two ideas share, no field that nothing reads."""

import ast
import inspect
from collections import Counter
from pathlib import Path

import pytest

from dinov2_hf import DINOv2Config, DINOv2DistillationConfig, DINOv2PreTrainingConfig
from dinov2_hf.data import MultiCropTransform, PreTrainingCollator
from dinov2_hf.evaluation.protocols import PROTOCOLS as REGISTRY
from dinov2_hf.runs.distillation_arguments import DistillationArguments
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from dinov2_hf.training.optimizer import build_optimizer, parameter_groups
from dinov2_hf.training.schedules import build_schedules


ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "src" / "dinov2_hf"
ROOMS = (
    "models", "pretraining", "data", "training", "pictures", "evaluation", "curation", "conversion", "runs", "demo",
)  # fmt: skip
# How anything is imported, written, read from a recipe, and told; and where networks run.
GROUND = {
    "lazy_names", "output_folders", "atomic_files", "recipe_files", "public_names", "named_objects", "value_ranges",
    "options", "declarations", "command_lines", "devices", "hub_repos", "progress",
}  # fmt: skip
# Imports go down only. A room may import those named here and the ground.
ALLOWED = {
    "lazy_names": set(),
    "output_folders": {"public_names"},
    "atomic_files": {"output_folders"},
    "recipe_files": {"named_objects", "public_names"},
    "public_names": set(),
    "named_objects": {"public_names"},
    "value_ranges": set(),
    "command_lines": {"named_objects", "options", "public_names", "recipe_files"},
    "options": {"named_objects", "public_names", "recipe_files", "value_ranges"},
    "declarations": set(),
    "devices": set(),
    "progress": set(),
    "hub_repos": set(),
    "data": set(),
    "models": {"data"},  # one way to decode an image
    "training": set(),
    "pretraining": {"models", "training"},  # names of metrics
    "cosines": set(),
    "feature_kinds": set(),
    "fingerprints": set(),
    "keyed_tensors": set(),
    "features": {"data", "feature_kinds", "fingerprints", "keyed_tensors"},  # one way to decode an image
    "feature_files": {"features", "data"},  # which files of columns that are kept may be read
    "model_source": {"training"},  # which folders are checkpoints
    # Training writes the metrics whose curves are drawn.
    "pictures": {"cosines", "features", "feature_kinds", "training"},
    "conversion": {"model_source", "models", "pretraining", "training"},  # which reads checkpoints
    "curation": {"features", "feature_kinds", "data", "conversion", "model_source", "pictures"},
    "evaluation": {"cosines", "features", "feature_kinds", "keyed_tensors", "models", "data", "pictures"},
    "runs": {
        "data",
        "features",
        "model_source",
        "conversion",
        "models",
        "pretraining",
        "training",
        "pictures",
        "evaluation",
    },
    "demo": {"data", "features", "conversion", "model_source", "pictures"},
    "auto": {"models"},
    "cli": {*ROOMS, "examples", "auto", "features", "feature_kinds", "feature_files", "fingerprints", "model_source"},
    "__main__": set(),
    "__init__": {*ROOMS, "auto", "features"},
}
PROTOCOLS = {f"evaluation/{name}" for name in REGISTRY.names()}
# Within a room: files or chambers, and those of the same room that they may not import.
FORBIDDEN = {
    **{name: PROTOCOLS - {name} for name in PROTOCOLS},
    "data/decoding": {"data/reading"},
    "curation/algorithms": {"curation/stages", "curation/storage", "curation/report"},
    "curation/storage": {"curation/stages", "curation/report"},
    "curation/stages": {"curation/report"},
}
FILES = sorted(PACKAGE.rglob("*.py"))


def imported_rooms(path: Path) -> set[str]:
    """Rooms (or top files) of the package that a file imports, itself excluded."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name.split(".")[1] for alias in node.names if alias.name.startswith("dinov2_hf.")}
        elif isinstance(node, ast.ImportFrom):
            module = (node.module or "").split(".")
            if node.level == 0 and module[0] == "dinov2_hf":
                found |= {module[1]} if len(module) > 1 else {alias.name for alias in node.names}
            elif node.level == len(parts):  # from .x at the top, from ..x in a room
                found |= {module[0]} if node.module else {alias.name for alias in node.names}
    return found - {parts[0]}


def test_every_room_is_known():
    top = {path.relative_to(PACKAGE).with_suffix("").parts[0] for path in FILES}
    assert top <= set(ALLOWED)


def imported_modules(path: Path) -> set[str]:
    """Modules of the package that a file imports, by their places: "evaluation/knn"."""
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            module = [*parts[: len(parts) - node.level], *(node.module or "").split(".")] if node.level else []
            found |= {"/".join([*filter(None, module), alias.name]) for alias in node.names}
    return found


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_follow_the_house(path):
    place = path.relative_to(PACKAGE).with_suffix("")
    room = place.parts[0]
    assert imported_rooms(path) <= ALLOWED[room] | (GROUND if room not in GROUND else set())
    own = [name for name in FORBIDDEN if f"{place.as_posix()}/".startswith(f"{name}/")]
    for name in own:
        for forbidden in FORBIDDEN[name]:
            assert not any(f"{module}/".startswith(f"{forbidden}/") for module in imported_modules(path))


def test_the_import_rule_can_fail(tmp_path, monkeypatch):
    stranger = tmp_path / "models" / "stranger.py"
    stranger.parent.mkdir()
    stranger.write_text("from ..training.ema import update_ema\nfrom dinov2_hf.data import collator\n")
    monkeypatch.setattr(f"{__name__}.PACKAGE", tmp_path)
    assert imported_rooms(stranger) == {"training", "data"}


@pytest.mark.parametrize("path", [*FILES, *(ROOT / "examples").rglob("*.py")], ids=lambda path: path.name)
def test_no_drawers_and_one_idea_per_file(path):
    assert not {"utils", "helpers", "common", "misc"} & set(path.with_suffix("").parts)
    assert len(path.read_text().splitlines()) <= 500


@pytest.mark.parametrize(("name", "most"), [("pretrain", 90), ("distill", 40)])
def test_scripts_show_the_method(name, most):
    """In a screenful; and no line of them asks for the backend, the number of students or the kind of teacher."""
    text = (ROOT / "examples" / f"{name}.py").read_text()
    assert len(text.splitlines()) <= most
    tests = [node.test for node in ast.walk(ast.parse(text)) if isinstance(node, ast.If | ast.IfExp)]
    assert {ast.unparse(test) for test in tests} == {"__name__ == '__main__'"}


def test_no_two_files_of_one_name():
    """Files of the commands are called as what one types."""
    names = Counter(path.name for path in FILES if path.parent.name != "cli" and not path.name.startswith("__"))
    assert [name for name, count in names.items() if count > 1] == []


def attributes_read(paths: list[Path]) -> set[str]:
    """Attribute names that are read, and strings that could be read by `getattr`."""
    names = set()
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Load):
                names.add(node.attr)
            elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                names.add(node.value)
    return names


@pytest.mark.parametrize(
    "config",
    [DINOv2Config, DINOv2PreTrainingConfig, DINOv2DistillationConfig, PreTrainingArguments, DistillationArguments],
)
def test_every_field_is_read(config):
    # Those with an underscore are read by the mix-in of transformers that they are declared for.
    own = {name for name in config.__annotations__ if not name.startswith("_")}
    assert own
    scripts = list((ROOT / "examples").glob("*.py"))
    # A check of its range in the class that declares it does not make a field used.
    declaring = Path(inspect.getsourcefile(config))
    unread = own - attributes_read([path for path in [*FILES, *scripts] if path != declaring])
    given = (MultiCropTransform, PreTrainingCollator, build_optimizer, build_schedules, parameter_groups)
    for function in given:  # get what they take, by name
        assert any(f"values_for({function.__name__}, " in path.read_text() for path in [*FILES, *scripts])
        unread -= set(inspect.signature(function).parameters)
    assert not unread
