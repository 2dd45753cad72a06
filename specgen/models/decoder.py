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

from specgen.models.layers import LayerStack, Norm
from specgen.models.linear import MatMul, faster_of, fits_nf4, matmul_of, nf4_copy
from specgen.models.transformers_model import CachedModel

ARCHITECTURES = {"LlamaForCausalLM", "MistralForCausalLM", "Qwen2ForCausalLM", "Qwen3ForCausalLM"}
FIXED_ROPES = {"default", "linear", "llama3", "yarn"}
"""Rotations that depend on the position only, not on the length of the text."""
NUM_CHECKED_LAYERS = 2
PROBE = ((1, 2, 3, 5, 8, 13), (21,), (34, 55, 2))
"""Passes of the comparison: a prompt, one token, several tokens."""


class DecoderModel(CachedModel):
    """A `CachedModel` that runs the layers itself. Made by `decoder_model`, which checks that it may.

    Args:
        model: A model of one of `ARCHITECTURES`.
        vocab_size: As in `CachedModel`.
    """

    def __init__(self, model: Any, vocab_size: int) -> None:
        config, body = model.config, model.model
        self._embedding: Tensor = body.embed_tokens.weight
        # Narrow weights are computed with in float32, the type of what is not narrow.
        like: Tensor = body.norm.weight
        self._dtype = like.dtype
        self._stack = LayerStack(body.layers[: config.num_hidden_layers], body.rotary_emb, config, like[None])
        self._norm = Norm(body.norm)
        self._head: MatMul = matmul_of(model.lm_head)
        super().__init__(model, vocab_size)

    def use_nf4_head(self) -> None:
        """Compute the logits with a 4-bit copy of the head. For drafts only; nothing happens where it is not faster."""
        weight = self.model.get_output_embeddings().weight
        if fits_nf4(weight):
            row = torch.ones(1, weight.shape[1], dtype=weight.dtype, device=weight.device)
            self._head = faster_of(self._head, nf4_copy(weight), row)

    def _new_cache(self) -> None:
        self._stack.release()
        self.length = 0

    def _drop(self, num_removed: int) -> None:
        """Nothing to do: what lies behind `length` is overwritten."""

    def _run(self, new: Tensor, num_last: int) -> Tensor:
        hidden = self._stack.run(functional.embedding(new, self._embedding).to(self._dtype), self.length)
        if self.target_features is None:
            return self._head(self._norm(hidden[-num_last:]))
        inputs = self._norm(hidden)
        self.target_features.keep(self.length, inputs)
        return self._head(inputs[-num_last:])


def decoder_model(model: Any, vocab_size: int) -> CachedModel:
    """The fastest owner of a model's cache that computes what transformers computes.

    Args:
        model: A transformers causal language model in eval mode; its weights may move to other memory.
        vocab_size: As in `CachedModel`.

    Returns:
        A `DecoderModel` if the model is of a known kind and its logits are transformers' own, bit for bit, in a short
        comparison over its first layers; otherwise a plain `CachedModel`.

    Raises:
        LoadError: As in `CachedModel`.
    """
    plain = CachedModel(model, vocab_size)
    if not is_supported(model):
        return plain
    config = model.config
    num_layers = config.num_hidden_layers
    try:
        # A few layers tell whether the operations are the same; comparing all would double the first second.
        config.num_hidden_layers = min(NUM_CHECKED_LAYERS, num_layers)
        expected = _probe(plain)
        found = _probe(DecoderModel(model, vocab_size))
    finally:
        config.num_hidden_layers = num_layers
        plain.reset()
    if all(torch.equal(ours, theirs) for ours, theirs in zip(found, expected, strict=True)):
        return DecoderModel(model, vocab_size)
    return plain


def is_supported(model: Any) -> bool:
    """Whether a model's layers are what `LayerStack` takes them for."""
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
