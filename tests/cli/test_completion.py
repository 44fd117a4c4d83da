"""The script that completes a command line, run by the shell that it is for."""

import shutil
import subprocess

import pytest

from dinov2_hf.evaluation.protocols import PROTOCOLS
from dinov2_hf_command import COMMANDS
from tests.cli.typed_commands import mistake, run


pytest.importorskip("shtab")


@pytest.fixture
def completed(tmp_path, capsys):
    if shutil.which("bash") is None:
        pytest.skip("there is no bash")
    run("completion", "bash")
    (tmp_path / "completion.sh").write_text(capsys.readouterr().out)

    def complete(*words: str) -> list[str]:
        """What bash offers for the last of the words."""
        script = 'source "$0"; COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); function=$(complete -p dinov2-hf)'
        script += '; function=${function##*-F }; ${function%% *}; printf "%s\\n" "${COMPREPLY[@]}"'
        command = ["bash", "-c", script, tmp_path / "completion.sh", "dinov2-hf", *words]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()

    return complete


def test_words_are_completed(completed):
    assert completed("") == list(COMMANDS)
    assert completed("evaluate", "lo") == ["logistic_regression"]
    assert completed("evaluate", "--protocol", "") == list(PROTOCOLS.places)  # those of the package
    assert "--knn_temperature" in completed("evaluate", "knn", "model", "--knn_")
    assert completed("pretrain", "--config", "vits14_s") == ["vits14_short"]
    assert completed("recipes", "show", "curate") == ["curate_lvd", "curate_small"]
    assert completed("pretrain", "--crop_packing", "") == ["auto", "always", "never"]


def test_another_shell_is_refused():
    assert "`--shell` is bsh; it must be bash or zsh or " in mistake("completion", "bsh")
