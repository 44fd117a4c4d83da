"""
Entry points for `torch.hub.load`, under the names of the original:

    model = torch.hub.load("path/to/this/repository", "dinov2_vits14", source="local")
    features = model(images)  # (B, 384)

Weights are those released on the Hugging Face Hub, or, as `weights`, any Hub id, model folder, or `.pth` file of the
original. The network is `model.model`, a transformers model.
"""

import sys
from functools import partial
from pathlib import Path


dependencies = ["torch", "torchvision", "transformers", "accelerate", "datasets", "safetensors", "huggingface_hub"]
# torch.hub puts this folder on the path, not the one the package lies in.
sys.path.insert(0, str(Path(__file__).parent / "src"))

from dinov2_hf.conversion import torch_hub as _torch_hub  # noqa: E402


for _size in _torch_hub.SIZES:
    for _registers in ("", "_reg"):
        _name = f"dinov2_{_size}14{_registers}"
        globals()[_name] = partial(_torch_hub.backbone, _size, bool(_registers))
        globals()[f"{_name}_lc"] = partial(_torch_hub.linear_classifier, _size, bool(_registers))
        for _entry, _function in ((_name, _torch_hub.backbone), (f"{_name}_lc", _torch_hub.linear_classifier)):
            globals()[_entry].__doc__ = _function.__doc__
