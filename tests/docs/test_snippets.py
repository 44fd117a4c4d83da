"""
The blocks of README and docs run as they stand, in the folder where a reader is: with images, a released model on the
Hub (one on loopback), and a run that the README's own command left.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest

from tests.docs.documents import ROOT, all_blocks, blocks_of, commands_of, without_launcher
from tests.docs.reader import make_world, released_models, run_block, run_command, write_teacher_checkpoint
from tests.hub.fake_hub import Repo, serve_fake_hub


PRETRAIN = next(words for block in all_blocks("") for words in commands_of(block) if "examples/pretrain.py" in words)


@pytest.fixture(scope="module")
def reader(tmp_path_factory):
    """Calls a function in the reader's process."""
    folder, hub_files = tmp_path_factory.mktemp("reader"), tmp_path_factory.mktemp("hub")
    with serve_fake_hub() as hub, pytest.MonkeyPatch.context() as patch:
        environment = {
            "HF_ENDPOINT": hub.url, "HF_TOKEN": "hf_owner", "HF_HOME": str(folder / "hf"), "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_XET": "1", "HF_HUB_DISABLE_TELEMETRY": "1", "OMP_NUM_THREADS": "1",
        }  # fmt: skip
        for name, value in environment.items():
            patch.setenv(name, value)
        with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:

            def call(function, *arguments):
                return pool.submit(function, *arguments).result()

            call(make_world, str(folder))
            for name, files in call(released_models, str(hub_files)).items():
                hub.repos[name] = Repo(private=False, branches={"main": files})
            call(run_command, without_launcher(PRETRAIN))
            call(write_teacher_checkpoint)
            yield call


@pytest.mark.parametrize("block", all_blocks("python"), ids=str)
def test_python_block_runs(reader, block):
    reader(run_block, block.text)


README_COMMANDS = [
    words
    for block in all_blocks("")
    if block.page == "README.md"
    for words in map(without_launcher, commands_of(block))
    if words[0] != "make" and words != without_launcher(PRETRAIN)
]


def test_commands_of_the_readme_run_in_their_order(reader):
    for words in README_COMMANDS:
        reader(run_command, words)


def test_a_broken_block_is_found(reader):
    (block,) = blocks_of("page", "```python\nimage = Image.open('image.jpg')\n```\n")
    with pytest.raises(NameError):
        reader(run_block, block.text)


def test_all_pages_are_read():
    assert {block.page for block in all_blocks("")} >= {"README.md", "docs/pretraining.md", "docs/curation.md"}
    assert (ROOT / "README.md").exists()
