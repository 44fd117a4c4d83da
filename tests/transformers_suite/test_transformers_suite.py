"""
transformers' own common tests on our classes.

They come with the source distribution of the installed transformers, which is downloaded for the run; without a
package index the tests here are skipped. What of them is skipped, and why, is in `docs/transformers_suite.md`.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from packaging.version import Version

import dinov2_hf
from dinov2_hf import DINOv2Config, DINOv2ForImageClassification, DINOv2ImageProcessor, DINOv2Model

from .source_distribution import DownloadError, download, unpack_tests


pytest.importorskip("parameterized", reason="transformers' common tests need it")

HERE = Path(__file__).parent
SUITE = {  # files here, and what pytest collects them as inside the distribution
    "modeling_suite.py": "test_modeling_dinov2_hf.py",
    "image_processing_suite.py": "test_image_processing_dinov2_hf.py",
    "pipeline_checks.py": "pipeline_checks.py",
}
DOCS = (HERE.parents[1] / "docs" / "transformers_suite.md").read_text()
OLDEST = Version("5.23")  # the mixins of older versions want other attributes and other stand-ins
TIMEOUT_S = 900


@dataclass
class SuiteRun:
    """
    A run of the suite: what pytest printed and returned, the tests (`Class::test`) that passed without skipping a
    part, and the reasons for which tests or parts of tests were skipped.
    """

    output: str
    return_code: int
    passed: set[str]
    reasons: set[str]


def save_tiny_models(folder: Path) -> None:
    """Models and the summary of them, where `TRANSFORMERS_TINY_MODEL_PATH=folder` makes the mixin look."""
    config = DINOv2Config(
        hidden_size=32, num_hidden_layers=2, num_attention_heads=4, image_size=32, patch_size=8, num_labels=3
    )
    image_processor = DINOv2ImageProcessor(size={"shortest_edge": 36}, crop_size={"height": 32, "width": 32})
    summary = {}
    for model_class in (DINOv2Model, DINOv2ForImageClassification):
        name = model_class.__name__
        model_class(config).save_pretrained(folder / config.model_type / name)
        image_processor.save_pretrained(folder / config.model_type / name)
        processors = ["DINOv2ImageProcessor", "DINOv2ImageProcessorPil"]
        summary[name] = {"tokenizer_classes": [], "processor_classes": processors}
    (folder / "reports").mkdir()
    (folder / "reports" / "tiny_model_summary.json").write_text(json.dumps(summary))


def run_suite(folder: Path) -> SuiteRun:
    """Run our files of the suite inside the unpacked distribution, in a process of its own."""
    tests = folder / "tests" / "models" / "dinov2_hf"
    tests.mkdir(parents=True)
    for source, target in SUITE.items():
        shutil.copy(HERE / source, tests / target)
    save_tiny_models(folder / "tiny_models")
    environment = os.environ | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",  # tiny tensors
        "PYTEST_ADDOPTS": "",
        "PYTHONPATH": str(Path(dinov2_hf.__file__).parents[1]),
        "TRANSFORMERS_TINY_MODEL_PATH": str(folder / "tiny_models"),
    }
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-W", "ignore", "-q", "--tb=short"]
    process = subprocess.run(
        [*command, "--junitxml=report.xml", tests.relative_to(folder)],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=TIMEOUT_S,
        check=False,
    )
    report = folder / "report.xml"
    assert report.is_file(), process.stdout
    run = SuiteRun(process.stdout, process.returncode, passed=set(), reasons=set())
    for case in ElementTree.parse(report).iter("testcase"):
        run.reasons |= {skip.get("message").strip() for skip in case.iter("skipped")}
        if not len(case):
            run.passed.add(f"{case.get('classname').rpartition('.')[2]}::{case.get('name')}")
    return run


@pytest.fixture(scope="module")
def suite_run(tmp_path_factory) -> SuiteRun:
    if Version(version("transformers")) < OLDEST:
        pytest.skip(
            f"written for the tests of transformers {OLDEST} and later, {version('transformers')} is installed"
        )
    folder = tmp_path_factory.mktemp("transformers_suite")
    try:
        archive = download(folder)
    except DownloadError as error:
        pytest.skip(str(error))
    unpack_tests(archive, folder)
    return run_suite(folder)


def test_nothing_fails(suite_run):
    assert suite_run.return_code == 0, suite_run.output[-10_000:]
    assert len(suite_run.passed) >= 300


@pytest.mark.parametrize(
    "name",
    [
        "DINOv2ModelTest::test_save_load",
        "DINOv2ModelTest::test_sdpa_can_dispatch_non_composite_models",
        "DINOv2WithRegistersModelTest::test_training_gradient_checkpointing",
        "DINOv2ForDepthEstimationTest::test_can_init_all_missing_weights",
        "DINOv2WithRegistersBackboneTest::test_backbone_outputs",
        "DINOv2ImageProcessingTest::test_backends_equivalence",
        "DINOv2PipelineTest::test_pipeline_image_feature_extraction_fp16",
        "DINOv2PipelineTest::test_pipeline_image_classification",
    ],
)
def test_each_part_ran(suite_run, name):
    assert name in suite_run.passed


def documented_reasons() -> list[str]:
    """First cells of the tables of skipped tests, without the marks of code."""
    _, _, tables = DOCS.partition("## Tests that are skipped")
    return [row.split("|")[1].replace("`", "").strip() for row in tables.splitlines() if row.startswith("| `")]


def matches(reason: str, documented: str) -> bool:
    """`*` in the docs stands for anything."""
    return re.fullmatch(re.escape(documented).replace(r"\*", ".*"), reason.replace("`", "")) is not None


def test_a_reason_that_is_not_in_the_docs_is_found():
    assert matches("DINOv2Model has no `x`", "* has no x")
    assert not matches("DINOv2Model has no `x` at all", "* has no x")
    assert len(documented_reasons()) >= 20
    assert not any(matches("Could not find or load the model from a with b.", entry) for entry in documented_reasons())


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the table is of a run without an accelerator")
def test_every_reason_to_skip_is_in_the_docs(suite_run):
    minor = ".".join(version("transformers").split(".")[:2])
    if f"transformers {minor}" not in DOCS:
        pytest.skip(f"the table is of another version of transformers than {minor}")
    documented = documented_reasons()
    unknown = {reason for reason in suite_run.reasons if not any(matches(reason, entry) for entry in documented)}
    assert not unknown
    unseen = {entry for entry in documented if not any(matches(reason, entry) for reason in suite_run.reasons)}
    # A package that the table names may be there.
    assert not {entry for entry in unseen if not entry.startswith("test requires ")}
