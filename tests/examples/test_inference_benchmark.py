"""The benchmark of inference: equal networks, every point measured or said to be skipped, numbers written."""

import importlib
import json
import sys

import pytest
import torch

from .conftest import EXAMPLES


TINY = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}


@pytest.fixture
def inference(monkeypatch):
    # By its own name: the processes that memory is measured in import it again.
    monkeypatch.syspath_prepend(str(EXAMPLES / "benchmarks"))
    module = importlib.import_module("inference")
    yield module
    for name in ("inference", "peers"):
        sys.modules.pop(name, None)


@pytest.fixture
def peers():
    names = ["ours", "transformers"]
    return names + ["timm"] if importlib.util.find_spec("timm") else names


def run(module, monkeypatch, *flags):
    monkeypatch.setattr(sys, "argv", ["inference.py", "--device", "cpu", "--native_size", "56", *flags])
    module.main()


def test_every_point_is_measured_or_skipped(inference, peers, tmp_path, monkeypatch, capsys):
    monkeypatch.setitem(inference.ARCHITECTURES, "small", TINY)
    monkeypatch.setattr(inference, "SECONDS_PER_TURN", 0.01)
    output = tmp_path / "new" / "inference.json"
    flags = ["--models", "small", "--sizes", "28", "--batch_sizes", "1", "100000000", "--dtypes", "fp32", "bf16"]
    run(inference, monkeypatch, *flags, "--seconds_per_point", "0.1", "--peers", *peers, "--output", str(output))
    results = json.loads(output.read_text())

    assert results["machine"]["versions"]["torch"] == torch.__version__
    assert results["machine"]["torch_threads"] == torch.get_num_threads()
    chosen = [(point["dtype"], point["batch_size"]) for point in results["points"]]
    assert chosen == [("fp32", 1), ("fp32", 100000000), ("bf16", 1), ("bf16", 100000000)]
    for point in results["points"]:
        assert (point["model"], point["size"]) == ("small", 28)
        if point["batch_size"] > 1:
            assert "a forward pass would take about" in point["skipped"]
            continue
        assert list(point["peers"]) == peers
        differences = point["largest_difference_at_native_size"]
        assert list(differences) == peers[1:]
        assert max(differences.values()) < 1e-5
        ratios = point["speed_of_ours_over"]
        assert point["speed_of_ours_over_best"] == min(ratios.values())
        for name in peers[1:]:
            lower, upper = point["quartiles_of_that"][name]
            assert 0 < lower <= ratios[name] <= upper
        for peer in point["peers"].values():
            seconds = peer["seconds_per_forward"]
            assert 0 < seconds["min"] <= seconds["median"] <= seconds["max"]
            assert peer["images_per_second"] == pytest.approx(1 / seconds["median"])
            # At least the weights: 12 D^2 of each block in float32.
            assert peer["memory_mib"] > 2 * 12 * 64**2 * 4 / 2**20
    printed = capsys.readouterr().out
    assert printed.count("skipped: a forward pass would take about") == 2
    assert len(printed.strip().splitlines()) == 2 + 4


def test_unequal_networks_are_not_timed(inference, tmp_path, monkeypatch):
    monkeypatch.setitem(inference.ARCHITECTURES, "small", TINY)
    peer = inference.PEERS["transformers"]

    def with_another_value(fields, state):
        name = "encoder.layer.1.attention.attention.value.weight"
        return peer.with_weights(fields, {**state, name: state[name].flip(0)})

    changed = {**vars(peer), "with_weights": with_another_value}
    monkeypatch.setitem(inference.PEERS, "transformers", type(peer)(**changed))
    output = tmp_path / "inference.json"
    flags = ["--models", "small", "--sizes", "28", "--batch_sizes", "1", "--dtypes", "fp32"]
    with pytest.raises(SystemExit, match="transformers differs from ours by .* at 56 px"):
        run(inference, monkeypatch, *flags, "--peers", "ours", "transformers", "--output", str(output))
    assert not output.exists()


def test_giant_feed_forward_is_equal(inference, peers, monkeypatch):
    monkeypatch.setitem(inference.ARCHITECTURES, "giant", {**TINY, "hidden_size": 96, "use_swiglu_ffn": True})
    monkeypatch.setattr(sys, "argv", ["inference.py", "--native_size", "56", "--peers", *peers])
    args = inference.parse_arguments()
    networks, differences = inference.build_equal_networks("giant", 28, args, torch.device("cpu"))
    assert list(networks) == peers
    assert max(differences.values()) < 1e-5


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--sizes", "100"], "100 px does not divide into patches of 14"),
        (["--batch_sizes", "0"], "`--batch_sizes` has 0"),
        (["--original", "nowhere"], "`--original` is nowhere"),
        (["--peers", "ours"], "there is no peer to compare with"),
    ],
)
def test_mistakes_are_named_at_once(inference, flags, message, monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(inference, monkeypatch, *flags)
    assert message in capsys.readouterr().err


def test_predicted_time_grows_with_the_rounds(inference, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["inference.py", "--peers", "ours", "transformers"])
    args = inference.parse_arguments()
    assert inference.seconds_of_point(0.01, args) == pytest.approx(args.seconds_per_point, rel=0.01)
    assert inference.seconds_of_point(10, args) == pytest.approx((inference.ROUNDS[0] + 3) * 2 * 10)
