"""Describes a decoder by data. `specgen.loading.decoder_families` translates config.json into a `DecoderSpec`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Activation = Literal["silu", "gelu_tanh"]
RotaryScaling = Literal["default", "linear", "llama3", "yarn", "longrope"]
NormPlacement = Literal["pre", "post", "both"]
"""Norms before attention and feed-forward (Llama), after them (OLMo 2), or on both sides (Gemma 2 and 3)."""


@dataclass(frozen=True, slots=True)
class RotarySpec:
    """Rotary position embedding of a layer.

    Args:
        theta: Base of the wavelengths.
        size: Channels of a head that are rotated; the others pass through.
        scaling: Rule that changes the frequencies. `longrope` has the same factors at every length here.
        parameters: The rule's numbers by their names in config.json, sorted.
        factors: Divisors of the frequencies of `longrope`, one per rotated pair.
    """

    theta: float
    size: int
    scaling: RotaryScaling = "default"
    parameters: tuple[tuple[str, float], ...] = ()
    factors: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class LayerSpec:
    """What differs between the layers of a model.

    Args:
        window: A token attends to this many tokens, itself included; None: to all before it.
        rotary: Its rotary embedding; None: it has none (SmolLM3).
    """

    window: int | None
    rotary: RotarySpec | None


@dataclass(frozen=True, slots=True)
class DecoderSpec:
    """A decoder-only transformer.

    Args:
        hidden_size: Width of the residual stream.
        intermediate_size: Width of the feed-forward.
        num_heads: Query heads.
        num_kv_heads: Key and value heads.
        head_size: Channels of a head.
        vocab_size: Rows of the embedding.
        layers: One entry per layer.
        activation: Of the gated feed-forward.
        norm_epsilon: Epsilon of all norms.
        norm_placement: See `NormPlacement`.
        norm_offset: Added to the weights of the norms (1 for Gemma).
        scales_norm_in_float32: Norms multiply by their weight before they round to the compute type (Gemma, OLMo 2).
        rotates_in_float32: Rotary embeddings are applied in float32 and rounded to the compute type after it (OLMo 2).
        qk_norm: Norms of queries and keys: per `head`, over all heads at once (`all`), or none.
        has_qkv_bias: Biases of the query, key and value projections.
        has_output_bias: Bias of the attention's output projection.
        has_mlp_bias: Biases of the feed-forward.
        is_tied: The head is the embedding.
        attention_scale: Factor of the attention scores.
        attention_soft_cap: Scores are capped by this times tanh; None: no cap.
        logits_soft_cap: Likewise for logits.
        embedding_scale: Factor of the embeddings.
        rounds_embedding_scale: That factor is rounded to the compute type first (Gemma).
        residual_scale: Factor of what a layer adds to the residual stream.
        logits_divisor: Logits are divided by it.
        has_fused_tensors: The checkpoint stores `qkv_proj` and `gate_up_proj` as one tensor each (Phi-3).
    """

    hidden_size: int
    intermediate_size: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    layers: tuple[LayerSpec, ...]
    activation: Activation = "silu"
    norm_epsilon: float = 1e-6
    norm_placement: NormPlacement = "pre"
    norm_offset: float = 0.0
    scales_norm_in_float32: bool = False
    rotates_in_float32: bool = False
    qk_norm: Literal["head", "all"] | None = None
    has_qkv_bias: bool = False
    has_output_bias: bool = False
    has_mlp_bias: bool = False
    is_tied: bool = False
    attention_scale: float = 1.0
    attention_soft_cap: float | None = None
    logits_soft_cap: float | None = None
    embedding_scale: float = 1.0
    rounds_embedding_scale: bool = False
    residual_scale: float = 1.0
    logits_divisor: float = 1.0
    has_fused_tensors: bool = False
