"""Configuration of the DINOv2 vision transformer."""

from dataclasses import field
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.backbone_utils import BackboneConfigMixin

from ..value_ranges import (
    ABOVE_ZERO,
    AT_LEAST_ONE,
    BELOW_ONE,
    DEPTH,
    NOT_NEGATIVE,
    WIDTH,
    Range,
    check_ranges,
    ranged,
)


@strict
class DINOv2Config(BackboneConfigMixin, PreTrainedConfig):
    r"""
    The configuration of a DINOv2 network. Field names follow transformers' own `Dinov2Config`. The released sizes are

    | model | hidden_size | num_hidden_layers | num_attention_heads | feed-forward |
    |---|---|---|---|---|
    | ViT-S/14 | 384 | 12 | 6 | MLP |
    | ViT-B/14 | 768 | 12 | 12 | MLP |
    | ViT-L/14 | 1024 | 24 | 16 | MLP |
    | ViT-g/14 | 1536 | 40 | 24 | SwiGLU |

    Args:
        hidden_size (`int`, defaults to 768): Width of the tokens; a multiple of `num_attention_heads`.
        num_hidden_layers (`int`, defaults to 12): Number of transformer blocks.
        num_attention_heads (`int`, defaults to 12): Attention heads of each block.
        mlp_ratio (`float`, defaults to 4): Hidden width of the feed-forward network over `hidden_size`, before the
            SwiGLU rounding.
        hidden_act (`str`, defaults to `"gelu"`): Activation of the MLP (exact GELU); SwiGLU always uses SiLU.
        use_swiglu_ffn (`bool`, defaults to `False`): Use SwiGLU instead of the MLP (networks trained from scratch in
            the paper; the distilled S/B/L use the MLP).
        layerscale_value (`float`, defaults to 1.0): Initial LayerScale. Pretraining recipes set 1e-5; checkpoints
            overwrite it.
        drop_path_rate (`float`, defaults to 0.0): Share of the crops that every residual branch leaves out in
            training, in [0, 1), the same for all blocks (paper, section 5, efficient stochastic depth).
        layer_norm_eps (`float`, defaults to 1e-6): Epsilon of every LayerNorm.
        initializer_range (`float`, defaults to 0.02): Standard deviation of the linear and position weights.
        image_size (`int`, defaults to 224): Side, in pixels, of the square image whose patch grid the position
            embeddings are stored for. Other sizes are interpolated in `forward`.
        patch_size (`int`, defaults to 14): Side of a square patch, in pixels; divides `image_size`.
        num_channels (`int`, defaults to 3): Channels of the input image.
        qkv_bias (`bool`, defaults to `True`): Whether the query, key and value projections have a bias.
        num_register_tokens (`int`, defaults to 0): Register tokens between CLS and patches (Darcet et al. 2024);
            released models with registers have 4.
        interpolate_offset (`float`, defaults to 0.1): Added to the wanted grid size to form the interpolation scale
            of the position embeddings. 0.1 is what models without registers were trained and released with; 0.0
            passes the grid size itself.
        interpolate_antialias (`bool`, defaults to `False`): Antialias that interpolation; `True` (with offset 0.0)
            is what models with registers use and what is recommended for new training.
        apply_layernorm (`bool`, defaults to `True`): Of `DINOv2Backbone`: final norm on every feature map.
        reshape_hidden_states (`bool`, defaults to `True`): Of `DINOv2Backbone`: feature maps of the patches,
            `(B, D, h, w)`; otherwise all tokens, `(B, 1 + R + N, D)`.
        keep_register_tokens (`bool`, defaults to `True`): Of `DINOv2Backbone` without `reshape_hidden_states`: the
            registers among those tokens. Heads such as transformers' DPT take CLS and patches only.
        classifier_num_layers (`int`, defaults to 1): Of `DINOv2ForImageClassification`: the last blocks whose CLS
            tokens are the classifier's input; the released linear heads use 1 or 4.
        classifier_use_patch_mean (`bool`, defaults to `True`): Append the mean patch of the last block to that input.
        segmentation_num_layers (`int`, defaults to 1): Of `DINOv2ForSemanticSegmentation`: the last blocks whose
            patches are its input (paper, section 7.4: 1 for "linear", 4 for "+ms").
        semantic_loss_ignore_index (`int`, defaults to 255): Label of pixels that do not count.
        depth_layers (`list[int]`, *optional*): Of `DINOv2ForDepthEstimation`: 0-based blocks whose CLS and patches
            are its input; `None` is the last block.
        depth_num_bins (`int`, defaults to 256): Depths between `min_depth` and `max_depth` to weigh.
        min_depth (`float`, defaults to 0.001), max_depth (`float`, defaults to 10.0): Range of the depth, in the
            unit of the data (metres; 10 for NYU, 80 for KITTI).

    `out_features` and `out_indices` choose the feature maps of `DINOv2Backbone`, as in every backbone of transformers:
    `"stem"` (the input of the first block), `"stage1"`, ...

    The configurations of transformers' own `dinov2` and `dinov2_with_registers` are read as well; they get the
    interpolation their weights were released with.

    Raises:
        `ValueError`: when sizes do not divide as said above, a rate or block is out of range, or a folder holds the
            configuration of another kind of model.
    """

    model_type = "dinov2_hf"
    # Fields of models built on a finished backbone: feature maps, and heads for tasks.
    downstream_fields = (
        "apply_layernorm", "reshape_hidden_states", "keep_register_tokens", "classifier_num_layers",
        "classifier_use_patch_mean", "segmentation_num_layers", "semantic_loss_ignore_index", "depth_layers",
        "depth_num_bins", "min_depth", "max_depth", "_out_features", "_out_indices",
    )  # fmt: skip

    hidden_size: int = ranged(768, WIDTH)
    num_hidden_layers: int = ranged(12, DEPTH)
    num_attention_heads: int = ranged(12, WIDTH)
    mlp_ratio: float | int = ranged(4, ABOVE_ZERO)
    hidden_act: str = field(default="gelu", metadata={"needs": {"use_swiglu_ffn": False}})
    use_swiglu_ffn: bool = False
    layerscale_value: float | int = ranged(1.0, Range())
    drop_path_rate: float | int = ranged(0.0, BELOW_ONE)
    layer_norm_eps: float | int = ranged(1e-6, ABOVE_ZERO)
    initializer_range: float | int = ranged(0.02, NOT_NEGATIVE)
    image_size: int = ranged(224, WIDTH)
    patch_size: int = ranged(14, WIDTH)
    num_channels: int = ranged(3, WIDTH)
    qkv_bias: bool = True
    num_register_tokens: int = ranged(0, Range(0, 2**16))
    interpolate_offset: float | int = ranged(0.1, BELOW_ONE)
    interpolate_antialias: bool = False
    apply_layernorm: bool = True
    reshape_hidden_states: bool = True
    keep_register_tokens: bool = True
    classifier_num_layers: int = ranged(1, AT_LEAST_ONE)
    classifier_use_patch_mean: bool = True
    segmentation_num_layers: int = ranged(1, AT_LEAST_ONE)
    semantic_loss_ignore_index: int = 255
    depth_layers: list[int] | None = None
    depth_num_bins: int = ranged(256, AT_LEAST_ONE)
    min_depth: float | int = ranged(0.001, ABOVE_ZERO)
    max_depth: float | int = ranged(10.0, ABOVE_ZERO)
    _out_features: list[str] | None = None
    _out_indices: list[int] | None = None

    def __post_init__(self, **kwargs):
        self.stage_names = ["stem"] + [f"stage{index}" for index in range(1, self.num_hidden_layers + 1)]
        self.set_output_features_output_indices(
            out_indices=kwargs.pop("out_indices", None), out_features=kwargs.pop("out_features", None)
        )
        super().__post_init__(**kwargs)

    @classmethod
    def get_config_dict(cls, pretrained_model_name_or_path, **kwargs) -> tuple[dict[str, Any], dict[str, Any]]:
        """Read a config.json as the base class does; one of a stock DINOv2 is translated to ours."""
        values, kwargs = super().get_config_dict(pretrained_model_name_or_path, **kwargs)
        translated = from_stock_values(values, str(pretrained_model_name_or_path))
        if cls._auto_class is not None and "auto_map" in values:
            # When loaded as remote code, the Auto classes look here for the models that came with it.
            translated["auto_map"] = values["auto_map"]
        return translated, kwargs

    def validate_architecture(self):
        """Part of `@strict`. It runs after the fields are set."""
        check_ranges(self)
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` is {self.hidden_size}, which is not divisible by `num_attention_heads`"
                f" ({self.num_attention_heads}); choose a multiple of it."
            )
        if self.image_size % self.patch_size:
            nearest = max(1, round(self.image_size / self.patch_size)) * self.patch_size
            raise ValueError(
                f"`image_size` is {self.image_size}, which is not a multiple of `patch_size` ({self.patch_size});"
                f" the nearest that fits is {nearest}."
            )
        from transformers.activations import ACT2FN  # slow to import

        if self.hidden_act not in ACT2FN:
            raise ValueError(f'`hidden_act` is "{self.hidden_act}", which is not an activation of transformers.')
        for name in ("classifier_num_layers", "segmentation_num_layers"):
            if getattr(self, name) > self.num_hidden_layers:
                raise ValueError(
                    f"`{name}` is {getattr(self, name)}; it must be between 1 and `num_hidden_layers`"
                    f" ({self.num_hidden_layers})."
                )
        if self.depth_layers is not None and not set(self.depth_layers) <= set(range(self.num_hidden_layers)):
            raise ValueError(
                f"`depth_layers` is {self.depth_layers}; it must hold blocks from 0 to {self.num_hidden_layers - 1}."
            )
        if self.min_depth >= self.max_depth:
            raise ValueError(
                f"`min_depth` is {self.min_depth} and `max_depth` is {self.max_depth}; the first must be below the"
                " second."
            )


# Fields of transformers' own configurations that ours lacks: options of training that no released model uses.
STOCK_ONLY_FIELDS = ("hidden_dropout_prob", "attention_probs_dropout_prob", "use_mask_token")
# The original's interpolation of the position embeddings for each stock kind. Stock configurations do not contain it.
STOCK_INTERPOLATION = {
    "dinov2": {"num_register_tokens": 0, "interpolate_offset": 0.1, "interpolate_antialias": False},
    "dinov2_with_registers": {"num_register_tokens": 4, "interpolate_offset": 0.0, "interpolate_antialias": True},
}


def from_stock_values(values: dict[str, Any], source: str) -> dict[str, Any]:
    """
    The fields of a config.json as fields of `DINOv2Config`.

    Args:
        values: of our own `model_type` (returned as they are), of stock `dinov2` or of `dinov2_with_registers`.
        source: the folder or Hub id, for messages.

    Raises:
        `ValueError`: `model_type` is another one, or a stock model has images or patches that are not square.
    """
    model_type = values.get("model_type", DINOv2Config.model_type)
    if model_type == DINOv2Config.model_type:
        return values
    if model_type not in STOCK_INTERPOLATION:
        advice = ""
        if model_type == f"{DINOv2Config.model_type}_pretraining":
            advice = (
                " (a DINOv2ForPreTraining, which AutoModelForPreTraining loads; its backbone was exported to `model`)"
            )
        raise ValueError(
            f"{source} holds a model of type `{model_type}`{advice}, but `{DINOv2Config.model_type}`, `dinov2` or"
            " `dinov2_with_registers` is needed."
        )
    defaults = {**STOCK_INTERPOLATION[model_type], "image_size": 224}
    defaults["patch_size"] = 14 if model_type == "dinov2" else 16  # the default of the stock classes
    dropped = (*STOCK_ONLY_FIELDS, "auto_map", "architectures")
    translated = defaults | {name: value for name, value in values.items() if name not in dropped}
    for name in ("image_size", "patch_size"):
        if isinstance(translated[name], list | tuple):
            if len(set(translated[name])) > 1:
                raise ValueError(
                    f"`{name}` of {source} is {translated[name]}, but one number, for squares, is needed."
                )
            translated[name] = translated[name][0]
    return translated | {"model_type": DINOv2Config.model_type}
