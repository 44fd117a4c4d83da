"""
The blocks of README and docs run as they stand, page by page in their order, in the folder where a reader is: with
images, a released model on the Hub (one on loopback), and a run that the README's own command left.
"""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor

import pytest
import yaml

from dinov2_hf.curation.arguments import CurationArguments
from dinov2_hf.options import options_of
from dinov2_hf.runs.distillation_arguments import DistillationArguments
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from tests.docs.documents import COMMANDS as SHELL
from tests.docs.documents import PAGES, ROOT, all_blocks, blocks_of, commands_of, without_launcher
from tests.docs.reader import (
    make_world,
    released_models,
    remember_world,
    restore_world,
    run_block,
    run_command,
    write_teacher_checkpoint,
)
from tests.hub.fake_hub import Repo, serve_fake_hub


ALL = all_blocks(*SHELL, "python")
BLOCKS = [block for block in ALL if block.reason is None]
# The reader's first run. Other pages use it.
PRETRAIN = next(
    words for block in BLOCKS if block.language in SHELL for words in commands_of(block) if words[0] == "accelerate"
)
# Their numbers are measured for hours, which they say in one line.
MEASURED = ("docs/results.md", "docs/performance.md", "docs/curation_scale.md")


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
            call(remember_world)
            yield call


@pytest.mark.parametrize("page", dict.fromkeys(block.page for block in BLOCKS))
def test_blocks_of_a_page_run_in_their_order(reader, page):
    try:
        for block in BLOCKS:
            if block.page == page and block.language == "python":
                reader(run_block, block.text, str(block))
            elif block.page == page:
                for words in commands_of(block):
                    if words != PRETRAIN:
                        reader(run_command, without_launcher(words))
    finally:
        reader(restore_world)


def test_a_broken_block_is_found(reader):
    (block,) = blocks_of("page", "```python\nimage = Image.open('image.jpg')\n```\n")
    with pytest.raises(NameError):
        reader(run_block, block.text, "page")


def test_a_line_before_a_block_keeps_it_from_being_run():
    one, other = blocks_of("page", "<!-- not run: a day -->\n```\nmake\n```\n\n```\nmake\n```\n")
    assert (one.reason, other.reason) == ("a day", None)
    (of_page,) = blocks_of("page", "<!-- no command of this page is run: days -->\n\n```\nmake\n```\n")
    assert of_page.reason == "days"


@pytest.mark.parametrize("block", all_blocks("yaml"), ids=str)
def test_recipes_name_what_there_is(block):
    names = {*options_of(DistillationArguments), *options_of(PreTrainingArguments), *options_of(CurationArguments)}
    assert set(yaml.safe_load(block.text)) <= names


def test_no_block_is_of_another_kind():
    """Commands and Python are run or say why not, YAML is a recipe, and text is what a command prints."""
    kinds = (*SHELL, "python", "yaml", "text")
    for page in PAGES:
        name = str(page.relative_to(ROOT))
        lines = [line for line in page.read_text().splitlines() if line.startswith("```")]
        assert len(lines) == 2 * sum(block.page == name for block in all_blocks(*kinds)), name


def test_most_blocks_are_run():
    how_to = [block for block in ALL if block.page not in MEASURED]
    assert sum(block.reason is None for block in how_to) > 0.6 * len(how_to)
