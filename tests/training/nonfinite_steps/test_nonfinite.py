"""Steps that are not finite leave no trace but their record."""

import json

import pytest
import torch
from accelerate import Accelerator
from torch import nn

from dinov2_hf.training.nonfinite_steps.nonfinite import NonFiniteSteps
from dinov2_hf.training.nonfinite_steps.votes import CountsOnTheWay, count_processes
from dinov2_hf.training.optimizer import step_unless
from dinov2_hf.training.run_stopped import RunStopped


class Centred(nn.Module):
    """Moves a centre in its forward pass, as softmax centering does."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(3, 2)
        self.register_buffer("center", torch.zeros(2))
        self.register_buffer("index", torch.tensor(3))

    def forward(self, values):
        logits = self.linear(values)
        self.center.lerp_(logits.detach().mean(dim=0), 0.5)
        return (logits - self.center).square().mean()


def training_step(model, optimizer, guard, batches, names, scaler=None):
    """Whether the step was left out; `state` moves on as in the training loop."""
    guard.begin()
    for number, batch in enumerate(batches):
        loss = model(batch)
        (scaler.scale(loss) if scaler else loss).backward()
        guard.add(loss, [f"{names}{number}"])
    if scaler:
        scaler.unscale_(optimizer)
    norm = nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    counts = count_processes(guard.accelerator, *guard.found({"grad_norm": norm}))
    on_device = guard.leave_out(*counts)
    left_out = guard.settle(guard.passes, *CountsOnTheWay(counts).read())
    assert left_out == bool(on_device)
    if not scaler:
        step_unless(optimizer, on_device)
    elif not left_out:
        scaler.step(optimizer)
        scaler.update()
    optimizer.zero_grad()
    guard.state["step"] += 1
    return left_out


def start(path, state, max_in_a_row=2):
    torch.manual_seed(0)
    model = Centred()
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.1, fused=True)
    accelerator = Accelerator(cpu=True)
    return accelerator, model, optimizer, NonFiniteSteps(
        accelerator, model, state, max_in_a_row=max_in_a_row, path=path
    )  # fmt: skip


def batches(poison=None):
    good = torch.arange(12.0).view(4, 3) / 10
    return [good, good * torch.nan if poison == "nan" else good * torch.inf if poison == "inf" else good + 1]


@pytest.mark.parametrize("poison", ["nan", "inf"])
def test_a_step_left_out_changes_nothing_and_is_listed(tmp_path, caplog, poison):
    """Steps good, bad, good end bit-equal where good, good end: weights, moments, centre."""
    ends = []
    for course in ((None, poison, None), (None, None)):
        state = {"step": 0}
        _, model, optimizer, guard = start(tmp_path / f"{len(ends)}.jsonl", state)
        left_out = [training_step(model, optimizer, guard, batches(kind), "row ") for kind in course]
        assert left_out == [kind is not None for kind in course]
        ends.append((model.state_dict(), optimizer.state_dict()["state"]))
    for name, value in ends[0][0].items():
        assert torch.equal(value, ends[1][0][name]), name
    for moments, others in zip(ends[0][1].values(), ends[1][1].values(), strict=True):
        assert all(torch.equal(moments[name], others[name]) for name in others)
    (record,) = map(json.loads, (tmp_path / "0.jsonl").read_text().splitlines())
    assert record == {"step": 2, "losses": ["nan"], "row_ids": ["row 1"]}  # inf - inf is nan, too
    assert not (tmp_path / "1.jsonl").exists()
    assert "the loss of step 2 is nan; it is left out, as number 1 in a row of at most 2; images: row 1" in caplog.text


def test_a_gradient_alone_is_found(tmp_path):
    state = {"step": 0}
    _, model, optimizer, guard = start(tmp_path / "steps.jsonl", state)
    model.linear.weight.register_hook(lambda gradient: gradient * torch.inf)
    assert training_step(model, optimizer, guard, batches(), "row ")
    assert json.loads((tmp_path / "steps.jsonl").read_text()) == {
        "step": 1, "losses": [], "row_ids": ["row 0", "row 1"],
    }  # fmt: skip


def test_too_many_in_a_row_stop_the_run_and_a_finite_one_starts_again(tmp_path):
    state = {"step": 0}
    _, model, optimizer, guard = start(tmp_path / "steps.jsonl", state)
    for kind in ("nan", "nan", None, "nan", "nan"):
        training_step(model, optimizer, guard, batches(kind), "row ")
    assert state == {"step": 5, "nonfinite_steps": 4, "nonfinite_steps_in_a_row": 2}
    with pytest.raises(
        RunStopped, match=r"step 6 is nan, number 3 in a row where `max_nonfinite_steps` \(2\) .*row 1"
    ):
        training_step(model, optimizer, guard, batches("nan"), "row ")
    assert len((tmp_path / "steps.jsonl").read_text().splitlines()) == 5


def test_a_resumed_run_counts_on_and_drops_later_records(tmp_path):
    path = tmp_path / "steps.jsonl"
    path.write_text("".join(json.dumps({"step": step, "losses": [], "row_ids": []}) + "\n" for step in (3, 9)))
    state = {"step": 5, "nonfinite_steps": 1, "nonfinite_steps_in_a_row": 1}
    _, model, optimizer, guard = start(path, state, max_in_a_row=1)
    with pytest.raises(RunStopped, match="step 6 is nan, number 2 in a row"):
        training_step(model, optimizer, guard, batches("nan"), "row ")
    assert [json.loads(line)["step"] for line in path.read_text().splitlines()] == [3, 6]


def test_many_rows_are_shortened_in_the_log_only(tmp_path, caplog):
    _, model, _, guard = start(tmp_path / "steps.jsonl", {"step": 0})
    guard.begin()
    guard.add(torch.tensor(torch.inf), [f"row {number}" for number in range(20)])
    assert guard.settle(guard.passes, 1, 0)
    assert "is inf; it is left out" in caplog.text
    assert "row 15 and 4 more in " in caplog.text
    assert json.loads((tmp_path / "steps.jsonl").read_text())["row_ids"][-1] == "row 19"


def test_the_fp16_scaler_looks_for_its_scale_uncounted(tmp_path):
    """Overflow of a scaled gradient halves the scale and is not counted; a NaN loss is, and no step is unscaled
    twice; at a scale below 1 overflow counts."""
    state = {"step": 0}
    accelerator, model, optimizer, guard = start(tmp_path / "steps.jsonl", state, max_in_a_row=0)
    accelerator.scaler = scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
    hook = model.linear.weight.register_hook(
        lambda gradient: gradient * torch.inf if scaler.get_scale() > 1 else gradient
    )
    left_out = [training_step(model, optimizer, guard, batches(), "row ", scaler) for _ in range(3)]
    assert left_out == [True, True, False]
    assert scaler.get_scale() == 1
    assert state["nonfinite_steps"] == 0
    assert not (tmp_path / "steps.jsonl").exists()
    guard.max_in_a_row = 1
    assert training_step(model, optimizer, guard, batches("nan"), "row ", scaler)
    assert (state["nonfinite_steps"], scaler.get_scale()) == (1, 0.5)
    assert not training_step(model, optimizer, guard, batches(), "row ", scaler)
    hook.remove()
    model.linear.weight.register_hook(lambda gradient: gradient * torch.inf)
    assert training_step(model, optimizer, guard, batches(), "row ", scaler)
    assert state["nonfinite_steps"] == 2
