"""
The DINOv2 vision transformer (paper: Oquab et al. 2024; registers: Darcet et al. 2024).

Parameter names are those of the checkpoints on the Hub (`encoder.layer.0.attention.attention.query.weight`, ...), so
released weights are loaded and weights are saved without renaming.

Shapes: `B` images, `N = h * w` patches, `R` register tokens, `T = 1 + R + N` tokens in the order CLS, registers,
patches, `D` hidden size.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from transformers import initialization as init
from transformers.activations import ACT2FN
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import BaseModelOutput, BaseModelOutputWithPooling
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS, PreTrainedModel
from transformers.utils.generic import can_return_tuple, merge_with_config_defaults
from transformers.utils.output_capturing import capture_outputs

from .checkpoint_keys import SavesCheckpointKeysAsTheyAre, register_stock_keys
from .configuration_dinov2 import DINOv2Config
from .crop_packing import CropPacking, KeptCrops, draw_kept_crops, pack_crops, split_heads, unpack_crops
from .patch_map import patch_map
from .position_interpolation import interpolate_position_embeddings, remembered_position_embeddings
from .residual_stream import ResidualStream, add_in_stream, add_plainly, first_of_branch, last_of_branch, may_fuse
from .residual_stream import is_eager_training as is_eager_training_of
from .swiglu import swiglu


class DINOv2PatchEmbeddings(nn.Module):
    """Image `(B, C, H, W)` to patch tokens `(B, N, D)`, row by row."""

    def __init__(self, config: DINOv2Config):
        super().__init__()
        self.patch_size = config.patch_size
        self.num_channels = config.num_channels
        self.projection = nn.Conv2d(
            config.num_channels, config.hidden_size, kernel_size=config.patch_size, stride=config.patch_size
        )

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        if pixel_values.ndim != 4:
            advice = "; for one image give `pixel_values[None]`" if pixel_values.ndim == 3 else ""
            raise ValueError(
                f"`pixel_values` has the shape {tuple(pixel_values.shape)}, but four dimensions are expected: images,"
                f" {self.num_channels} channels, height and width{advice}."
            )
        _, channels, height, width = pixel_values.shape
        if channels != self.num_channels:
            raise ValueError(
                f"`pixel_values` has {channels} channels; this model was configured for {self.num_channels}."
            )
        if height % self.patch_size or width % self.patch_size:
            raise ValueError(
                f"`pixel_values` is {height} x {width} pixels; both must be multiples of the patch size,"
                f" {self.patch_size}."
            )
        if not torch.is_autocast_enabled(pixel_values.device.type):  # autocast rounds them directly
            pixel_values = pixel_values.to(self.projection.weight.dtype)
        return self.projection(pixel_values).flatten(2).transpose(1, 2)


class DINOv2Embeddings(nn.Module):
    """Patches, mask token, CLS, positions and registers: everything before the first block."""

    def __init__(self, config: DINOv2Config):
        super().__init__()
        self.cls_token = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.mask_token = nn.Parameter(torch.zeros(1, config.hidden_size))
        self.register_tokens: nn.Parameter | None = None
        if config.num_register_tokens > 0:
            self.register_tokens = nn.Parameter(torch.zeros(1, config.num_register_tokens, config.hidden_size))
        num_patches = (config.image_size // config.patch_size) ** 2
        self.position_embeddings = nn.Parameter(torch.zeros(1, 1 + num_patches, config.hidden_size))
        self.patch_embeddings = DINOv2PatchEmbeddings(config)
        self.interpolate_offset = config.interpolate_offset
        self.interpolate_antialias = config.interpolate_antialias

    def forward(self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None) -> torch.Tensor:
        # Under autocast the projection is half precision. The residual stream is not, because updates scaled by a
        # LayerScale of 1e-5 would be rounded away.
        tokens = self.patch_embeddings(pixel_values).to(self.position_embeddings.dtype)
        if bool_masked_pos is not None:
            # Before the positions are added: a masked token keeps its position.
            tokens = torch.where(bool_masked_pos.unsqueeze(-1), self.mask_token, tokens)
        tokens = torch.cat([self.cls_token.expand(tokens.shape[0], -1, -1), tokens], dim=1)
        patch_size = self.patch_embeddings.patch_size
        grid = (pixel_values.shape[-2] // patch_size, pixel_values.shape[-1] // patch_size)
        tokens = tokens + remembered_position_embeddings(
            self, self.position_embeddings, grid, offset=self.interpolate_offset, antialias=self.interpolate_antialias
        )
        if self.register_tokens is not None:
            # After the positions: registers have none.
            registers = self.register_tokens.expand(tokens.shape[0], -1, -1)
            tokens = torch.cat([tokens[:, :1], registers, tokens[:, 1:]], dim=1)
        return tokens

    def positions(self, grid: tuple[int, int]) -> torch.Tensor:
        """Position embeddings of CLS and patches for a grid of `(h, w)` patches, `(1, 1 + h * w, D)`."""
        return interpolate_position_embeddings(
            self.position_embeddings, grid, offset=self.interpolate_offset, antialias=self.interpolate_antialias
        )


def eager_attention_forward(
    module: nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float,
    dropout: float = 0.0,
    **kwargs,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Eager attention, `(B, heads, T, head_dim)` to `(B, T, heads, head_dim)`; only this one returns weights."""
    weights = torch.softmax(query @ key.transpose(-1, -2) * scaling, dim=-1)
    return (weights @ value).transpose(1, 2), weights


