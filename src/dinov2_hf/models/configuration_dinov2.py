"""Configuration of the DINOv2 vision transformer."""

from huggingface_hub.dataclasses import strict
from transformers import PreTrainedConfig
from transformers.activations import ACT2FN


@strict
class DINOv2Config(PreTrainedConfig):
    r"""
    What shapes a DINOv2 network. Field names follow transformers' own `Dinov2Config`; the released sizes are

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

    Raises:
        `ValueError`: when sizes do not divide as said above, or a rate is out of range.
    """

    model_type = "dinov2_hf"

    hidden_size: int = 768
    num_hidden_layers: int = 12
    num_attention_heads: int = 12
    mlp_ratio: float | int = 4
    hidden_act: str = "gelu"
    use_swiglu_ffn: bool = False
    layerscale_value: float | int = 1.0
    drop_path_rate: float | int = 0.0
    layer_norm_eps: float | int = 1e-6
    initializer_range: float | int = 0.02
    image_size: int = 224
    patch_size: int = 14
    num_channels: int = 3
    qkv_bias: bool = True
    num_register_tokens: int = 0
    interpolate_offset: float | int = 0.1
    interpolate_antialias: bool = False

    def validate_architecture(self):
        """Part of `@strict`: runs after the fields are set."""
        if self.num_attention_heads < 1 or self.hidden_size % self.num_attention_heads:
            raise ValueError(
                f"`hidden_size` is {self.hidden_size}, which does not divide into `num_attention_heads`"
                f" ({self.num_attention_heads}); choose a multiple of it."
            )
        if self.patch_size < 1 or self.image_size < self.patch_size or self.image_size % self.patch_size:
            nearest = max(1, round(self.image_size / max(self.patch_size, 1))) * self.patch_size
            raise ValueError(
                f"`image_size` is {self.image_size}, which is not a multiple of `patch_size` ({self.patch_size});"
                f" the nearest that fits is {nearest}."
            )
        if self.hidden_act not in ACT2FN:
            raise ValueError(f'`hidden_act` is "{self.hidden_act}", which is no activation that transformers knows.')
        if not 0 <= self.drop_path_rate < 1:
            raise ValueError(f"`drop_path_rate` is {self.drop_path_rate}; it must be at least 0 and below 1.")
