"""A loss term from outside: its numbers, and every place where it shows."""

import pytest
import torch
import yaml

from dinov2_hf.pictures.training_curves import plot_training_curves
from dinov2_hf.training.monitoring.monitor import read_metrics


LINE = "loss_terms: {gram_anchoring:gram_loss: {kind: linear, start: 0, end: 0.5, steps: 2}}"


def test_a_line_of_the_recipe_adds_a_term(pretrain, capfd, monkeypatch):
    labels = []
    run = pretrain(LINE)
    first, second = (record for record in read_metrics(run / "metrics.jsonl") if "loss" in record)
    assert (first["gram_loss_weight"], second["gram_loss_weight"]) == (0, 0.25)
    assert "gram_loss" not in first  # of weight 0: it is not computed
    parts = sum(second[name] for name in ("dino_local_loss", "dino_global_loss", "ibot_loss", "gram_loss"))
    assert second["loss"] == pytest.approx(parts + 0.1 * second["koleo_loss"] - 0.75 * second["gram_loss"], rel=1e-5)
    assert f"gram {second['gram_loss']:.3f}" in capfd.readouterr().err
    assert yaml.safe_load((run / "recipe.yaml").read_text())["loss_terms"] == yaml.safe_load(LINE)["loss_terms"]
    assert "gram_anchoring:gram_loss" in (run / "model" / "README.md").read_text()

    from matplotlib.axes import Axes

    plot = Axes.plot
    monkeypatch.setattr(Axes, "plot", lambda *args, **kwargs: labels.append(kwargs["label"]) or plot(*args, **kwargs))
    assert plot_training_curves(run / "metrics.jsonl", run / "again.png")
    assert {"dino local", "koleo", "gram"} <= set(labels)


def test_the_weight_of_koleo_may_change(pretrain):
    run = pretrain("loss_terms: {koleo: {end: 0, steps: 1}}", "--koleo_loss_weight", "0.3")
    first, second = (record for record in read_metrics(run / "metrics.jsonl") if "loss" in record)
    assert (first["koleo_loss_weight"], second["koleo_loss_weight"]) == (0.3, 0)
    assert "koleo_loss" not in second
    for record in (first, second):
        parts = sum(record[name] for name in ("dino_local_loss", "dino_global_loss", "ibot_loss"))
        assert record["loss"] == pytest.approx(parts + 0.3 * record.get("koleo_loss", 0), rel=1e-5)


def test_the_term_is_its_formula():
    from gram_anchoring import similarities

    patches = torch.randn(2, 3, 2, 2, 5)
    found = similarities(patches)
    for crop, image, one, other in ((0, 0, 0, 3), (1, 2, 1, 2)):
        first, second = patches[crop, image].flatten(0, 1)[[one, other]]
        assert found[crop, image, one, other].item() == pytest.approx(
            float(first @ second / first.norm() / second.norm())
        )


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        ("{koleo: 0.5}", "`loss_terms` has koleo, whose weight is `koleo_loss_weight`; set that, and here only"),
        ("{koleo: {start: 0.5, end: 0}}", "set that, and here only what it becomes, such as {end: 0, steps: 1000}."),
        ("{gram_anchoring:gram: 1.0}", "it has no 'gram'. Did you mean `gram_loss`?"),
        ("{gram_anchoring:gram_loss: much}", "`loss_terms` gives gram_anchoring:gram_loss the value much"),
        ("{gram_anchorin:gram_loss: 1}", "there is no module gram_anchorin among the installed packages"),
        ("{grm: 1}", "there is no loss term 'grm'."),
    ],
)
def test_mistakes_are_one_sentence_before_any_work(pretrain, tmp_path, terms, message):
    with pytest.raises(SystemExit) as stop:
        pretrain(f"loss_terms: {terms}")
    assert str(stop.value).startswith("error: ")
    assert message in str(stop.value)
    assert not (tmp_path / "run").exists()


def test_the_command_line_and_its_help_know_loss_terms(pretrain, capsys):
    run = pretrain("", "--loss_terms", "gram_anchoring:gram_loss=2.0")
    assert {record["gram_loss_weight"] for record in read_metrics(run / "metrics.jsonl") if "loss" in record} == {2.0}
    with pytest.raises(SystemExit, match="0"):
        pretrain("", "--help")
    assert "--loss_terms" in capsys.readouterr().out
