"""Lets the products of a layer compute the norm or the activation before them, in one call of our own kernels.

For one token, torch's functions for these took a tenth of a draft's pass.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn

from specgen.models.decoder import Layer
from specgen.models.formats import NativeLinear
from specgen.models.forward_pass import Function, Norm
from specgen.models.native_weight import Prologue
from specgen.models.vector_code import GATE, NORM


@dataclass(slots=True)
class FusedFeedForward:
    """A gated feed-forward.

    Args:
        widen: Gate and up projections, outputs side by side.
        narrow: The activation and the down projection.
    """

    widen: Function
    narrow: Function

    def __call__(self, hidden: Tensor) -> Tensor:
        return self.narrow(self.widen(hidden))


def fuse(layer: Layer) -> Layer:
    """Changes what a layer computes with, where its products run on our own kernels. Returns the layer."""
    attend, feed_forward = layer.attention, layer.mlp
    spec, whole = attend.function.spec, layer.function
    if (project := after_norm(attend.qkv_proj, layer.attention_in)) is not None:
        attend.function.project, whole.attention_in = project, None
    widen: Callable[[Tensor], Tensor] | None = after_norm(feed_forward.gate_up_proj, layer.mlp_in)
    if widen is not None:
        whole.mlp_in = None
    narrow = feed_forward.down_proj
    if spec.activation == "silu" and isinstance(narrow, NativeLinear):
        plain: Function = feed_forward.gate_up_proj.forward
        whole.feed_forward = FusedFeedForward(widen or plain, partial(narrow.after, Prologue(GATE)))
    elif widen is not None:
        _, _, narrowed = feed_forward.function.args
        whole.feed_forward = partial(feed_forward.function.func, spec, widen, narrowed)
    return layer


def after_norm(product: nn.Module, norm: Norm | None) -> Function | None:
    """Returns a product with the norm before it, or None if they can't be one call."""
    if not isinstance(product, NativeLinear) or norm is None or norm.weight.dtype != torch.float32:
        return None
    return partial(product.after, Prologue(NORM, norm.weight.detach().contiguous(), norm.spec.norm_epsilon))
