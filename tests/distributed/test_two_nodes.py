"""Two machines: two network namespaces of this one, joined by a cable (veth), each with a launcher of its own."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from .conftest import CONFIGS, POISONED_STEP, clips_per_part, deepspeed, environment


NODES = [f"node{index}_{os.getpid()}" for index in range(2)]
ADDRESSES = ["10.77.0.1", "10.77.0.2"]
CABLE = "cable0"


def ip(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run(["ip", *arguments], capture_output=True, text=True)


@pytest.fixture(scope="module")
def nodes():
    if sys.platform != "linux" or shutil.which("ip") is None:
        pytest.skip("needs Linux and the command ip (iproute2)")
    try:
        for node in NODES:
            made = ip("netns", "add", node)
            if made.returncode != 0:
                pytest.skip(f"network namespaces are not allowed here: {made.stderr.strip()}")
        made = ip("-n", NODES[0], "link", "add", CABLE, "type", "veth", "peer", "name", CABLE, "netns", NODES[1])
        if made.returncode != 0:
            pytest.skip(f"veth devices are not allowed here: {made.stderr.strip()}")
        for node, address in zip(NODES, ADDRESSES, strict=True):
            for arguments in (
                ["addr", "add", f"{address}/24", "dev", CABLE],
                ["link", "set", CABLE, "up"],
                ["link", "set", "lo", "up"],
            ):
                done = ip("-n", node, *arguments)
                assert done.returncode == 0, done.stderr
        yield NODES
    finally:
        for node in NODES:
            ip("netns", "del", node)


def bytes_sent(node: str) -> int:
    path = f"/sys/class/net/{CABLE}/statistics/tx_bytes"
    return int(subprocess.run(["ip", "netns", "exec", node, "cat", path], capture_output=True, text=True).stdout)


@pytest.mark.parametrize("config", ["multi_node", pytest.param("deepspeed_zero2", marks=deepspeed)])
def test_two_nodes_equal_one_process(nodes, alone, recipe, images, tmp_path, config):
    output_dir, witnessed = tmp_path / "out", tmp_path / "witnessed"
    witnessed.mkdir()
    sent_before = [bytes_sent(node) for node in nodes]
    launchers = []
    for rank, node in enumerate(nodes):
        command = ["ip", "netns", "exec", node, sys.executable, "-m", "accelerate.commands.launch"]
        command += ["--config_file", str(CONFIGS / f"{config}.yaml"), "--num_machines", "2", "--num_processes", "2"]
        command += ["--machine_rank", str(rank), "--main_process_ip", ADDRESSES[0], "--main_process_port", "29500"]
        command += [str(Path(__file__).parent / "witness.py"), str(witnessed), "--config", str(recipe)]
        command += ["--train_data", str(images), "--output_dir", str(output_dir)]
        command += ["--clip_per_part", str(clips_per_part(config)).lower()]
        launchers.append(
            subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment(config, GLOO_SOCKET_IFNAME=CABLE, POISONED_CALL=str(POISONED_STEP + 1)),
            )
        )
    try:
        printed = [launcher.communicate(timeout=300)[0] for launcher in launchers]
    finally:
        for launcher in launchers:
            launcher.kill()
    assert [launcher.returncode for launcher in launchers] == [0, 0], "\n".join(printed)
    assert "2 processes" in printed[0]

    _, before, after = alone(clips_per_part(config))
    trained = load_file(output_dir / "pretraining_model" / "model.safetensors")
    for name, value in after.items():
        torch.testing.assert_close(trained[name], value, rtol=0, atol=1e-5)
    student = sum(value.numel() for name, value in before.items() if name.startswith("student."))
    for node, sent in zip(nodes, sent_before, strict=True):
        assert (
            bytes_sent(node) - sent > 10 * 4 * student / 2
        )  # of twelve steps, at least half of the float32 gradients
