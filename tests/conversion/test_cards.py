"""Every block of Python in a card runs as it stands, in the folder of the card, where the reader's image.jpg is."""

import re

import pytest
import torch
from huggingface_hub import ModelCard
from PIL import Image

from dinov2_hf import (
    DINOv2Backbone,
    DINOv2ForDepthEstimation,
    DINOv2ForImageClassification,
    DINOv2ForSemanticSegmentation,
    DINOv2Model,
)
from dinov2_hf.conversion.card_code import HERE_ONLY, without_code
from dinov2_hf.conversion.exports.graph import export_torch
from dinov2_hf.conversion.exports.remote_code import export_dual
from dinov2_hf.conversion.exports.stock_transformers import export_transformers
from dinov2_hf.conversion.original.from_original import convert_from_original
from dinov2_hf.conversion.original.to_original import convert_to_original
from dinov2_hf.model_source import HERE
from dinov2_hf.runs.ending.model_card import card_for_repo
from tests import forked_python
from tests.conversion.model_folders import write_model, write_photograph
from tests.conversion.original.layouts import backbone_shapes, fill


# A card of another folder, as a run leaves it: its code and its pictures are there and nowhere else.
OTHER_CARD = """---
license: mit
---
# cells

Images of https://bucket.example/cells.tar?X-Amz-Signature=5ec7e7 with hf_abcdefghijklmnopqrstuvwx.
Trained on cells, of ![a cell](cell.png) and ![a web](https://example.org/web.png).

```python
model = AutoModel.from_pretrained("runs/cells/model")
```

```yaml
steps: 3
```
"""


def blocks(folder):
    return re.findall(r"^```python\n(.*?)^```", (folder / "README.md").read_text(), re.DOTALL | re.MULTILINE)


def run_all(folder, count):
    """Every block in a process of its own, one after the other, as in a notebook of a reader's."""
    found = blocks(folder)
    assert len(found) == count
    assert all(block.startswith((f"{HERE}\n", f"{HERE_ONLY}\n")) for block in found)
    write_photograph(folder / "photograph.png")
    Image.open(folder / "photograph.png").convert("RGB").save(folder / "image.jpg")
    for block in found:
        # The block itself imports this package, where it needs it.
        done = forked_python.run(["-c", block], cwd=folder, imported=forked_python.TRANSFORMERS)
        assert done.returncode == 0, f"{block}\n{done.stderr[-2000:]}"


EXPORTS = {
    "model": (export_transformers, DINOv2Model, {}, 1),
    "classifier": (export_transformers, DINOv2ForImageClassification, {"num_labels": 2}, 1),
    "backbone": (export_transformers, DINOv2Backbone, {}, 1),
    "four channels": (export_transformers, DINOv2Model, {"num_channels": 4}, 1),
    "dual": (export_dual, DINOv2Model, {}, 2),
    "graph": (export_torch, DINOv2Model, {}, 1),
    "graph of four channels": (export_torch, DINOv2Model, {"num_channels": 4}, 1),
}


@pytest.mark.parametrize("name", EXPORTS)
def test_exports(tmp_path, name):
    export, kind, fields, count = EXPORTS[name]
    write_model(kind, tmp_path / "model", **fields)
    (tmp_path / "model" / "README.md").write_text(OTHER_CARD)
    export(tmp_path / "model", tmp_path / "export")
    card = (tmp_path / "export" / "README.md").read_text()
    assert not any(word in card for word in ("runs/cells", "5ec7e7", "hf_abcdefghijklmnopqrstuvwx"))
    assert "https://bucket.example/cells.tar" in card
    assert "Trained on cells, of a cell and ![a web](https://example.org/web.png)." in card
    assert "steps: 3" in card
    assert "license: mit" in card
    run_all(tmp_path / "export", count)


@pytest.mark.parametrize(
    ("kind", "fields"),
    [
        (DINOv2Model, {}),
        (DINOv2Model, {"num_channels": 4}),
        (DINOv2ForImageClassification, {"num_labels": 2}),
        (DINOv2ForSemanticSegmentation, {"num_labels": 2}),
        (DINOv2ForDepthEstimation, {}),
    ],
)
def test_conversions(tmp_path, kind, fields):
    write_model(kind, tmp_path / "model", **fields)
    convert_to_original(tmp_path / "model", tmp_path / "backbone.pth")
    options = {}
    if kind is DINOv2Model:
        source = tmp_path / "backbone.pth"
    else:
        source = convert_to_original(tmp_path / "model", tmp_path / "head.pth", part="head").path
        options["backbone"] = tmp_path / "backbone.pth"
    convert_from_original(source, tmp_path / "converted", **options)
    run_all(tmp_path / "converted", 1)


def test_on_the_hub_the_code_loads_from_there(tmp_path):
    torch.save(fill(backbone_shapes(64)), tmp_path / "x.pth")
    convert_from_original(tmp_path / "x.pth", tmp_path / "model")
    card = ModelCard.load(tmp_path / "model" / "README.md")
    text = card_for_repo(card, "ada/model", revision=None, pictures=[], pretraining_model=False).text
    assert 'pipeline("image-feature-extraction", model="ada/model")' in text
    assert HERE not in text


def test_a_card_without_code_stays():
    assert without_code("# A\n\ntext, `code`\n\n```\nshell\n```") == "# A\n\ntext, `code`\n\n```\nshell\n```"
