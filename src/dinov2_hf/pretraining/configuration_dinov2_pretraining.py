"""Configuration of DINOv2 pretraining: the backbone, the heads and the losses."""

from dataclasses import field
from typing import TYPE_CHECKING

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig

from ..models import DINOv2Config
from ..value_ranges import ABOVE_ZERO, AT_LEAST_ONE, NOT_NEGATIVE, SHARE, check_ranges, ranged


@strict
class DINOv2PreTrainingConfig(PreTrainedConfig):
    r"""
    The configuration of the pretraining objective (paper, section 4). Brackets give the values of the short ViT-L/16
    recipe and of the ViT-g/14 recipe.

    Args:
        backbone_config ([`DINOv2Config`] or `dict`, *optional*): The network of student and teacher.
        num_prototypes (`int`, defaults to 65536): Outputs `K` of the DINO head [65536, 131072].
        head_hidden_size (`int`, defaults to 2048): Hidden width of the projection heads [2048, 2048].
        head_num_layers (`int`, defaults to 3): Linear layers of a projection head before the prototypes [3, 3].
        bottleneck_size (`int`, defaults to 256): Width before the prototypes of the DINO head [256, 384].
        separate_ibot_head (`bool`, defaults to `False`): Give patches a head of their own [`False`, `True`].
        ibot_num_prototypes (`int`, *optional*): Prototypes of that head; `None` means `num_prototypes` [-, 131072].
        ibot_bottleneck_size (`int`, *optional*): Bottleneck of that head; `None` means `bottleneck_size` [-, 256].
        centering (`str`, defaults to `"softmax"`): How teacher targets are kept from collapsing: `"softmax"` with a
            running centre, or `"sinkhorn_knopp"` [`"softmax"`, `"sinkhorn_knopp"`]. `"none"` leaves the teacher's
            softmax as it is, which collapses: for ablations.
        center_momentum (`float`, defaults to 0.9): Momentum of that running centre.
        student_temperature (`float`, defaults to 0.1): Temperature of the student's softmax.
        dino_loss_weight (`float`, defaults to 1.0): Weight of the image-level loss; 0 leaves it out.
        ibot_loss_weight (`float`, defaults to 1.0): Weight of the patch-level loss; 0 leaves it out.
        koleo_loss_weight (`float`, defaults to 0.1): Weight of the KoLeo regulariser on both global crops; 0 leaves
            it out.
        koleo_group_size (`int`, *optional*): Images that KoLeo looks for neighbours among; `None` means those of a
            device, as in the paper, and 0 all of a forward pass, over all devices. DINOv3 has 16, over devices.
        koleo_num_neighbors (`int`, defaults to 1): Nearest neighbours that an image is pushed away from.

    Raises:
        `ValueError`: when a size, a weight, a temperature or `centering` is out of range.
    """

    model_type = "dinov2_hf_pretraining"
    sub_configs = {"backbone_config": DINOv2Config}

    if TYPE_CHECKING:  # its type after construction
        backbone_config: DINOv2Config = DINOv2Config()
    else:
        backbone_config: DINOv2Config | dict | None = None
    num_prototypes: int = ranged(65536, AT_LEAST_ONE)
    head_hidden_size: int = ranged(2048, AT_LEAST_ONE)
    head_num_layers: int = ranged(3, AT_LEAST_ONE)
    bottleneck_size: int = ranged(256, AT_LEAST_ONE)
    separate_ibot_head: bool = False
    ibot_num_prototypes: int | None = ranged(None, AT_LEAST_ONE)
    ibot_bottleneck_size: int | None = ranged(None, AT_LEAST_ONE)
    centering: str = "softmax"
    center_momentum: float | int = field(default=0.9, metadata={"range": SHARE, "needs": {"centering": "softmax"}})
    student_temperature: float | int = ranged(0.1, ABOVE_ZERO)
    dino_loss_weight: float | int = ranged(1.0, NOT_NEGATIVE)
    ibot_loss_weight: float | int = ranged(1.0, NOT_NEGATIVE)
    koleo_loss_weight: float | int = ranged(0.1, NOT_NEGATIVE)
    koleo_group_size: int | None = ranged(None, NOT_NEGATIVE)
    koleo_num_neighbors: int = ranged(1, AT_LEAST_ONE)

    def __post_init__(self, **kwargs):
        if self.backbone_config is None:
            self.backbone_config = DINOv2Config()
        elif isinstance(self.backbone_config, dict):
            self.backbone_config = DINOv2Config(**self.backbone_config)
        super().__post_init__(**kwargs)

    @property
    def num_patch_prototypes(self) -> int:
        """The number of prototypes for patches, of their own head or of the shared head."""
        return (self.separate_ibot_head and self.ibot_num_prototypes) or self.num_prototypes

    def validate_architecture(self):
        """Part of `@strict`: runs after the fields are set."""
        check_ranges(self)
        if self.centering not in ("softmax", "sinkhorn_knopp", "none"):
            raise ValueError(f'`centering` is "{self.centering}"; it must be "softmax", "sinkhorn_knopp" or "none".')
        if self.dino_loss_weight == 0 and self.ibot_loss_weight == 0:
            raise ValueError(
                "`dino_loss_weight` and `ibot_loss_weight` are both 0, which leaves nothing to learn; raise one."
            )
        for name in ("dino_loss_weight", "ibot_loss_weight"):
            if self.separate_ibot_head and getattr(self, name) == 0:
                raise ValueError(
                    f"`{name}` is 0 while `separate_ibot_head` is True, which leaves one of the two heads without a"
                    " use; share the head, or raise the weight."
                )
        if not self.separate_ibot_head and (self.ibot_num_prototypes or self.ibot_bottleneck_size):
            raise ValueError(
                "`ibot_num_prototypes` or `ibot_bottleneck_size` is set while `separate_ibot_head` is False; set"
                " `separate_ibot_head` to True, or leave both out."
            )
