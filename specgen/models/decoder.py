"""The forward pass of Llama-like models for one text: the operations of transformers, with less overhead.

At one token per pass, transformers spends as much time on masks, output classes, layer wrappers and copies of the cache
as on matrix products. This module runs the same operations in the same order, on a preallocated cache, with products
of the same inputs fused. The logits equal transformers' bit for bit, which is checked for every model before use.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from specgen.models.layers import LayerStack, RMSNorm
from specgen.models.linear import MatMul, faster_of, fits_nf4, matmul_of, nf4_copy
from specgen.models.transformers_model import CachedModel

ARCHITECTURES = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
FIXED_ROPES = {"default", "linear", "llama3", "yarn"}
"""Rotary embeddings that depend on the position only, not on the length of the text."""
NUM_CHECKED_LAYERS = 2
CHECKED_PASSES = ((1, 2, 3, 5, 8, 13), (21,), (34, 55, 2))
"""Passes of the comparison with transformers: a prompt, one token, several tokens."""


class DecoderModel(CachedModel):
    """A `CachedModel` that runs the layers itself. Create it with `decoder_model`, which checks that it can.

    Args:
        model: A model of one of `ARCHITECTURES`.
        vocab_size: As in `CachedModel`.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        config, body = model.config, model.model
        self._embedding: Tensor = body.embed_tokens.weight
        # The embedding may be stored in a smaller type than the arithmetic; a norm's weight never is.
        weight: Tensor = body.norm.weight
        self._dtype = weight.dtype
        layers = body.layers[: config.num_hidden_layers]
        self._stack = LayerStack(layers, body.rotary_emb, config, weight.dtype, weight.device)
        self._norm = RMSNorm(body.norm)
        self._head: MatMul = matmul_of(model.lm_head)
        super().__init__(model, vocab_size)

    def use_nf4_head(self) -> None:
        """Computes the logits with a 4-bit copy of the head if that is faster. For drafts only."""
        weight = self.model.get_output_embeddings().weight
        if fits_nf4(weight):
            row = torch.ones(1, weight.shape[1], dtype=weight.dtype, device=weight.device)
            self._head = faster_of(self._head, nf4_copy(weight), row)

    def _new_cache(self) -> None:
        self._stack.release()
        self.length = 0

    def _drop(self, num_removed: int) -> None:
        """Does nothing: entries after `length` are overwritten."""

    def _run(self, new: Tensor, num_last: int) -> Tensor:
        hidden = self._stack.run(functional.embedding(new, self._embedding).to(self._dtype), self.length)
        if self.target_features is None:
            return self._head(self._norm(hidden[-num_last:]))
        features = self._norm(hidden)
        self.target_features.append(self.length, features)
        return self._head(features[-num_last:])


def decoder_model(model: Any, vocab_size: int) -> CachedModel:
    """Returns a `DecoderModel` if it computes what transformers computes, else a plain `CachedModel`.

    Both run the first layers on a short text, and their logits must be equal bit for bit.

    Args:
        model: A transformers causal language model in eval mode; its weights may move to other memory.
        vocab_size: As in `CachedModel`.

    Raises:
        LoadError: As in `CachedModel`.
    """
    plain = CachedModel(model, vocab_size)
    if not is_supported(model):
        return plain
    config = model.config
    num_layers = config.num_hidden_layers
    try:
        # A few layers show whether the operations are the same; all of them would double the first second.
        config.num_hidden_layers = min(NUM_CHECKED_LAYERS, num_layers)
        expected = _checked_logits(plain)
        actual = _checked_logits(DecoderModel(model, vocab_size))
    finally:
        config.num_hidden_layers = num_layers
        plain.reset()
    if all(torch.equal(ours, theirs) for ours, theirs in zip(actual, expected, strict=True)):
        return DecoderModel(model, vocab_size)
    return plain


def is_supported(model: Any) -> bool:
    """Returns whether `LayerStack` can run a model's layers."""
    config = model.config
    window = getattr(config, "sliding_window", None)
    attention = set(getattr(config, "layer_types", None) or ["sliding_attention" if window else "full_attention"])
    rope = getattr(config, "rope_parameters", None)
    return (
        type(model).__name__ in ARCHITECTURES
        and getattr(config, "_attn_implementation", "") == "sdpa"
        and attention == {"full_attention"}
        and isinstance(rope, dict)
        and rope.get("rope_type") in FIXED_ROPES
        and config.hidden_act == "silu"
        and len({parameter.device for parameter in model.parameters()}) == 1
    )


@torch.inference_mode()
def _checked_logits(model: CachedModel) -> list[Tensor]:
    """Returns the logits of `CHECKED_PASSES`, in the model's own type."""
    logits = []
    for tokens in CHECKED_PASSES:
        new = torch.tensor([token % model.num_embeddings for token in tokens], device=model.device)
        logits.append(model._run(new, len(tokens)))
        model.length += len(tokens)
    return logits
