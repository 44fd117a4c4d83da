"""
The peak FLOP/s of known GPUs, for comparison with a run. A device that is not listed has no peak, and none is guessed.
"""

import re

import torch


# FLOP/s in units of 1e12 of dense products at boost clock: in half precision, summed in float32 as torch does, and in
# float32 (by TF32 from Ampere on). From NVIDIA's data sheets and architecture whitepapers (V100, Turing, A100, GA102,
# Ada, H100); numbers that they give with sparsity are halved. Names are those of `torch.cuda.get_device_name`.
TERAFLOPS = {
    r"V100-SXM2-\d+GB": (125, 15.7),
    r"V100-PCIE-\d+GB": (112, 14),
    r"V100S-PCIE-32GB": (130, 16.4),
    r"T4": (65, 8.1),
    r"A100[ -].*": (312, 156),
    r"A30": (165, 82),
    r"A10": (125, 62.5),
    r"A40": (149.7, 74.8),
    r"RTX A6000": (154.8, 77.4),
    r"RTX 3090": (71, 35.6),
    r"RTX 3090 Ti": (80, 40),
    r"RTX 4080": (97.5, 48.7),
    r"RTX 4090": (165.2, 82.6),
    r"RTX 6000 Ada Generation": (364.2, 182.1),
    r"L4": (121, 60),
    r"L40": (181, 90.5),
    r"L40S": (362, 183),
    r"H100 PCIe": (756, 378),
    r"H100 NVL": (835.5, 417.5),
    r"H100 80GB HBM3": (989.4, 494.7),
    r"H200 NVL": (835.5, 417.5),
    r"H200": (989.4, 494.7),
    r"GH200 (96|144|120|480)GB( HBM3e?)?": (989.4, 494.7),
    r"B200": (2250, 1125),
}
WITHOUT_BF16 = ("V100", "T4")


def peak_flops(device: torch.device, precision: str) -> float | None:
    """
    The peak FLOP/s of `device`, or `None` if it is not known.

    Args:
        precision: precision of the products: "bf16", "fp16", or "no", which is TF32 on a GPU that has it.
    """
    return peak_of(torch.cuda.get_device_name(device), precision) if device.type == "cuda" else None


def peak_of(name: str, precision: str) -> float | None:
    """As `peak_flops`, for the GPU with this name. A part of a GPU (MIG) has another peak, which is not known."""
    name = re.sub(r"^(NVIDIA|Tesla|GeForce| )*", "", name)
    if precision == "bf16" and name.startswith(WITHOUT_BF16):
        return None
    for pattern, (half, single) in TERAFLOPS.items():
        if "MIG" not in name and re.fullmatch(pattern, name):
            return 1e12 * (single if precision == "no" else half)
    return None