class DINOv2SelfAttention(nn.Module):
    """Multi-head self-attention through transformers' attention interface (eager, SDPA, flash, flex, own)."""

    is_causal = False

    def __init__(self, config: DINOv2Config):
        super().__init__()
        self.config = config
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.query = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.key = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)
        self.value = nn.Linear(config.hidden_size, config.hidden_size, bias=config.qkv_bias)

    def forward(
        self,
        hidden_states: torch.Tensor,
        crop_packing: CropPacking | None = None,
        stream: ResidualStream | None = None,
        **kwargs,
    ) -> tuple[torch.Tensor | tuple[torch.Tensor, ...], torch.Tensor | None]:
        """
        `(B, T, D)` to `(B, T, D)` and the attention weights, if there are any; a packed sequence to `(n_i, t_i, D)`
        for each resolution.
        """
        attention: Callable = ALL_ATTENTION_FUNCTIONS.get_interface(
            self.config._attn_implementation, eager_attention_forward
        )
        outputs, weights = [], None
        for heads in self.heads(hidden_states, crop_packing, stream):
            context, weights = attention(self, *heads, None, scaling=self.head_dim**-0.5, dropout=0.0, **kwargs)
            outputs.append(context.flatten(-2))
        return (outputs[0], weights) if crop_packing is None else (tuple(outputs), None)

    def heads(
        self, hidden_states: torch.Tensor, crop_packing: CropPacking | None, stream: ResidualStream | None
    ) -> list[tuple[torch.Tensor, ...]]:
        """Query, key and value `(n, heads, t, head_dim)` of each resolution."""
        projections = (self.query, self.key, self.value)
        if torch.is_grad_enabled() and all(map(may_fuse, projections)):
            qkv = first_of_branch(projections, hidden_states, stream)
            if crop_packing is not None:
                return split_heads(qkv, crop_packing, self.head_dim)
            return [qkv.unflatten(-1, (3, -1, self.head_dim)).permute(2, 0, 3, 1, 4).unbind()]
        device_type = hidden_states.device.type
        if not torch.is_grad_enabled() and torch.is_autocast_enabled(device_type):
            # Cast once; autocast would do it for each of the three. With gradients, their sum must stay float32.
            hidden_states = hidden_states.to(torch.get_autocast_dtype(device_type))
        parts = [
            projection(hidden_states).view(*hidden_states.shape[:-1], -1, self.head_dim) for projection in projections
        ]
        groups = (
            [parts]
            if crop_packing is None
            else zip(*(unpack_crops(part, crop_packing) for part in parts), strict=True)
        )
        return [tuple(part.transpose(1, 2) for part in group) for group in groups]


class DINOv2SelfOutput(nn.Module):
    """The output projection of attention. It is a separate module because checkpoints have its name."""

    def __init__(self, config: DINOv2Config):
        super().__init__()
        self.dense = nn.Linear(config.hidden_size, config.hidden_size)

    def forward(
        self, hidden_states: torch.Tensor | tuple[torch.Tensor, ...], stream: ResidualStream | None = None
    ) -> torch.Tensor:
        return last_of_branch(self.dense, hidden_states, stream)


class DINOv2Attention(nn.Module):
    def __init__(self, config: DINOv2Config):
        super().__init__()
        self.attention = DINOv2SelfAttention(config)
        self.output = DINOv2SelfOutput(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        crop_packing: CropPacking | None = None,
        stream: ResidualStream | None = None,
        **kwargs,
    ) -> torch.Tensor:
        context, _ = self.attention(hidden_states, crop_packing, stream, **kwargs)
        return self.output(context, stream)


