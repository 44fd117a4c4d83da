"""
What the tests of distillation under backends launch: `examples/distill.py` on a CPU, without its pictures, which take
several times as long as its steps.

    accelerate launch ... tests/distributed/distill_witness.py [flags of distill.py]
"""

import sys
from pathlib import Path

from accelerate.utils import parse_flag_from_env

from dinov2_hf.training.processes.backends import allow_fsdp_on_cpu


if __name__ == "__main__":
    if parse_flag_from_env("ACCELERATE_USE_FSDP"):
        allow_fsdp_on_cpu()
    sys.path.insert(0, str(Path(__file__).parents[2] / "examples"))
    import distill

    from dinov2_hf.runs.ending import finished_run as results
    from dinov2_hf.runs.ending import outputs

    outputs.plot_training_curves = results.save_patch_pca = lambda *_, **__: None
    distill.main(sys.argv[1:])
