"""Terms: which of them run, what is computed for them, and that chunks of logits change no number."""

import re

import pytest
import torch

from dinov2_hf import DINOv2ForPreTraining, DINOv2PreTrainingConfig
from dinov2_hf.pretraining.losses import kde_loss
from dinov2_hf.pretraining.terms import TERMS, check_loss_terms, term_options
from dinov2_hf.pretraining.views import Views
from dinov2_hf.training.schedules import weight_schedule


IMAGES, LOCAL, MASKED = 3, 2, 5


@TERMS.register("test_parts")
def parts(views: Views) -> dict[str, torch.Tensor]:
    return {"first_loss": views.student_cls.sum(), "second_loss": views.student_patches.mean()}


@TERMS.register("test_reads_patches", needs={"patches"})
def reads_patches(views: Views) -> torch.Tensor:
    return views.patch_logits.rows(slice(None)).mean() + views.patch_targets(slice(0, 1)).sum()


def reads_logits_undeclared(views: Views) -> torch.Tensor:
    return views.global_logits.rows(slice(None)).mean()


@pytest.fixture
def batch():
    masks = torch.zeros(2 * IMAGES, 16, dtype=torch.bool)
    masks[0, [1, 2, 3]] = masks[4, [0, 5]] = True
    return {
        "global_crops": torch.randn(2, IMAGES, 3, 32, 32),
        "local_crops": torch.randn(LOCAL, IMAGES, 3, 16, 16),
        "bool_masked_pos": masks,
        "masked_indices": masks.flatten().nonzero().flatten(),
        "masked_weights": torch.tensor([1 / 3] * 3 + [1 / 2] * 2),
        "teacher_temperature": 0.06,
    }


@pytest.fixture
def build(tiny_config):
    def build(**values) -> DINOv2ForPreTraining:
        torch.manual_seed(0)
        shape = {"num_prototypes": 24, "head_hidden_size": 20, "bottleneck_size": 12}
        return DINOv2ForPreTraining(DINOv2PreTrainingConfig(backbone_config=tiny_config, **shape | values)).train()

    return build


@pytest.mark.parametrize(
    ("weights", "rows_of_student", "rows_of_teacher"),
    [
        ({}, (2 + LOCAL) * IMAGES + MASKED, 2 * IMAGES + MASKED),
        ({"ibot_loss_weight": 0}, (2 + LOCAL) * IMAGES, 2 * IMAGES),
        ({"dino_loss_weight": 0}, MASKED, 2 * IMAGES + MASKED),  # targets of CLS tokens are looked at for a collapse
    ],
)
def test_what_no_term_reads_is_not_computed(build, batch, weights, rows_of_student, rows_of_teacher):
    model, rows = build(**weights), {"student": [], "teacher": []}
    for name, seen in rows.items():
        head = getattr(model, name).dino_head.mlp
        head.register_forward_hook(lambda _, inputs, __, seen=seen: seen.append(len(inputs[0])))
    model(**batch).loss.backward()
    assert rows == {"student": [rows_of_student], "teacher": [rows_of_teacher]}  # a shared head runs once


@pytest.mark.parametrize("centering", ["softmax", "sinkhorn_knopp", "none"])
def test_chunks_change_no_number(build, batch, centering):
    found = []
    for chunk_size in (2, 4096):
        model = build(centering=centering)
        model.patch_chunk_size = chunk_size
        loss = model(**batch).loss
        loss.backward()
        found.append((loss.detach(), torch.cat([p.grad.flatten() for p in model.student.parameters()])))
    for one, other in zip(*found, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_parts_of_a_term_are_added_up(build, batch):
    plain, more = build()(**batch), build()(**batch, loss_weights={"test_parts": 0.5, "test_reads_patches": 0.0})
    torch.testing.assert_close(more.loss, plain.loss + 0.5 * (more["first_loss"] + more["second_loss"]))
    assert "test_reads_patches_loss" not in more


def test_a_term_may_read_logits_that_no_other_term_reads(build, batch):
    output = build(ibot_loss_weight=0)(**batch, loss_weights={"test_reads_patches": 1.0})
    assert output["test_reads_patches_loss"] > 0.5
    assert output.ibot_loss is None


def test_logits_that_are_not_declared_are_one_sentence(build, batch):
    name = f"{__name__}:reads_logits_undeclared"
    with pytest.raises(ValueError, match=r'of cls, which no term .* `@TERMS.register\(name, needs=\{"cls"\}\)`'):
        build(dino_loss_weight=0)(**batch, loss_weights={name: 1.0})


def test_names_that_metrics_could_not_tell_apart_are_refused():
    check_loss_terms({f"{__name__}:parts": 1})
    TERMS.register("test_parts_loss")(reads_logits_undeclared)
    with pytest.raises(ValueError, match="would call test_parts_loss, as test_parts_loss"):
        check_loss_terms({"test_parts_loss": 1, "test_parts": 1})
    with pytest.raises(ValueError, match="has ibot, whose weight is `ibot_loss_weight`"):
        check_loss_terms({"ibot": 1})
    with pytest.raises(ValueError, match="has ibot, whose weight is `ibot_loss_weight`; set that.$"):
        check_loss_terms({"ibot": {"end": 0}})  # its head would have no gradient at a weight of 0
    check_loss_terms({"kde": 0.1})


def test_keywords_of_a_term_stand_beside_its_weight(build, batch):
    line = {"kde": {"weight": {"start": 0, "end": 1}, "concentration": "2", "group_size": 3}}
    check_loss_terms(line)
    model = build(koleo_loss_weight=0)
    model.term_options = term_options(line)
    assert model.term_options == {"kde": {"concentration": 2.0, "group_size": 3}}
    output = model(**batch, loss_weights={"kde": 0.5})
    features = model.student.backbone.forward_crops([batch["global_crops"].flatten(0, 1)], [batch["bool_masked_pos"]])[
        0
    ][:, 0]
    torch.testing.assert_close(output["kde_loss"], sum(kde_loss(crop, 2.0) for crop in features.view(2, IMAGES, -1)))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weight": 1, "concentratoin": 2}, "kde in `loss_terms` has the unknown key `concentratoin`. Did you mean"),
        ({"weight": 1, "concentration": 0}, "`concentration` is 0.0; it must be"),
        ({"concentration": 2}, "the weight of kde in `loss_terms` has the unknown key `concentration`"),
    ],
)
def test_mistakes_in_keywords(options, message):
    def read() -> None:
        check_loss_terms({"kde": options})
        weight_schedule("kde", options, 10)

    with pytest.raises(ValueError, match=re.escape(message)):
        read()
