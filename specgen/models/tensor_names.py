"""Names and shapes of a decoder's tensors in checkpoints. Imports no library."""

from __future__ import annotations

from dataclasses import dataclass

from specgen.models.decoder_spec import DecoderSpec

EMBEDDING, NORM, HEAD = "model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"

_QKV = ("self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj")
_GATE_UP = ("mlp.gate_proj", "mlp.up_proj")
NORM_NAMES = {
    "pre": {"attention_in": "input_layernorm", "mlp_in": "post_attention_layernorm"},
    "post": {"attention_out": "post_attention_layernorm", "mlp_out": "post_feedforward_layernorm"},
    "both": {
        "attention_in": "input_layernorm",
        "attention_out": "post_attention_layernorm",
        "mlp_in": "pre_feedforward_layernorm",
        "mlp_out": "post_feedforward_layernorm",
    },
}
"""By placement: the layer's own names of its norms, and the checkpoints'."""


@dataclass(frozen=True, slots=True)
class Projection:
    """Tensors of one matrix product: their rows are joined in this order."""

    names: tuple[str, ...]
    has_bias: bool


def projections(spec: DecoderSpec) -> dict[str, Projection]:
    """Returns the matrix products of a layer; names of tensors are without the layer's prefix."""
    qkv, gate_up = (("self_attn.qkv_proj",), ("mlp.gate_up_proj",)) if spec.has_fused_tensors else (_QKV, _GATE_UP)
    return {
        "qkv": Projection(qkv, spec.has_qkv_bias),
        "output": Projection(("self_attn.o_proj",), spec.has_output_bias),
        "gate_up": Projection(gate_up, spec.has_mlp_bias),
        "down": Projection(("mlp.down_proj",), spec.has_mlp_bias),
    }


def tensor_shapes(spec: DecoderSpec) -> dict[str, tuple[int, ...]]:
    """Returns the shapes of all tensors that a checkpoint must have, by name."""
    hidden, inner = spec.hidden_size, spec.intermediate_size
    query, key = spec.num_heads * spec.head_size, spec.num_kv_heads * spec.head_size
    shapes: dict[str, tuple[int, ...]] = {EMBEDDING: (spec.vocab_size, hidden), NORM: (hidden,)}
    if not spec.is_tied:
        shapes[HEAD] = (spec.vocab_size, hidden)
    inputs = {"qkv": hidden, "output": query, "gate_up": hidden, "down": inner}
    outputs = {"qkv": (query, key, key), "output": (hidden,), "gate_up": (inner, inner), "down": (hidden,)}
    norms = {f"{name}.weight": hidden for name in NORM_NAMES[spec.norm_placement].values()}
    if spec.qk_norm is not None:
        is_all = spec.qk_norm == "all"
        norms["self_attn.q_norm.weight"] = query if is_all else spec.head_size
        norms["self_attn.k_norm.weight"] = key if is_all else spec.head_size
    for index in range(len(spec.layers)):
        prefix = layer_prefix(index)
        shapes |= {f"{prefix}{name}": (size,) for name, size in norms.items()}
        for name, projection in projections(spec).items():
            sizes = (sum(outputs[name]),) if len(projection.names) == 1 else outputs[name]
            for tensor, size in zip(projection.names, sizes, strict=True):
                shapes[f"{prefix}{tensor}.weight"] = (size, inputs[name])
                if projection.has_bias:
                    shapes[f"{prefix}{tensor}.bias"] = (size,)
    return shapes


def layer_prefix(index: int) -> str:
    """Returns what the names of a layer's tensors begin with."""
    return f"model.layers.{index}."


def layer_matrices(spec: DecoderSpec) -> list[tuple[int, ...]]:
    """Returns the shapes of the matrices in the layers."""
    shapes = tensor_shapes(spec).items()
    return [shape for name, shape in shapes if len(shape) == 2 and name not in (EMBEDDING, HEAD)]
