"""
Projection heads (paper, section 4): an MLP, an L2-normalised bottleneck and weight-normalised prototypes.

Shapes: `n` CLS tokens, `M` patches, `D` hidden size, `d` bottleneck size, `K` prototypes.
"""

import torch
from torch import nn

from ..models import DINOv2Config, DINOv2Model
from .configuration_dinov2_pretraining import DINOv2PreTrainingConfig
from .logit_chunks import LogitChunks


class Prototypes(nn.Module):
    """
    Linear map without bias whose `K` rows are `g_k * v_k / |v_k|`. Both the gains and the directions are trained and
    averaged into the teacher; the parameter names are the original's.
    """

    def __init__(self, bottleneck_size: int, num_prototypes: int):
        super().__init__()
        self.weight_g = nn.Parameter(torch.ones(num_prototypes, 1))
        self.weight_v = nn.Parameter(torch.empty(num_prototypes, bottleneck_size))
        nn.init.uniform_(self.weight_v, -(bottleneck_size**-0.5), bottleneck_size**-0.5)

    def forward(self, hidden_states: torch.Tensor | None = None) -> torch.Tensor:
        """`(..., bottleneck_size)` to logits `(..., K)`; without an input, the matrix `(K, bottleneck_size)`."""
        # FSDP2 gives weights as bf16. A norm rounded to bf16 would scale a whole row of logits by up to 0.4 %.
        direction = self.weight_v.float()
        weight = direction * (self.weight_g / direction.norm(dim=1, keepdim=True))
        weight = weight.to(self.weight_v.dtype)
        return weight if hidden_states is None else nn.functional.linear(hidden_states, weight)


class ProjectionHead(nn.Module):
    """
    Tokens `(..., D)` to prototype logits `(..., K)`.

    Args:
        hidden_size: width `D` of the tokens.
        num_prototypes: outputs `K`.
        head_hidden_size: width of the hidden layers.
        bottleneck_size: width of the L2-normalised representation before the prototypes.
        num_layers: linear layers before the prototypes; 1 is a single projection.
    """

    def __init__(
        self, hidden_size: int, num_prototypes: int, *, head_hidden_size: int, bottleneck_size: int, num_layers: int
    ):
        super().__init__()
        widths = [hidden_size] + [head_hidden_size] * (num_layers - 1) + [bottleneck_size]
        layers: list[nn.Module] = []
        for width_in, width_out in zip(widths, widths[1:], strict=False):
            layers += [nn.Linear(width_in, width_out), nn.GELU()]
        self.mlp = nn.Sequential(*layers[:-1])
        self.last_layer = Prototypes(bottleneck_size, num_prototypes)

    def forward(
        self, hidden_states: torch.Tensor, factored: bool = False
    ) -> torch.Tensor | tuple[torch.Tensor, torch.Tensor]:
        """
        Args:
            factored: return the two factors of the logits, `(..., bottleneck_size)` and `(K, bottleneck_size)`, if
                there are too many logits to hold them at once.
        """
        hidden_states = self.mlp(hidden_states)
        # In float32, as autocast does it on a GPU but not on a CPU; in fp16 the norm of a zero vector would be NaN.
        dtype = hidden_states.dtype
        hidden_states = nn.functional.normalize(hidden_states.float(), dim=-1).to(dtype)
        # Both use a call of the module, because sharded backends gather its weights there.
        return (hidden_states, self.last_layer()) if factored else self.last_layer(hidden_states)


class BackboneWithHeads(nn.Module):
    """A backbone and its projection heads; `ibot_head` is `None` when patches share the DINO head."""

    def __init__(self, config: DINOv2PreTrainingConfig, backbone_config: DINOv2Config):
        super().__init__()
        self.backbone = DINOv2Model(backbone_config)
        shape = {"head_hidden_size": config.head_hidden_size, "num_layers": config.head_num_layers}
        self.dino_head = ProjectionHead(
            backbone_config.hidden_size, config.num_prototypes, bottleneck_size=config.bottleneck_size, **shape
        )
        self.ibot_head = None
        if config.separate_ibot_head:
            self.ibot_head = ProjectionHead(
                backbone_config.hidden_size,
                config.num_patch_prototypes,
                bottleneck_size=config.ibot_bottleneck_size or config.bottleneck_size,
                **shape,
            )

    def project(
        self, cls_tokens: torch.Tensor, patch_tokens: torch.Tensor | None, chunk_size: int
    ) -> tuple[LogitChunks, LogitChunks | None]:
        """CLS tokens `(n, D)` and patch tokens `(M, D)`, if any, to logits; a shared head is called only once."""
        if patch_tokens is None:
            return _logits(self.dino_head(cls_tokens, factored=True), chunk_size), None
        if self.ibot_head is not None:
            cls, patches = self.dino_head(cls_tokens, factored=True), self.ibot_head(patch_tokens, factored=True)
        else:
            rows, prototypes = self.dino_head(torch.cat([cls_tokens, patch_tokens]), factored=True)
            cls, patches = ((part, prototypes) for part in rows.split([len(cls_tokens), len(patch_tokens)]))
        return _logits(cls, chunk_size), _logits(patches, chunk_size)


def _logits(factors: tuple[torch.Tensor, torch.Tensor], chunk_size: int) -> LogitChunks:
    """Logits in the dtype in which autocast would multiply."""
    rows, prototypes = factors
    if torch.is_autocast_enabled(rows.device.type):
        dtype = torch.get_autocast_dtype(rows.device.type)
        rows, prototypes = rows.to(dtype), prototypes.to(dtype)
    return LogitChunks(rows, prototypes, chunk_size)
