"""The objective of distillation, against the spec's formulas in loops, and who gets a gradient."""

import math

import pytest
import torch
from torch import nn

from dinov2_hf import (
    DINOv2Config,
    DINOv2DistillationConfig,
    DINOv2ForDistillation,
    DINOv2ForPreTraining,
    DINOv2Model,
    DINOv2PreTrainingConfig,
)
from dinov2_hf.pretraining.features_objective import BackboneWithProjectors, feature_loss, resample_grid
from dinov2_hf.pretraining.frozen_teacher import FrozenTeacher
from dinov2_hf.pretraining.logit_chunks import LogitChunks


IMAGES, LOCAL, PATCHES, K = 3, 2, 16, 12
STUDENT_TEMPERATURE, TEACHER_TEMPERATURE = 0.1, 0.06


def pretraining_config(hidden_size: int, **kwargs) -> DINOv2PreTrainingConfig:
    backbone = DINOv2Config(
        hidden_size=hidden_size,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=16,
        patch_size=4,
        num_register_tokens=kwargs.pop("num_register_tokens", 0),
    )
    values = {"num_prototypes": K, "head_hidden_size": 8, "bottleneck_size": 6, "centering": "sinkhorn_knopp"}
    return DINOv2PreTrainingConfig(backbone_config=backbone, **{**values, **kwargs})


def pretrained(hidden_size: int = 16, seed: int = 0, **kwargs) -> DINOv2ForPreTraining:
    torch.manual_seed(seed)
    model = DINOv2ForPreTraining(pretraining_config(hidden_size, **kwargs))
    with torch.no_grad():  # as if trained: images differ
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return model


def distillation(
    teacher: DINOv2ForPreTraining, *students: DINOv2ForPreTraining, patch_chunk_size: int = 4096, **kwargs
) -> DINOv2ForDistillation:
    names = [f"s{index}" for index in range(len(students))] if len(students) > 1 else [""]
    model = DINOv2ForDistillation(
        DINOv2DistillationConfig(**kwargs),
        {name: student.student for name, student in zip(names, students, strict=True)},
        {name: student.config for name, student in zip(names, students, strict=True)},
        FrozenTeacher(teacher.teacher),
    )
    model.patch_chunk_size = patch_chunk_size
    return model


def batch(seed: int = 0) -> dict:
    generator = torch.Generator().manual_seed(seed)
    masks = torch.zeros(2 * IMAGES, PATCHES, dtype=torch.bool)
    masks[0, :5], masks[3, 4:6], masks[4, 15] = True, True, True
    return {
        "global_crops": torch.randn(2, IMAGES, 3, 16, 16, generator=generator),
        "local_crops": torch.randn(LOCAL, IMAGES, 3, 8, 8, generator=generator),
        "bool_masked_pos": masks,
        "masked_indices": masks.flatten().nonzero().squeeze(1),
        "masked_weights": (1 / masks.sum(dim=1, keepdim=True)).expand_as(masks)[masks],
        "teacher_temperature": TEACHER_TEMPERATURE,
    }


def sinkhorn(logits: torch.Tensor) -> torch.Tensor:
    """Spec section 5.1, in loops."""
    rows, columns = logits.shape
    matrix = [[math.exp(logits[i, k].item() / TEACHER_TEMPERATURE) for i in range(rows)] for k in range(columns)]
    for _ in range(3):
        for k in range(columns):
            mass = sum(matrix[k])
            matrix[k] = [value / (mass * columns) for value in matrix[k]]
        for i in range(rows):
            mass = sum(matrix[k][i] for k in range(columns))
            for k in range(columns):
                matrix[k][i] /= mass * rows
    return torch.tensor([[rows * matrix[k][i] for k in range(columns)] for i in range(rows)])


def cross_entropy(target: torch.Tensor, logits: torch.Tensor) -> float:
    scores = [value / STUDENT_TEMPERATURE for value in logits.tolist()]
    log_sum = math.log(sum(math.exp(score) for score in scores))
    return -sum(t * (score - log_sum) for t, score in zip(target.tolist(), scores, strict=True))


def koleo(features: torch.Tensor) -> float:
    unit = [row / row.norm() for row in features]
    total = 0.0
    for i, one in enumerate(unit):
        nearest = max((j for j in range(len(unit)) if j != i), key=lambda j: float(one @ unit[j]))
        total += math.log(float((one - unit[nearest] + 1e-8).norm()) + 1e-8)
    return -total / len(unit)


