"""The forward pass of Llama-like models for one text, without what transformers needs for all the other cases.

At one token a pass, transformers spends as much on masks, output classes, layer wrappers and copying the cache as on
the products. Here are the same operations in the same order, on a preallocated cache, with products of the same
inputs joined: the logits are transformers' own, bit for bit, and every model is checked for that before it is used.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from specgen.engine.model import CachedModel
from specgen.engine.products import Product, can_pack, fused, packed_copy, product

ARCHITECTURES = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
FIXED_ROPES = {"default", "linear", "llama3", "yarn"}
"""Rotations that depend on the position only, not on the length of the text."""
FIRST_CAPACITY = 512
"""Positions of a new cache; it doubles when it is full."""
NUM_CHECKED_LAYERS = 2
PROBE = ((1, 2, 3, 5, 8, 13), (21,), (34, 55, 2))
"""Passes of the comparison: a prompt, one token, several tokens."""


class LeanModel(CachedModel):
    """A `CachedModel` that runs the layers itself. Made by `lean_model`, which checks that it may.

    Args:
        model: A model of one of `ARCHITECTURES`.
        vocab_size: As in `CachedModel`.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        config, body = model.config, model.model
        self._num_kv_heads: int = config.num_key_value_heads
        self._head_size: int = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
        self._embedding: Tensor = body.embed_tokens.weight
        self._dtype: torch.dtype = body.norm.weight.dtype
        self._rotary = body.rotary_emb
        self._layers = [
            _Layer(layer, config.num_attention_heads, self._num_kv_heads, self._head_size)
            for layer in body.layers[: config.num_hidden_layers]
        ]
        self._norm = _Norm(body.norm)
        self._head: Product = product(model.lm_head)
        self._keys: list[Tensor] = []
        self._values: list[Tensor] = []
        super().__init__(model, vocab_size)

    def pack_head(self) -> None:
        """Compute the logits with a 4-bit copy of the head. For drafts only; nothing happens where it is not faster."""
        weight = self.model.get_output_embeddings().weight
        fits = weight.shape[0] % 32 == 0 and weight.shape[1] % 64 == 0  # the kernel's blocks
        if fits and weight.dtype == torch.bfloat16 and can_pack(weight.device):
            self._head = packed_copy(weight)

    def _new_cache(self) -> None:
        self.length = 0

    def _drop(self, num_removed: int) -> None:
        """Nothing to do: what lies behind `length` is overwritten."""

    def _reserve(self, length: int) -> None:
        """Make room for `length` positions, layer by layer, so that the old and the new cache are never both whole."""
        capacity = self._keys[0].shape[1] if self._keys else 0
        if length <= capacity:
            return
        capacity = max(FIRST_CAPACITY, 2 * capacity, length)
        like = self._embedding
        shape = (self._num_kv_heads, capacity, self._head_size)
        if not self._keys:
            self._keys = [torch.empty(0, 0, 0)] * len(self._layers)
            self._values = list(self._keys)
        for held in (self._keys, self._values):
            for index in range(len(self._layers)):
                room = torch.zeros(shape, dtype=self._dtype, device=like.device)
                if self.length:
                    room[:, : self.length] = held[index][:, : self.length]
                held[index] = room
        cos, sin = self._rotary(like[:1, :1].to(self._dtype), torch.arange(capacity, device=like.device)[None])
        # Negated once here, so that turning takes a roll and no pieces: x1 cos - x2 sin, x2 cos + x1 sin.
        sin = torch.cat([-sin[..., : self._head_size // 2], sin[..., self._head_size // 2 :]], dim=-1)
        self._cos, self._sin = cos[0][:, None], sin[0][:, None]

    def _run(self, new: Tensor, num_last: int) -> Tensor:
        first, last = self.length, self.length + new.shape[0]
        self._reserve(last)
        hidden = functional.embedding(new, self._embedding).to(self._dtype)
        turn = self._cos[first:last], self._sin[first:last]
        mask = None
        if first and new.shape[0] > 1:
            positions = torch.arange(last, device=new.device)
            mask = positions <= positions[first:, None]
        for layer, keys, values in zip(self._layers, self._keys, self._values, strict=True):
            hidden = layer(hidden, turn, keys, values, first, mask)
        return self._head(self._norm(hidden[-num_last:]))


class _Norm:
    """Root mean square norm, in transformers' order of operations: the scale is applied after rounding."""

    def __init__(self, module: Any) -> None:
        self.weight: Tensor = module.weight
        self.epsilon: float = module.variance_epsilon

    def __call__(self, hidden: Tensor) -> Tensor:
        wide = hidden.float()
        scale = torch.rsqrt(wide.pow(2).mean(-1, keepdim=True).add_(self.epsilon))
        return self.weight * (wide * scale).to(hidden.dtype)


class _Layer:
    """Attention and feed-forward of one layer, over its own part of the cache."""

    def __init__(self, module: Any, num_heads: int, num_kv_heads: int, head_size: int) -> None:
        attention, forward = module.self_attn, module.mlp
        self.norm_in, self.norm_out = _Norm(module.input_layernorm), _Norm(module.post_attention_layernorm)
        self.project = fused([attention.q_proj, attention.k_proj, attention.v_proj])
        self.collect = product(attention.o_proj)
        self.widen = fused([forward.gate_proj, forward.up_proj])
        self.narrow = product(forward.down_proj)
        self.norms = None
        if hasattr(attention, "q_norm"):
            self.norms = _Norm(attention.q_norm), _Norm(attention.k_norm)
        self.scale: float = attention.scaling
        self.num_heads, self.num_kv_heads, self.head_size = num_heads, num_kv_heads, head_size

    def __call__(
        self, hidden: Tensor, turn: tuple[Tensor, Tensor], keys: Tensor, values: Tensor, first: int, mask: Tensor | None
    ) -> Tensor:
        """`[n, hidden]` to the same; writes keys and values `[heads, capacity, head size]` from `first` on."""
        num_new, num_heads = hidden.shape[0], self.num_heads
        last = first + num_new
        heads = self.project(self.norm_in(hidden)).view(num_new, -1, self.head_size)
        turned = heads[:, : num_heads + self.num_kv_heads]
        if self.norms is not None:
            turned = torch.cat([self.norms[0](turned[:, :num_heads]), self.norms[1](turned[:, num_heads:])], dim=1)
        turned = turned * turn[0] + turned.roll(self.head_size // 2, -1) * turn[1]
        keys[:, first:last] = turned[:, num_heads:].transpose(0, 1)
        values[:, first:last] = heads[:, num_heads + self.num_kv_heads :].transpose(0, 1)
        seen = functional.scaled_dot_product_attention(
            turned[:, :num_heads].transpose(0, 1)[None],
            keys[None, :, :last],
            values[None, :, :last],
            attn_mask=mask,
            is_causal=mask is None and num_new > 1,
            scale=self.scale,
            enable_gqa=num_heads > self.num_kv_heads,
        )
        hidden = hidden + self.collect(seen[0].transpose(0, 1).reshape(num_new, -1))
        gate, up = self.widen(self.norm_out(hidden)).chunk(2, dim=-1)
        return hidden + self.narrow(functional.silu(gate) * up)


def lean_model(model: Any, vocab_size: int) -> CachedModel:
    """The fastest owner of a model's cache that computes what transformers computes.

    Args:
        model: A transformers causal language model in eval mode; its weights may move to other memory.
        vocab_size: As in `CachedModel`.

    Returns:
        A `LeanModel` if the model is of a known kind and its logits are transformers' own, bit for bit, in a short
        comparison over its first layers; otherwise a plain `CachedModel`.

    Raises:
        LoadError: As in `CachedModel`.
    """
    plain = CachedModel(model, vocab_size)
    if not _is_known(model):
        return plain
    config = model.config
    num_layers = config.num_hidden_layers
    try:
        # A few layers tell whether the operations are the same; comparing all would double the first second.
        config.num_hidden_layers = min(NUM_CHECKED_LAYERS, num_layers)
        expected = _probe(plain)
        found = _probe(LeanModel(model, vocab_size))
    finally:
        config.num_hidden_layers = num_layers
        plain.reset()
    if all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True)):
        return LeanModel(model, vocab_size)
    return plain


def _is_known(model: Any) -> bool:
    """Whether the layers are what `LeanModel` takes them for."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    rope = getattr(config, "rope_parameters", None)
    return (
        type(model).__name__ in ARCHITECTURES
        and getattr(config, "_attn_implementation", "") == "sdpa"
        and kinds == {"full_attention"}
        and isinstance(rope, dict)
        and rope.get("rope_type") in FIXED_ROPES
        and config.hidden_act == "silu"
        and len({parameter.device for parameter in model.parameters()}) == 1
    )


@torch.inference_mode()
def _probe(model: CachedModel) -> list[Tensor]:
    """Logits of the probe's passes, in the model's own type."""
    found = []
    for tokens in PROBE:
        new = torch.tensor([token % model.num_embeddings for token in tokens], device=model.device)
        found.append(model._run(new, len(tokens)))
        model.length += len(tokens)
    return found
