"""
transformers' common tests, from its source distribution on the package index.

The distribution holds the mixins (`tests/test_*_common.py`) but not all that they import. What is missing has a
stand-in here: two empty mixins (export and generation are not tested), arguments that every configuration takes, and a
drawn image where the original downloads a photograph. Random numbers start from a seed in every test.
"""

import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import transformers


DOWNLOAD_TIMEOUT_S = 120

STAND_INS = {
    "tests/__init__.py": "",
    "tests/exporters/test_export.py": "class ExportTesterMixin: ...\n",
    "tests/generation/test_utils.py": "class GenerationTesterMixin: ...\n",
    "tests/utils/test_configuration_utils.py": (
        'config_common_kwargs = {"return_dict": False, "output_hidden_states": True, "dtype": "float16"}\n'
    ),
    "utils/fetch_hub_objects_for_ci.py": """\
import tempfile

import numpy as np
from PIL import Image


def url_to_local_path(url):
    rows, columns = np.mgrid[:480, :640] / 40
    waves = [np.sin(rows), np.cos(columns), np.sin(rows * columns / 4)]
    pixels = (127.5 + 127.5 * np.stack(waves, axis=-1)).astype(np.uint8)
    with tempfile.NamedTemporaryFile(suffix=".png", delete=False) as file:
        Image.fromarray(pixels).save(file)
    return file.name
""",
    "pytest.ini": "[pytest]\n",
    "conftest.py": """\
import pytest
from transformers import set_seed


@pytest.fixture(autouse=True)
def seed():
    set_seed(0)
""",
}


class DownloadError(Exception):
    """The package index did not give the source distribution; the message is pip's last line."""


def download(folder: Path) -> Path:
    """
    The source distribution of the transformers that is installed, fetched with pip's own configuration.

    Raises:
        `DownloadError`: when pip fails or takes longer than `DOWNLOAD_TIMEOUT_S` seconds.
    """
    requirement = f"transformers=={version('transformers')}"
    command = [sys.executable, "-m", "pip", "download", requirement, "--dest", folder, "--retries", "0"]
    # Without dependencies and without a build environment: nothing but the archive is wanted.
    command += ["--quiet", "--no-deps", "--no-binary", ":all:", "--no-build-isolation"]
    try:
        pip = subprocess.run(command, capture_output=True, text=True, timeout=DOWNLOAD_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired as error:
        raise DownloadError(f"pip took more than {DOWNLOAD_TIMEOUT_S} s to download {requirement}") from error
    if pip.returncode != 0:
        last_line = (pip.stderr.strip() or "no message").splitlines()[-1]
        raise DownloadError(f"pip could not download {requirement}: {last_line}")
    (archive,) = folder.glob("transformers-*.tar.gz")
    return archive


def unpack_tests(archive: Path, folder: Path) -> None:
    """Write the archive's `tests/`, the stand-ins and `src/transformers`, a link to the installed package."""
    with tarfile.open(archive) as tar:
        for member in tar.getmembers():
            _, _, member.name = member.name.partition("/")
            if member.isfile() and member.name.startswith("tests/"):
                tar.extract(member, folder, filter="data")
    for name, text in STAND_INS.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    (folder / "src").mkdir()
    os.symlink(Path(transformers.__file__).parent, folder / "src" / "transformers", target_is_directory=True)
