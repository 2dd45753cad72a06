"""Runs a decoder's layers over few rows on CUDA by nine kernels a layer.

Plain passes take twice as many, and most of the time of a small model is spent between kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from specgen.models.decoder_spec import DecoderSpec
from specgen.models.fused.attention import FewRowsAttention
from specgen.models.fused.products import FewRowsProduct, Parts, product_of, split
from specgen.models.fused.support import launch_options, launching_on
from specgen.models.static.kv_views import StoredLayer, Visible

if TYPE_CHECKING:
    from specgen.models.decoder import Layer
    from specgen.models.forward_pass import Norm


@dataclass(frozen=True, slots=True)
class _FusedLayer:
    layer: Layer
    qkv: FewRowsProduct
    output: FewRowsProduct
    widen: FewRowsProduct
    narrow: FewRowsProduct


class FusedLayers:
    """Consecutive layers.

    Args:
        spec: The decoder, with these layers only.
        layers: On one CUDA device, in 16 bits.
    """

    def __init__(self, spec: DecoderSpec, layers: Sequence[Layer]) -> None:
        self._spec = spec
        self._layers = [
            _FusedLayer(
                layer,
                product_of(layer.attention.qkv_proj),
                product_of(layer.attention.o_proj),
                product_of(layer.mlp.gate_up_proj),
                product_of(layer.mlp.down_proj),
            )
            for layer in layers
        ]
        self._attention = FewRowsAttention(spec)

    @property
    def has_exact_rows(self) -> bool:
        """Whether a row has the same result, bit for bit, for any number of rows."""
        products = [(layer.qkv, layer.output, layer.widen, layer.narrow) for layer in self._layers]
        return all(product.has_exact_rows for layer in products for product in layer)

    def run(self, hidden: Tensor, visible: Visible, stored: Sequence[StoredLayer]) -> Tensor:
        """Turns inputs of the first layer `[rows, hidden]` into outputs of the last.

        Args:
            hidden: The inputs.
            visible: Where the rows are, and what they see.
            stored: The cache of each layer.
        """
        with launching_on(hidden):
            return self._run(hidden, visible, stored)

    def _run(self, hidden: Tensor, visible: Visible, stored: Sequence[StoredLayer]) -> Tensor:
        residual, added = hidden, None
        out_norm: Norm | None = None
        for layer, cache in zip(self._layers, stored, strict=True):
            own = layer.layer
            residual, given = self._add(residual, added, (out_norm, own.attention_in), layer.qkv)
            projected = layer.qkv.parts(given)
            attended = self._attention.attend(
                projected, own.attention, visible, cache, is_split=layer.output.takes_split
            )
            norms = (own.attention_out, own.mlp_in)
            residual, given = self._add(residual, layer.output.parts(attended), norms, layer.widen)
            gated = layer.widen.gated(given, self._spec.activation, is_split=layer.narrow.takes_split)
            added = layer.narrow.parts(gated)
            out_norm = own.mlp_out
        return self._add(residual, added, (out_norm, None))[0]

    def _add(
        self,
        residual: Tensor,
        added: Parts | None,
        norms: tuple[Norm | None, Norm | None],
        next_product: FewRowsProduct | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Adds a product to the residual stream, with norms after it and before the next one.

        Returns:
            The stream and what the next product reads.
        """
        from specgen.models.fused.kernels.rows import add_and_norm

        rows, size = residual.shape
        out_norm, in_norm = norms
        is_split = next_product is not None and next_product.takes_split
        sums = residual if added is None else torch.empty_like(residual)
        normed = sums if in_norm is None else torch.empty_like(residual)
        spec, scale = self._spec, self._spec.residual_scale
        parts = residual if added is None else added.tensor
        bias = None if added is None else added.bias
        add_and_norm[(rows,)](
            residual,
            parts,
            residual if bias is None else bias,
            residual if out_norm is None else out_norm.weight,
            residual if in_norm is None else in_norm.weight,
            sums,
            normed,
            rows * size,
            size,
            spec.norm_epsilon,
            scale,
            HAS_ADDED=added is not None,
            NUM_PARTS=1 if added is None else added.count,
            HAS_BIAS=bias is not None,
            HAS_OUT_NORM=out_norm is not None,
            HAS_IN_NORM=in_norm is not None,
            HAS_SCALE=scale != 1.0,
            IS_SPLIT=is_split,
            BLOCK=1 << (size - 1).bit_length(),
            num_warps=8 if size > 1024 else 4,
            **launch_options(residual.device),
        )
        return sums, split(sums) if in_norm is None and is_split else normed