@torch.no_grad()
def spec_loss(teacher: DINOv2ForPreTraining, student: DINOv2ForPreTraining, data: dict, tokens: str) -> dict:
    """Spec sections 5 and 10.1, image by image and patch by patch."""
    prefix = 1 + teacher.config.backbone_config.num_register_tokens
    student_prefix = 1 + student.config.backbone_config.num_register_tokens
    said, seen, local = [], [], []  # by crop, then image
    for crop in data["global_crops"]:
        said.append([teacher.teacher.backbone(image[None]).last_hidden_state[0] for image in crop])
        seen.append([student.student.backbone(image[None]).last_hidden_state[0] for image in crop])
    for crop in data["local_crops"]:
        local.append([student.student.backbone(image[None]).last_hidden_state[0] for image in crop])
    dino, ibot = teacher.teacher.dino_head, teacher.teacher.ibot_head or teacher.teacher.dino_head
    own_dino, own_ibot = student.student.dino_head, student.student.ibot_head or student.student.dino_head

    targets = sinkhorn(torch.stack([dino(tokens_[0]) for crop in said for tokens_ in crop])).unflatten(0, (2, IMAGES))
    pairs = 2 * LOCAL + 2
    local_loss = global_loss = 0.0
    for i in range(IMAGES):
        for c in range(LOCAL):
            for v in range(2):
                local_loss += cross_entropy(targets[v, i], own_dino(local[c][i][0])) / IMAGES / pairs
        global_loss += cross_entropy(targets[1, i], own_dino(seen[0][i][0])) / IMAGES / pairs
        global_loss += cross_entropy(targets[0, i], own_dino(seen[1][i][0])) / IMAGES / pairs

    chosen = [
        (v, i, p)
        for v in range(2)
        for i in range(IMAGES)
        for p in range(PATCHES)
        if tokens == "all" or data["bool_masked_pos"][v * IMAGES + i, p]
    ]
    patch_targets = sinkhorn(torch.stack([ibot(said[v][i][prefix + p]) for v, i, p in chosen]))
    ibot_loss = 0.0
    for row, (v, i, p) in enumerate(chosen):
        of_this_crop = sum(1 for v_, i_, _ in chosen if (v_, i_) == (v, i))
        logits = own_ibot(seen[v][i][student_prefix + p])
        ibot_loss += cross_entropy(patch_targets[row], logits) / of_this_crop / (2 * IMAGES)
    koleo_loss = sum(koleo(torch.stack([tokens_[0] for tokens_ in crop])) for crop in seen)
    return {
        "dino_local_loss": local_loss,
        "dino_global_loss": global_loss,
        "ibot_loss": ibot_loss,
        "koleo_loss": koleo_loss,
        "loss": local_loss + global_loss + ibot_loss + 0.1 * koleo_loss,
    }


@pytest.mark.parametrize("chunk_size", [7, 4096])
@pytest.mark.parametrize("tokens", ["all", "masked"])
@pytest.mark.parametrize("heads", ["shared", "separate"])
def test_the_loss_is_the_specs(tokens, heads, chunk_size):
    separate = {"separate_ibot_head": True, "ibot_num_prototypes": 9} if heads == "separate" else {}
    teacher = pretrained(16, seed=0, num_register_tokens=2, **separate)
    student = pretrained(8, seed=1, **separate)
    model = distillation(teacher, student, ibot_tokens=tokens, patch_chunk_size=chunk_size)
    wanted = spec_loss(pretrained(16, seed=0, num_register_tokens=2, **separate), student, batch(), tokens)
    with torch.no_grad():
        output = model(**batch())
    for name, value in wanted.items():
        assert output[name].item() == pytest.approx(value, rel=2e-5), name


def test_all_tokens_weigh_as_their_mean():
    """The documented scale: an average over all 2 B N patches, about twice what masks on half of the crops give."""
    model = distillation(pretrained(), pretrained(8, seed=1))
    with torch.no_grad():
        everything = model(**batch())["ibot_loss"]
        model.distillation_config.ibot_tokens = "masked"
        masked = model(**batch())["ibot_loss"]
    assert everything / masked == pytest.approx(2, rel=0.35)  # 3 of 6 crops are masked
    assert math.log(K) * 0.5 < everything < math.log(K) * 3


def test_no_more_than_a_chunk_of_patch_logits_is_ever_made(monkeypatch):
    made, rows = [], LogitChunks.rows

    def counting(self, chunk, *temperature):
        logits = rows(self, chunk, *temperature)
        made.append(len(logits))
        return logits

    monkeypatch.setattr(LogitChunks, "rows", counting)
    model = distillation(pretrained(), pretrained(8, seed=1), patch_chunk_size=10)
    model(**batch())["loss"].backward()
    assert 2 * IMAGES * PATCHES == 96
    assert max(made) == 10
    teacher, student = 96 + 2 * IMAGES, 96 + (2 + LOCAL) * IMAGES
    assert sum(made) == (3 + 1) * teacher + student  # three iterations and the targets