class DINOv2LayerScale(nn.Module):
    """A learned factor for every channel of a residual branch."""

    def __init__(self, config: DINOv2Config):
        super().__init__()
        self.lambda1 = nn.Parameter(torch.full((config.hidden_size,), float(config.layerscale_value)))

    def forward(self, hidden_states: torch.Tensor, added_to: torch.Tensor | None = None) -> torch.Tensor:
        if added_to is None:
            return hidden_states * self.lambda1
        # One pass over memory. Autocast would make a copy first.
        with torch.autocast(hidden_states.device.type, enabled=False):
            return torch.addcmul(added_to, hidden_states, self.lambda1)


class DINOv2MLP(nn.Module):
    def __init__(self, config: DINOv2Config):
        super().__init__()
        hidden_features = int(config.hidden_size * config.mlp_ratio)
        self.activation = ACT2FN[config.hidden_act]
        self.fc1 = nn.Linear(config.hidden_size, hidden_features)
        self.fc2 = nn.Linear(hidden_features, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, stream: ResidualStream | None = None) -> torch.Tensor:
        hidden_states = first_of_branch((self.fc1,), hidden_states, stream)
        return last_of_branch(self.fc2, self.activation(hidden_states), stream)


class DINOv2SwiGLUFFN(nn.Module):
    """`weights_out(silu(a) * g)` with `(a, g) = weights_in(x)`; width two thirds of the MLP, rounded to 8."""

    def __init__(self, config: DINOv2Config):
        super().__init__()
        hidden_features = 8 * ((int(int(config.hidden_size * config.mlp_ratio) * 2 / 3) + 7) // 8)
        self.weights_in = nn.Linear(config.hidden_size, 2 * hidden_features)
        self.weights_out = nn.Linear(hidden_features, config.hidden_size)

    def forward(self, hidden_states: torch.Tensor, stream: ResidualStream | None = None) -> torch.Tensor:
        hidden_states = first_of_branch((self.weights_in,), hidden_states, stream)
        return last_of_branch(self.weights_out, swiglu(hidden_states), stream)


class DINOv2Layer(GradientCheckpointingLayer):
    """
    One pre-norm block: `x + ls1(attention(norm1(x)))`, then `x + ls2(mlp(norm2(x)))`.

    In training with `drop_path_rate > 0` each branch runs on a random subset of the crops only and is scaled up to
    keep its mean (efficient stochastic depth); the two branches draw independently.
    """

    def __init__(self, config: DINOv2Config):
        super().__init__()
        self.drop_path_rate = config.drop_path_rate
        self.norm1 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.attention = DINOv2Attention(config)
        self.layer_scale1 = DINOv2LayerScale(config)
        self.norm2 = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.mlp = DINOv2SwiGLUFFN(config) if config.use_swiglu_ffn else DINOv2MLP(config)
        self.layer_scale2 = DINOv2LayerScale(config)

    def forward(
        self,
        hidden_states: torch.Tensor,
        crop_packing: CropPacking | None = None,
        kept: Sequence[KeptCrops] | None = None,
        is_inner: tuple[bool, bool] = (False, False),
        **kwargs,
    ) -> torch.Tensor:
        """
        Args:
            hidden_states: `(B, T, D)`, or `(1, sum_i n_i * t_i, D)` laid out as `crop_packing` says; the same shape
                comes out.
            kept: the crops that each of the two branches processes; by default drawn here.
            is_inner: whether only the previous block has the input, and only the next block gets the output.
        """
        shape = hidden_states.shape
        if self.training and self.drop_path_rate > 0:
            if crop_packing is None:
                hidden_states, crop_packing = pack_crops([hidden_states])
            kept = kept or draw_kept_crops(crop_packing, self.drop_path_rate, hidden_states.device, num_branches=2)
            seen: Sequence[KeptCrops | None] = kept
        else:
            seen = (None, None)

        def attend(tokens: torch.Tensor, packing: CropPacking | None, stream: ResidualStream | None) -> torch.Tensor:
            return self.attention(tokens, packing, stream, **kwargs)

        def feed_forward(tokens: torch.Tensor, _, stream: ResidualStream | None) -> torch.Tensor:
            return self.mlp(tokens, stream)

        add_branch = add_in_stream if self.is_eager_training() else add_plainly
        hidden_states = add_branch(
            hidden_states, self.norm1, attend, self.layer_scale1, crop_packing, seen[0],
            is_own=is_inner[0], is_gradient_own=True,
        )  # fmt: skip
        hidden_states = add_branch(
            hidden_states, self.norm2, feed_forward, self.layer_scale2, crop_packing, seen[1],
            is_own=True, is_gradient_own=is_inner[1],
        )  # fmt: skip
        # No view if none is needed: FSDP2 adds hooks to the output, and warns about views.
        return hidden_states if hidden_states.shape == shape else hidden_states.view(shape)

    def is_eager_training(self) -> bool:
        """Whether the branches may use the fused path of residual_stream.py."""
        layers = [*self.attention.attention.children(), *self.attention.output.children(), *self.mlp.children()]
        return is_eager_training_of(self, tuple(layer for layer in layers if list(layer.parameters())))


class DINOv2PreTrainedModel(SavesCheckpointKeysAsTheyAre, PreTrainedModel):
    config: DINOv2Config
    base_model_prefix = "dinov2"
    main_input_name = "pixel_values"
    input_modalities = ["image"]
    supports_gradient_checkpointing = True
    _no_split_modules = ["DINOv2Embeddings", "DINOv2Layer"]
    _supports_sdpa = True
    _supports_flash_attn = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {"hidden_states": DINOv2Layer, "attentions": DINOv2SelfAttention}
    _input_embed_layer = "patch_embeddings"
    model_tags = ["dinov2"]

    @torch.no_grad()
    def _init_weights(self, module: nn.Module):
        std = self.config.initializer_range
        if isinstance(module, nn.Linear):
            init.trunc_normal_(module.weight, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        elif isinstance(module, nn.Conv2d):
            # The original leaves the patch projection at PyTorch's default.
            bound = (module.in_channels * module.kernel_size[0] * module.kernel_size[1]) ** -0.5
            for parameter in module.parameters():
                init.uniform_(parameter, -bound, bound)
        elif isinstance(module, nn.LayerNorm):
            init.ones_(module.weight)
            init.zeros_(module.bias)
        elif isinstance(module, DINOv2LayerScale):
            init.constant_(module.lambda1, float(self.config.layerscale_value))
        elif isinstance(module, DINOv2Embeddings):
            init.trunc_normal_(module.position_embeddings, std=std)
            init.normal_(module.cls_token, std=1e-6)
            init.zeros_(module.mask_token)
            if module.register_tokens is not None:
                init.normal_(module.register_tokens, std=1e-6)
        elif isinstance(module, nn.BatchNorm2d):
            super()._init_weights(module)  # also running averages, whose memory `from_pretrained` leaves uninitialised


class DINOv2Encoder(DINOv2PreTrainedModel):
    def __init__(self, config: DINOv2Config):
        super().__init__(config)
        self.layer = nn.ModuleList([DINOv2Layer(config) for _ in range(config.num_hidden_layers)])
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs(tie_last_hidden_states=False)
    def forward(
        self, hidden_states: torch.Tensor, crop_packing: CropPacking | None = None, **kwargs
    ) -> BaseModelOutput:
        kept: list[tuple[KeptCrops, KeptCrops] | None] = [None] * len(self.layer)
        rate: float = self.layer[0].drop_path_rate  # type: ignore[assignment]  # the list knows modules only
        if self.training and rate > 0:
            packing = crop_packing or CropPacking(hidden_states.shape[:1], hidden_states.shape[1:2])
            draws = draw_kept_crops(packing, rate, hidden_states.device, num_branches=2 * len(self.layer))
            kept = list(zip(draws[::2], draws[1::2], strict=True))
        is_observed = crop_packing is None or any(
            layer.gradient_checkpointing or layer._forward_hooks or layer._forward_pre_hooks for layer in self.layer
        )
        last = len(self.layer) - 1
        for index, layer in enumerate(self.layer):
            is_inner = (not is_observed and index > 0, not is_observed and index < last)
            hidden_states = layer(hidden_states, crop_packing, kept[index], is_inner, **kwargs)
        return BaseModelOutput(last_hidden_state=hidden_states)


class DINOv2Model(DINOv2PreTrainedModel):
    """
    The backbone, which `AutoModel` loads.

    `last_hidden_state` contains CLS, registers and patches after the final norm; `pooler_output` is its CLS token.
    """

    def __init__(self, config: DINOv2Config):
        super().__init__(config)
        self.embeddings = DINOv2Embeddings(config)
        self.encoder = DINOv2Encoder(config)
        self.layernorm = nn.LayerNorm(config.hidden_size, eps=config.layer_norm_eps)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor, bool_masked_pos: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        r"""
        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): normalised images; `H` and `W` multiples of the
                patch size, in any ratio.
            bool_masked_pos (`torch.BoolTensor` of shape `(B, N)`, *optional*): patches to replace by the mask token.

        Returns:
            `last_hidden_state` `(B, 1 + R + N, D)`, `pooler_output` `(B, D)`, and, on request, `hidden_states` (before
            the final norm; index 0 is the input of the first block) and `attentions`.

        Raises:
            `ValueError`: when `H` or `W` is not a multiple of the patch size, or `C` is not `num_channels`.
        """
        outputs = self.encoder(self.embeddings(pixel_values, bool_masked_pos), **kwargs)
        last_hidden_state = self.layernorm(outputs.last_hidden_state)
        return BaseModelOutputWithPooling(
            last_hidden_state=last_hidden_state,
            pooler_output=last_hidden_state[:, 0],
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )

    def get_intermediate_layers(
        self,
        pixel_values: torch.Tensor,
        n: int | Sequence[int] = 1,
        reshape: bool = False,
        return_class_token: bool = False,
        norm: bool = True,
    ) -> tuple[torch.Tensor | tuple[torch.Tensor, torch.Tensor], ...]:
        r"""
        Patch tokens after chosen blocks, like the original's method of this name: without registers, and with blocks
        in the order of depth.

        Args:
            pixel_values (`torch.Tensor` of shape `(B, C, H, W)`): normalised images.
            n: the last `n` blocks, or 0-based block numbers.
            reshape: patches as maps `(B, D, h, w)` instead of `(B, N, D)`.
            return_class_token: `(patches, cls)` pairs with the CLS token `(B, D)` of each block.
            norm: apply the final norm to every block's tokens.

        Raises:
            `ValueError`: `n` is not a number of blocks, or names a block that does not exist, or names a block twice.
        """
        depth = len(self.encoder.layer)
        blocks = list(range(depth - n, depth)) if isinstance(n, int) else list(n)
        if not blocks or len(set(blocks)) < len(blocks) or not set(blocks) <= set(range(depth)):
            raise ValueError(
                f"`n` is {n}; it must be a number from 1 to {depth}, or different blocks from 0 to {depth - 1}."
            )
        tokens, outputs = self.embeddings(pixel_values), []
        for index, layer in enumerate(self.encoder.layer[: max(blocks) + 1]):
            tokens = layer(tokens)
            if index not in blocks:
                continue
            normed = self.layernorm(tokens) if norm else tokens
            patches = normed[:, 1 + self.config.num_register_tokens :]
            if reshape:
                patches = patch_map(normed, pixel_values, self.config)
            outputs.append((patches, normed[:, 0]) if return_class_token else patches)
        return tuple(outputs)

    def forward_crops(
        self,
        crops: Sequence[torch.Tensor],
        masks: Sequence[torch.Tensor | None] | None = None,
        packed: bool | None = None,
        norm: bool = True,
    ) -> list[torch.Tensor]:
        r"""
        Process several resolutions. The result equals one `forward` for each.

        Args:
            crops: images `(n_i, C, H_i, W_i)` of each resolution.
            masks: for each resolution `None` or `(n_i, N_i)` booleans, as `bool_masked_pos`.
            packed: run all resolutions as one sequence, which saves launches on an accelerator. `None`: on every
                device except a CPU, where packed ViT-S steps took 0.99 to 1.13 of the time of separate passes.
            norm: apply the final norm. A caller that needs few of the tokens can apply `layernorm` to these alone.

        Returns:
            For each resolution the tokens `(n_i, 1 + R + N_i, D)`, after the final norm or before it.
        """
        masks = masks if masks is not None else [None] * len(crops)
        if not (packed if packed is not None else crops[0].device.type != "cpu"):
            pairs = zip(crops, masks, strict=True)
            encoded = [self.encoder(self.embeddings(crop, mask)).last_hidden_state for crop, mask in pairs]
            return [self.layernorm(one) for one in encoded] if norm else encoded
        tokens, packing = pack_crops([self.embeddings(crop, mask) for crop, mask in zip(crops, masks, strict=True)])
        tokens = self.encoder(tokens, crop_packing=packing).last_hidden_state
        return unpack_crops(self.layernorm(tokens) if norm else tokens, packing)


register_stock_keys(DINOv2Model.__name__)
