"""Two students of one run go to two repositories, each with what a run of its own uploads."""

from dinov2_hf import DINOv2Config, DINOv2ForPreTraining, DINOv2PreTrainingConfig
from tests.examples.conftest import forget_accelerate, load_example

from .test_hub_upload import MODEL_FILES, PRETRAINING_FILES, RUN_FILES, printed_and_exit


def distill(flags: list[str]) -> tuple[str, str | int | None]:
    """What a run printed, and what it exited with; called in the client process."""
    forget_accelerate()
    return printed_and_exit(load_example("distill").main, flags)


def test_every_student_has_a_repository(hub, client, recipe, images, tmp_path):
    backbone = DINOv2Config(hidden_size=48, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=4)
    heads = {"num_prototypes": 32, "head_hidden_size": 32, "bottleneck_size": 16}
    DINOv2ForPreTraining(DINOv2PreTrainingConfig(backbone_config=backbone, **heads)).save_pretrained(
        tmp_path / "large"
    )
    flags = ["--config", recipe, "--teacher", str(tmp_path / "large"), "--train_data", str(images)]
    flags += ["--output_dir", str(tmp_path / "family"), "--max_steps", "2", "--warmup_steps", "1", "--save_steps", "2"]
    flags += ["--push_to_hub", "true", "--hub_pretraining_model", "true", "--drop_path_rate", "0"]
    flags += ["--students", "{name: small, hidden_size: 16}", "{name: base}"]
    printed, complaint = client(distill, flags)
    assert complaint is None
    for name in ("small", "base"):
        assert f"uploaded to {hub.url}/ada/family-{name}" in printed
        assert set(hub.files(f"ada/family-{name}")) == MODEL_FILES | RUN_FILES | PRETRAINING_FILES
        card = hub.files(f"ada/family-{name}")["README.md"].decode()
        assert f"# ada/family-{name}" in card
        assert "distilled from `large`" in card
        assert f"hidden_size: {16 if name == 'small' else 32}\n" in card
    assert hub.repos.keys() == {"ada/family-small", "ada/family-base"}
