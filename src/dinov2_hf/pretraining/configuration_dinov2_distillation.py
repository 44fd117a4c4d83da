"""Configuration of distillation: how the students are compared with their frozen teacher."""

from dataclasses import field

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..value_ranges import NOT_NEGATIVE, check_ranges


# Without which a field has no effect.
OF_THE_PAPER, OF_FEATURES = {"distillation_objective": "paper"}, {"distillation_objective": "features"}


@strict
class DINOv2DistillationConfig(PreTrainedConfig):
    r"""
    The part that all students of one teacher share (paper, section 5, "knowledge distillation"). Each student also has
    its [`DINOv2PreTrainingConfig`].

    Args:
        distillation_objective (`str`, defaults to `"paper"`): `"paper"` is the pretraining objective with the heads of
            a frozen teacher. `"features"` is not the paper's: it compares CLS and patch features themselves, of any
            teacher, through a projector.
        ibot_tokens (`str`, defaults to `"all"`): Patches that the patch-level loss of the paper's objective counts:
            `"all"` of both global crops, as the paper's students were made, or those that the recipe's masks choose,
            `"masked"`, as DINOv3's were. The student sees all of them either way.
        feature_loss (`str`, defaults to `"cosine"`): How features are compared: `"cosine"` is one minus the cosine,
            `"smooth_l1"` the smooth L1 distance to the teacher's features after a norm over their channels.
        cls_feature_loss_weight (`float`, defaults to 1.0): Weight of the loss of CLS features; 0 leaves it out.
        patch_feature_loss_weight (`float`, defaults to 1.0): Weight of the loss of patch features; 0 leaves it out.
        projector_hidden_size (`int`, defaults to 0): Hidden width of the projectors from the student's width to the
            teacher's; 0 makes them linear.

    Raises:
        `ValueError`: when a name, a size or a weight is out of range.
    """

    model_type = "dinov2_hf_distillation"

    distillation_objective: str = "paper"
    ibot_tokens: str = field(default="all", metadata={"needs": OF_THE_PAPER})
    feature_loss: str = field(default="cosine", metadata={"needs": OF_FEATURES})
    cls_feature_loss_weight: float | int = field(default=1.0, metadata={"range": NOT_NEGATIVE, "needs": OF_FEATURES})
    patch_feature_loss_weight: float | int = field(default=1.0, metadata={"range": NOT_NEGATIVE, "needs": OF_FEATURES})
    projector_hidden_size: int = field(default=0, metadata={"range": NOT_NEGATIVE, "needs": OF_FEATURES})

    def validate_architecture(self):
        """Part of `@strict`: runs after the fields are set."""
        check_ranges(self)
        for name, allowed in (
            ("distillation_objective", ("paper", "features")),
            ("ibot_tokens", ("all", "masked")),
            ("feature_loss", ("cosine", "smooth_l1")),
        ):
            if getattr(self, name) not in allowed:
                wanted = " or ".join(f'"{value}"' for value in allowed)
                raise ValueError(f'`{name}` is "{getattr(self, name)}"; it must be {wanted}.')
        if self.cls_feature_loss_weight == 0 and self.patch_feature_loss_weight == 0:
            raise ValueError(
                "`cls_feature_loss_weight` and `patch_feature_loss_weight` are both 0, which leaves nothing to learn;"
                " raise one."
            )