def test_the_gradient_reaches_the_student_alone():
    teacher = pretrained()
    model = distillation(teacher, pretrained(8, seed=1))
    frozen = {name: value.clone() for name, value in model.teacher_role.state_dict().items()}
    average = {name: value.clone() for name, value in model.average.state_dict().items()}
    model(**batch())["loss"].backward()
    without = {name for name, parameter in model.student.named_parameters() if parameter.grad is None}
    assert without == {"student.backbone.embeddings.mask_token"}
    assert all(p.grad.abs().max() > 0 for n, p in model.student.named_parameters() if n not in without)
    assert all(parameter.grad is None for parameter in model.average.parameters())
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(torch.equal(value, frozen[name]) for name, value in model.teacher_role.state_dict().items())
    assert all(torch.equal(value, average[name]) for name, value in model.average.state_dict().items())


def test_the_teacher_is_in_no_state_dict_and_stays_in_evaluation_mode():
    model = distillation(pretrained(), pretrained(8, seed=1))
    model.train()
    assert not any(module.training for module in model.teacher_role.modules())
    assert not any(module.training for module in model.average.modules())
    assert {name.split(".")[0] for name in model.state_dict()} == {"student", "average"}
    frozen = {id(parameter) for parameter in model.teacher_role.parameters()}
    assert not frozen & {id(parameter) for parameter in model.parameters()}


def test_the_student_sees_its_crops_whole():
    """Masks choose patches and hide none: without the patch loss they change nothing."""
    students = [pretrained(8, seed=1, ibot_loss_weight=0.0) for _ in range(2)]
    other = batch()
    other["bool_masked_pos"] = ~other["bool_masked_pos"]
    outputs = []
    for student, data in zip(students, (batch(), other), strict=True):
        with torch.no_grad():
            outputs.append(distillation(pretrained(), student, ibot_tokens="masked")(**data)["loss"])
    assert torch.equal(*outputs)


def test_two_students_have_the_losses_and_gradients_of_each_alone():
    alone = []
    for size, seed in ((8, 1), (12, 2)):
        model = distillation(pretrained(), pretrained(size, seed=seed))
        output = model(**batch())
        output["loss"].backward()
        alone.append((output, {name: p.grad for name, p in model.students[""].named_parameters()}))
    both = distillation(pretrained(), pretrained(8, seed=1), pretrained(12, seed=2))
    output = both(**batch())
    output["loss"].backward()
    assert torch.equal(output["loss"], output["s0/loss"] + output["s1/loss"])
    for name, (wanted, gradients) in zip(("s0", "s1"), alone, strict=True):
        for key, value in wanted.items():
            assert torch.equal(output[f"{name}/{key}"], value)
        for key, parameter in both.students[name].named_parameters():
            assert parameter.grad is None or torch.equal(parameter.grad, gradients[key])


def test_the_running_centre_of_the_pretraining_goes_on():
    teacher = pretrained(centering="softmax")
    teacher.dino_centering.center.normal_()
    student = pretrained(8, seed=1, centering="softmax")
    model = DINOv2ForDistillation(
        DINOv2DistillationConfig(),
        {"": student.student},
        {"": student.config},
        FrozenTeacher(teacher.teacher, centers={"dino_centering": teacher.dino_centering.center}),
    )
    assert torch.equal(model.dino_centering.center, teacher.dino_centering.center)
    before = model.ibot_centering.center.clone()
    model(**batch())
    assert not torch.equal(model.dino_centering.center, teacher.dino_centering.center)
    assert not torch.equal(model.ibot_centering.center, before)


def test_a_bf16_teacher_is_what_autocast_makes_of_float32():
    crops = batch()["global_crops"]
    network = pretrained().teacher
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        tokens = network.backbone(crops.flatten(0, 1)).last_hidden_state
    stored = FrozenTeacher(pretrained().teacher, bf16=True)
    assert stored.network.backbone.encoder.layer[0].mlp.fc1.weight.dtype == torch.bfloat16
    with stored.autocast(crops.device), torch.no_grad():
        assert torch.equal(stored.network.backbone(crops.flatten(0, 1)).last_hidden_state, tokens)
    output, exact = stored.tokens(crops), FrozenTeacher(pretrained().teacher).tokens(crops)
    torch.testing.assert_close(output.patches.float(), exact.patches, rtol=0, atol=0.05)


