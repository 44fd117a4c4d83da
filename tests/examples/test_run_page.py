"""The page of a run: the numbers of its files, nobody's paths, and what a reader can do with it in a browser."""

import json
import re
import shutil
from pathlib import Path

import pytest
import yaml

from dinov2_hf.evaluation.results import EvaluationResults
from dinov2_hf.output_folders import write_marker
from dinov2_hf.runs.page.report_file import write_report
from dinov2_hf.runs.page.run_facts import read_run
from dinov2_hf.runs.pretraining_arguments import PreTrainingArguments
from dinov2_hf.training.monitoring.monitor import append_metrics, read_metrics
from tests.browsers import open_page
from tests.cli.typed_commands import mistake
from tests.cli.typed_commands import run as typed

from .conftest import drawn, forget_accelerate
from .test_pretrain import run


@pytest.fixture(scope="module")
def made(pretrain, recipe, images, evaluations, tmp_path_factory, no_pictures) -> Path:
    """A finished run with evaluations and pictures, in a folder whose name is private."""
    folder = tmp_path_factory.mktemp("of_ada") / "my run"
    forget_accelerate()
    with drawn(no_pictures):
        run(pretrain, recipe, images, folder, *evaluations, "--eval_pictures", "1", "--license", "mit")
    return folder


@pytest.fixture
def finished(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "my run"))


def page_of(folder: Path) -> str:
    return write_report(folder).read_text(encoding="utf-8")


def curves_in(page: str) -> dict[str, dict]:
    """The curves of a page, by panel and label."""
    (data,) = re.findall(r'^drawCurves\(document.getElementById\("curves1"\), (.*)\);$', page, re.MULTILINE)
    return {f"{panel['title']}/{one['label']}": one for panel in json.loads(data) for one in panel["curves"]}


def test_it_has_the_numbers_of_the_run(finished):
    page, summary = page_of(finished), json.loads((finished / "metrics.json").read_text())
    for name, metric in (("knn", "knn_top1_k20"), ("linear", "linear_top1"), ("patch_knn", "patch_knn_miou")):
        before, after = (summary[name][moment][metric] for moment in ("before", "after"))
        row = f'<td class="number best">{after:.3f}</td>\n<td class="number">{before:.3f}</td>'
        assert f'{row}\n<td class="number">{after - before:+.3f}</td>' in page
    records = [record for record in read_metrics(finished / "metrics.jsonl") if "loss" in record]
    drawn_loss = curves_in(page)["Losses/total"]
    assert drawn_loss["steps"] == [record["step"] for record in records]
    assert drawn_loss["values"] == pytest.approx([record["loss"] for record in records], rel=1e-5)
    assert page.count("data:image/png;base64,") == 1 + 2 * 3  # over all steps, and two kinds at the steps 0, 3 and 6


def test_a_long_curve_is_thinned_and_says_so(finished):
    for step in range(7, 3007):
        append_metrics(finished / "metrics.jsonl", {"step": step, "loss": step / 10})
    page = page_of(finished)
    loss = curves_in(page)["Losses/total"]
    assert loss["every"] == 4
    assert len(loss["steps"]) <= 1001
    assert loss["steps"][-1] == 3006
    assert loss["values"][-1] == pytest.approx(300.6)
    assert "every 4th point is drawn" in page


def test_it_tells_no_paths_and_asks_nobody(finished, images, recipe):
    page = page_of(finished)
    for private in (str(finished.parent), str(images.parent), str(Path(recipe).parent)):
        assert private not in page
    without_data = re.sub(r"base64,[\w+/=]+", "", page)
    assert set(re.findall(r"https?://[^\s\"']+", without_data)) <= {
        "http://www.w3.org/2000/svg"
    }  # a name, not a place
    assert not re.search(r"<(?:link|iframe|script src)", page)


def test_what_was_chosen_comes_first(finished):
    page = page_of(finished)
    recipe = yaml.safe_load((finished / "recipe.yaml").read_text())
    chosen, same = page.split("<details>")
    rows = dict(re.findall(r"<tr><td><code>(.*?)</code></td><td><code>(.*?)</code>", chosen))
    assert rows["max_steps"] == "6"
    assert rows["train_data"] == Path(recipe["train_data"]).name  # the last part of its path
    assert "/" in recipe["train_data"]
    assert rows["license"] == "mit"
    default = PreTrainingArguments(train_data="x", output_dir="y")
    assert recipe["weight_decay"] == default.weight_decay
    assert "weight_decay" not in rows
    assert "<code>weight_decay</code>" in same
    assert len(rows) + len(re.findall(r"<tr><td><code>", same)) == len(recipe)


def test_evaluations_in_its_folder_stand_beside_their_baselines(finished):
    about = {
        "model": str(finished / "model"), "weights_sha256": "a", "image_processor": {}, "num_train_rows": 9,
        "train_data": "/home/ada/train", "train_split": "train", "eval_data": "/home/ada/test", "eval_split": "test",
        "num_eval_rows": 4,
    }  # fmt: skip
    for baseline, value in ((None, 0.75), ("pixels", 0.5), ("untrained", 0.25)):
        folder = finished / f"evaluation_{baseline}"
        results = EvaluationResults(folder, {**about, "baseline": baseline})
        results.add(
            "knn", {"knn_top1_k20": value, "other": 0.1}, options={}, settled={}, main_metrics=["knn_top1_k20"]
        )
        write_marker(folder, "evaluation")
    page = page_of(finished)
    assert "test (4 rows), learned from train (9)" in page
    assert re.findall(r'<th class="number">(trained|untrained|pixels)</th>', page.split("Evaluations</h2>")[1]) == [
        "trained", "untrained", "pixels",
    ]  # fmt: skip
    assert re.search(r"0\.7500</td><td[^>]*>0\.2500</td><td[^>]*>0\.5000</td>", page)
    assert "other" not in page.split("Evaluations</h2>")[1].split("Recipe")[0]
    assert "/home/ada" not in page


