"""A compiled step: equal to the plain one, compiled once, refused where it cannot be; and its runs."""

from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.data import PreTrainingCollator, PreTrainingSample
from dinov2_hf.pretraining.compilation import check_compiler, compile_objective, without_compiling
from tests.forked_python import run


@pytest.fixture(autouse=True)
def traced_only():
    """By the compiler that takes both passes apart, and makes no code of them: no C++, and the same numbers."""
    torch.compiler.reset()
    counters.clear()
    with torch.compiler.set_stance(force_backend="aot_eager"):
        yield


def batches(pad_masked: bool) -> list[dict[str, torch.Tensor]]:
    """Of different numbers of masked patches."""
    samples = [
        PreTrainingSample(torch.randn(2, 3, 32, 32), torch.randn(2, 3, 16, 16), f"row {seed}", seed, ())
        for seed in range(6)
    ]
    collator = PreTrainingCollator(8, pad_masked=pad_masked)
    made = [collator(samples[start : start + 4])[0] for start in range(3)]
    assert len({int(batch["bool_masked_pos"].sum()) for batch in made}) > 1
    return made


def compiled_and_plain(config, how: str, packed: bool):
    """Losses, gradients and centres of three batches, whose temperatures differ, and what was compiled for each."""
    torch.manual_seed(0)
    model = DINOv2ForPreTraining(config).train()
    model.patch_chunk_size = 12
    model.is_packed = packed
    compile_objective(model, how)
    torch.manual_seed(0)
    seen, num_compiled = [], []
    for step, batch in enumerate(batches(pad_masked=how == "step")):
        loss = model(**batch, teacher_temperature=0.04 + 0.01 * step, loss_weights={}).loss
        seen += [loss, *torch.autograd.grad(loss, model.student.parameters())]
        num_compiled.append(counters["frames"]["total"])
    return [*seen, *model.buffers()], num_compiled


@pytest.mark.parametrize(
    ("how", "packed", "num_layers", "num_graphs"), [("blocks", False, 2, 3), ("step", True, 1, 2)]
)
def test_a_compiled_step_is_equal_and_compiled_once(how, packed, num_layers, num_graphs):
    """With crops that stochastic depth drops, and patches in chunks; without a break."""
    # In a process of its own: in one that has run other tests a frame more was counted once.
    code = f"from {__name__} import compare; compare{(how, packed, num_layers, num_graphs)}"
    finished = run(["-c", code], cwd=Path(__file__).parents[2])
    assert finished.returncode == 0, finished.stderr


def compare(how: str, packed: bool, num_layers: int, num_graphs: int) -> None:
    backbone = DINOv2Config(
        hidden_size=32, num_hidden_layers=num_layers, num_attention_heads=2, image_size=32, patch_size=8,
        layerscale_value=1.0, drop_path_rate=0.3,
    )  # fmt: skip
    config = DINOv2PreTrainingConfig(
        backbone_config=backbone, num_prototypes=24, head_hidden_size=20, bottleneck_size=12
    )
    with torch.compiler.set_stance(force_backend="aot_eager"):
        expected, nothing = compiled_and_plain(config, "no", packed)
        seen, num_compiled = compiled_and_plain(config, how, packed)
    assert nothing == [0, 0, 0]
    assert num_compiled == [num_graphs] * 3
    assert not counters["graph_break"]
    for one, other in zip(seen, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_names_and_weights_stay_and_evaluation_is_not_compiled(tiny_config):
    model = DINOv2ForPreTraining(DINOv2PreTrainingConfig(backbone_config=tiny_config, num_prototypes=24))
    names = list(model.state_dict())
    compile_objective(model, "blocks")
    assert list(model.state_dict()) == names
    with torch.no_grad(), without_compiling("blocks"):
        model.teacher.backbone(torch.randn(1, 3, 16, 48))
    assert counters["frames"]["total"] == 0


def test_no_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    check_compiler("no", torch.device("cpu"))
    with pytest.raises(ValueError, match='`compile` is "blocks", which needs a C.. compiler.*no no-such-compiler;'):
        check_compiler("blocks", torch.device("cpu"))
