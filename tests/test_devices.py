import pytest
import torch

from dinov2_hf.devices import find_device


def test_the_cpu_is_always_there():
    assert find_device("cpu") == find_device(torch.device("cpu")) == torch.device("cpu")
    assert find_device(None) == (torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu"))


@pytest.mark.parametrize("name", ["foo", "", "cuda:99", "meta", "cuda:x", torch.device("meta")])
def test_a_device_that_is_not_here_is_refused(name):
    with pytest.raises(ValueError, match="is not on this machine, which has cpu"):
        find_device(name)


@pytest.mark.skipif(not torch.accelerator.is_available(), reason="no accelerator here")
def test_an_accelerator():
    accelerator = torch.accelerator.current_accelerator()
    assert find_device(accelerator.type) == accelerator
    assert find_device(f"{accelerator.type}:0").index == 0