def test_a_run_that_goes_on(finished):
    """Without models, and without what is written at the end; of a killed one the last line may be torn."""
    for name in ("model", "pretraining_model", "pictures"):
        shutil.rmtree(finished / name)
    for name in ("metrics.json", "patch_pca_over_steps.png"):
        (finished / name).unlink()
    lines = (finished / "metrics.jsonl").read_text().splitlines(keepends=True)
    lines = [line for line in lines if json.loads(line)["step"] <= 5]
    (finished / "metrics.jsonl").write_text("".join(lines) + '{"step": 6, "lo')
    shutil.rmtree(finished / "checkpoints" / "step_0000006")
    facts, page = read_run(finished), page_of(finished)
    assert (facts.step, facts.is_finished, facts.checkpoints) == (5, False, [2, 4])
    assert "5 of 6 steps" in page
    assert "dinov2-hf pretrain --output_dir &#39;my run&#39; --resume_from_checkpoint latest" in page
    assert "dinov2-hf features &#39;my run&#39;/checkpoints/latest" in page
    assert "dinov2-hf push" not in page
    after = facts.students[0].measured[0]
    assert (after.evaluation, after.step) == ("knn", 3)


def test_a_run_that_has_not_begun_to_log(finished):
    shutil.rmtree(finished / "checkpoints")
    for name in ("metrics.jsonl", "metrics.json"):
        (finished / name).unlink()
    shutil.rmtree(finished / "model")
    page = page_of(finished)
    assert "0 of 6 steps" in page
    assert "Nothing was measured" in page


def test_collapse_and_left_out_images_are_told(finished):
    """The sentence of the log, from the same numbers."""
    records = read_metrics(finished / "metrics.jsonl")
    for step in range(7, 107):
        append_metrics(finished / "metrics.jsonl", records[-1] | {"step": step, "knn_top1_k20": 0.0})
    (finished / "skipped_images.jsonl").write_text('{"row": 1}\n{"row": 2}\n')
    page = page_of(finished)
    if records[0]["knn_top1_k20"] > 0.5:  # else nothing is lost
        assert "training makes the features worse" in page
    assert "<dd>2, which could not be decoded" in page


def test_where_it_may_be_written(finished, tmp_path):
    typed("report", finished, "--output", tmp_path / "page.html")
    assert "already" in mistake("report", finished, "--output", tmp_path / "page.html")
    typed("report", finished, "--output", tmp_path / "page.html", "--overwrite")
    assert "must end in .html" in mistake("report", finished, "--output", tmp_path / "page.pdf")
    assert "is not the output folder of a run" in mistake("report", tmp_path)
    assert "is not the output folder of a run" in mistake("report", finished / "model")
    typed("report", finished)
    typed("report", finished)  # its own page is replaced
    assert (finished / "report.html").is_file()


def test_it_goes_with_the_run(pretrain, recipe, images, finished):
    write_report(finished)
    run(pretrain, recipe, images, finished, "--overwrite_output_dir", "--max_steps", "2")
    assert not (finished / "report.html").exists()


def test_a_page_for_several_students(pretrain, recipe, images, made, tmp_path):
    from .conftest import load_example

    students = ["{name: small, hidden_size: 16, num_attention_heads: 1}", "{name: same}"]
    words = ("--teacher", str(made), "--students", *students, "--max_steps", "2", "--num_prototypes", "32")
    own = tmp_path / "distill.yaml"
    own.write_text(
        "".join(line for line in Path(recipe).read_text().splitlines(keepends=True) if "num_prototypes" not in line)
    )
    run(load_example("distill"), str(own), images, tmp_path / "out", *words[:-2])
    page = page_of(tmp_path / "out")
    assert "A distillation of my run on" in page
    assert page.count("drawCurves(document") == 2
    assert "students/small/model" in page
    assert str(made) not in page


def test_in_a_browser(finished):
    """Values are read at a step, a part is looked at, a curve is hidden, and the slider changes the picture."""
    expect = pytest.importorskip("playwright.sync_api").expect  # looks again until it is so
    page_of(finished)
    records = [record for record in read_metrics(finished / "metrics.jsonl") if "loss" in record]
    with open_page(finished / "report.html") as page:
        panel = page.locator(".panel").first
        curves = panel.locator("svg path.curve")
        assert (count := curves.count()) > 2
        box = panel.locator("svg").first.bounding_box()
        page.mouse.move(box["x"] + box["width"] - 14, box["y"] + 50)
        expect(panel.locator("em")).to_have_text("step 6")
        said = float(panel.locator(".legend b").first.inner_text())
        assert said == pytest.approx(records[-1]["loss"], rel=1e-3)
        last_tick = panel.locator("svg text.middle").last
        expect(last_tick).to_have_text("6")
        page.mouse.move(box["x"] + 80, box["y"] + 50)
        page.mouse.down()
        page.mouse.move(box["x"] + box["width"] / 2, box["y"] + 50)
        page.mouse.up()
        expect(last_tick).not_to_have_text("6")
        assert float(last_tick.text_content()) < 6
        panel.locator("svg").first.dblclick()
        expect(last_tick).to_have_text("6")
        panel.locator(".legend button").first.click()
        expect(curves).to_have_count(count - 1)
        picture = page.locator(".picture:has(input)").first
        assert picture.locator("img:visible").get_attribute("alt").endswith("step 6")
        picture.locator("input").press("Home")
        assert picture.locator("img:visible").get_attribute("alt").endswith("step 0")
        assert picture.locator("output").inner_text() == "step 0"
