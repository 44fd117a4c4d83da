"""With what a checkpoint can be continued."""

import json

import pytest

from dinov2_hf.data.stream_positions import StreamPosition
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from dinov2_hf.runs.state import find_data_position, start_state


def arguments(batch_size=4, accumulation=1, **values):
    return PreTrainingArguments(
        train_data="images",
        per_device_train_batch_size=batch_size,
        gradient_accumulation_steps=accumulation,
        **{"dataloader_num_workers": 8, **values},
    )


def checkpoint_of(folder, args, num_processes, step):
    """A state as a run with these settings saves it after `step` steps."""
    state = start_state(args, num_processes, None)
    assert (state["step"], state["images_seen"]) == (0, 0)
    state["step"] = step
    state["images_seen"] = step * args.per_device_train_batch_size * args.gradient_accumulation_steps * num_processes
    (folder / "run_state.json").write_text(json.dumps(state))
    return folder


@pytest.mark.parametrize(("batch_size", "accumulation", "num_processes"), [(8, 1, 1), (2, 1, 4), (2, 2, 2), (4, 1, 2)])
def test_the_same_images_a_step_may_be_divided_anew(tmp_path, batch_size, accumulation, num_processes):
    checkpoint = checkpoint_of(tmp_path, arguments(4, 2), num_processes=1, step=7)
    state = start_state(arguments(batch_size, accumulation), num_processes, checkpoint)
    assert (state["step"], state["images_seen"]) == (7, 56)
    assert state["readers"]["processes"] == num_processes


def test_another_number_of_images_a_step_is_refused(tmp_path):
    checkpoint = checkpoint_of(tmp_path, arguments(4, 2), num_processes=1, step=7)
    with pytest.raises(ValueError, match=r"is 4 x 2 x 2 = 16 images a step, but .* is from a run with 8, .*product"):
        start_state(arguments(4, 2), 2, checkpoint)


@pytest.mark.parametrize(
    ("settings", "batch_size", "workers", "num_processes", "complaint"),
    [
        ({"sample_order": "sharded"}, 2, 8, 2, r"`processes` is 2, but .* was made with 1, and the order \"sharded\""),
        ({"sample_order": "sharded"}, 4, 3, 1, None),
        ({"streaming": True}, 2, 8, 2, "`processes` is 2, but .* was made with 1, and a stream continues exactly"),
        ({"streaming": True}, 4, 3, 1, "`dataloader_num_workers` is 3, but .* was made with 8, and a stream"),
        ({"streaming": True}, 2, 8, 1, "`per_device_train_batch_size` is 2, but .* was made with 4, and a stream"),
        ({"streaming": True}, 4, 8, 1, None),
    ],
)
def test_orders_that_depend_on_the_readers(tmp_path, settings, batch_size, workers, num_processes, complaint):
    checkpoint = checkpoint_of(tmp_path, arguments(4, **settings), num_processes=1, step=3)
    accumulation = 4 // (batch_size * num_processes)
    resumed = arguments(batch_size, accumulation, dataloader_num_workers=workers, **settings)
    if complaint is None:
        assert start_state(resumed, num_processes, checkpoint)["images_seen"] == 12
    else:
        with pytest.raises(ValueError, match=complaint):
            start_state(resumed, num_processes, checkpoint)


def test_where_a_stream_goes_on(tmp_path, caplog):
    """Where it was; with another seed in a new pass; and from the beginning where nothing tells it."""
    before = {"train_data shards": 4, "seed": 0, "learning_rate": 1.0}
    assert find_data_position(tmp_path, 1, before, before) is None
    assert "does not tell where the stream was: up to there it is read again" in caplog.text
    position = StreamPosition(place=12, pass_index=2, rounds=1, given=3, row=4, source={"shard_idx": 1})
    (tmp_path / "data_position_1.json").write_text(json.dumps([[position], [position]]))
    assert find_data_position(tmp_path, 1, before, {**before, "learning_rate": 2.0}) == [[position], [position]]
    anew = StreamPosition(place=12, pass_index=3)
    assert find_data_position(tmp_path, 1, before, {**before, "seed": 3}) == [[anew], [anew]]
    assert "with another `seed` the stream is another: a new pass over it begins" in caplog.text
