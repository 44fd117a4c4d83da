"""
What the tests of distillation under backends launch: `examples/distill.py` as it is, on a CPU.

    accelerate launch ... tests/distributed/distill_witness.py [flags of distill.py]
"""

import runpy
import sys
from pathlib import Path

from accelerate.utils import parse_flag_from_env

from dinov2_hf.training.backends import allow_fsdp_on_cpu


if __name__ == "__main__":
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        allow_fsdp_on_cpu()
    script = Path(__file__).parents[2] / "examples" / "distill.py"
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")