def test_crops_are_normalised_and_sized_as_the_teacher_expects():
    crops = torch.rand(2, IMAGES, 3, 16, 16)
    mean, std, own_mean, own_std = [0.4, 0.5, 0.6], [0.2, 0.3, 0.4], [0.5] * 3, [0.5] * 3

    def normalised(mean: list[float], std: list[float]) -> torch.Tensor:
        return (crops - torch.tensor(mean)[:, None, None]) / torch.tensor(std)[:, None, None]

    backbone = DINOv2Model(pretraining_config(8).backbone_config)
    teacher = FrozenTeacher(
        backbone, pixel_mean=mean, pixel_std=std, own_mean=own_mean, own_std=own_std, image_size=None
    )
    wanted = normalised(own_mean, own_std).flatten(0, 1)
    torch.testing.assert_close(teacher.prepare(normalised(mean, std)), wanted, rtol=1e-5, atol=1e-6)
    teacher.image_size = 32
    assert teacher.tokens(normalised(mean, std)).patches.shape == (2, IMAGES, 8, 8, 8)


def features_model(kind: str = "cosine", patch_size: int = 8, **kwargs) -> DINOv2ForDistillation:
    """A student of 2 x 2 patches, and a teacher of 4 x 4 and another width."""
    torch.manual_seed(3)
    teacher = FrozenTeacher(DINOv2Model(pretraining_config(16).backbone_config))
    backbone = DINOv2Config(
        hidden_size=8, num_hidden_layers=2, num_attention_heads=2, image_size=16, patch_size=patch_size
    )
    student = BackboneWithProjectors(backbone, cls_width=16, patch_width=16, projector_hidden_size=kwargs.get("h", 0))
    config = DINOv2PreTrainingConfig(backbone_config=backbone, koleo_loss_weight=0.0)
    distillation_config = DINOv2DistillationConfig(distillation_objective="features", feature_loss=kind)
    return DINOv2ForDistillation(distillation_config, {"": student}, {"": config}, teacher)


@pytest.mark.parametrize("kind", ["cosine", "smooth_l1"])
def test_the_loss_of_features_is_its_formula(kind):
    model, data = features_model(kind), batch()
    with torch.no_grad():
        output = model(**data)
        cls_loss = patch_loss = 0.0
        student = model.students[""]
        for crop in data["global_crops"].flatten(0, 1):
            wanted = model.teacher_role.network(crop[None]).last_hidden_state[0]
            seen = student.backbone(crop[None]).last_hidden_state[0]
            maps = wanted[1:].unflatten(0, (4, 4)).movedim(-1, 0)[None]
            coarse = nn.functional.interpolate(maps, (2, 2), mode="bilinear", antialias=True)[0].flatten(1).T
            cls_loss += distance(student.cls_projector(seen[0]), wanted[0], kind) / (2 * IMAGES)
            for patch, target in zip(student.patch_projector(seen[1:]), coarse, strict=True):
                patch_loss += distance(patch, target, kind) / (2 * IMAGES * 4)
    assert output["cls_feature_loss"].item() == pytest.approx(cls_loss, rel=1e-5)
    assert output["patch_feature_loss"].item() == pytest.approx(patch_loss, rel=1e-5)
    assert output["loss"].item() == pytest.approx(cls_loss + patch_loss, rel=1e-5)


def distance(student: torch.Tensor, teacher: torch.Tensor, kind: str) -> float:
    if kind == "cosine":
        return 1 - float(student @ teacher / student.norm() / teacher.norm())
    teacher = (teacher - teacher.mean()) / (teacher.var(unbiased=False) + 1e-5).sqrt()
    differences = (student - teacher).abs().tolist()
    return sum(0.5 * d * d if d < 1 else d - 0.5 for d in differences) / len(differences)


def test_features_that_are_equal_have_no_loss():
    features = torch.randn(5, 4, 16)
    assert feature_loss(features, 3 * features, "cosine").item() == pytest.approx(0, abs=1e-6)
    same = nn.functional.layer_norm(features, (16,))
    assert feature_loss(same, features, "smooth_l1").item() == 0


def test_grids_of_the_same_size_are_left_alone():
    patches = torch.randn(2, 4, 4, 6)
    assert resample_grid(patches, (4, 4)) is patches
    assert resample_grid(patches, (7, 3)).shape == (2, 7, 3, 6)
    constant = torch.full((1, 4, 4, 2), 3.0)
    torch.testing.assert_close(resample_grid(constant, (2, 2)), torch.full((1, 2, 2, 2), 3.0))


def test_the_gradient_of_features_reaches_the_student_alone():
    model = features_model(h=12)
    model(**batch())["loss"].backward()
    without = {name for name, parameter in model.student.named_parameters() if parameter.grad is None}
    assert without == {"student.backbone.embeddings.mask_token"}
    assert all(parameter.grad is None for parameter in model.teacher_role.parameters())
    assert len(model.students[""].cls_projector) == 3
