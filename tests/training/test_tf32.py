"""TF32 is allowed on GPUs only, and not where something is measured."""

import torch

from dinov2_hf.training.tf32 import allow_tf32, without_tf32


def test_allowed_on_a_gpu_but_not_inside():
    before = torch.get_float32_matmul_precision()
    try:
        allow_tf32(torch.device("cpu"))
        assert torch.get_float32_matmul_precision() == before == "highest"
        allow_tf32(torch.device("cuda"))
        assert torch.get_float32_matmul_precision() == "high"
        with without_tf32():
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "high"
    finally:
        torch.set_float32_matmul_precision(before)
