import os
import signal
import socket


# Before anything of Hugging Face is imported: the tests need no network and must not wait for one.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Before torch is imported: threads take longer to meet than these small tensors take, and tests run side by side.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

from dinov2_hf import DINOv2Config
from dinov2_hf.data import own_max_image_pixels


# A job in the background of a shell ignores Ctrl-C, and so would the processes that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_runtest_setup(item):
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("there is no GPU here")


@pytest.fixture
def tiny_config() -> DINOv2Config:
    """2 layers, 32 wide, 4 x 4 patches of 8 pixels."""
    return DINOv2Config(
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        layerscale_value=1.0,
    )


@pytest.fixture(autouse=True)
def pixel_limit():
    """A limit of pixels that a test's commands set ends with the test; else it ends with their process."""
    with own_max_image_pixels():
        yield


@pytest.fixture(autouse=True)
def seed():
    torch.manual_seed(0)


@pytest.fixture
def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@pytest.fixture
def spread():
    """Moves all weights of a model away from their initial values, so that none of them is without effect."""

    def spread(model: torch.nn.Module) -> torch.nn.Module:
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        return model.eval()

    return spread
