"""Checks entries of a GGUF header by their meaning: llama.cpp ends the process for some values, others fill the memory.

Any integer type is an integer here. llama.cpp accepts one only, and names the key itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass

from specgen.loading.gguf.reader import InconsistentFileError

_INTEGERS, _FLOATS, _FLAG, _TEXT, ARRAY = frozenset({0, 1, 2, 3, 4, 5, 10, 11}), frozenset({6, 12}), 7, 8, 9
_NAMES = {_FLAG: "a flag", _TEXT: "a string", ARRAY: "an array"}
MAX_LAYERS = MAX_EXPERTS = 512
"""Limits of llama.cpp: LLAMA_MAX_LAYERS, LLAMA_MAX_EXPERTS."""
_WITHOUT_STATE_HEADS = frozenset({"mamba", "jamba"})
"""Elsewhere, `ssm.time_step_rank` is the number of heads of a running state."""
_GATED_DELTA = ("qwen35", "qwen3next")
"""Architectures, by the beginning of their names, with gated delta rules in layers without attention."""
_ATTENDS, _HAS_STATE = b"attn_output.weight", b"ssm_conv1d.weight"
_QUERIES = (b"attn_qkv.weight", b"attn_q.weight", b"attn_q_a.weight")
"""Projections to queries; a layer with attention has one of them."""
_ROPE_SCALINGS = (b"none", b"linear", b"yarn", b"longrope")


@dataclass(frozen=True, slots=True)
class _Range:
    """Values of a number.

    Args:
        may_differ: There may be an array instead, with one value per layer.
        is_even: Of an odd value, or of 0 in an architecture without running states, llama.cpp makes no tensor.
    """

    low: float
    high: float
    is_float: bool = False
    may_differ: bool = False
    is_even: bool = False


_FINITE = _Range(-1e30, 1e30, is_float=True)
_RANGES: Mapping[str, _Range] = {
    "block_count": _Range(1, MAX_LAYERS),
    "embedding_length": _Range(1, 2**20),
    "context_length": _Range(0, 2**32),
    "vocab_size": _Range(0, 2**32),
    "expert_count": _Range(0, MAX_EXPERTS),
    "expert_used_count": _Range(0, MAX_EXPERTS, may_differ=True),
    **dict.fromkeys(
        ("attention.key_length", "attention.value_length", "rope.dimension_count"), _Range(0, 2**16, is_even=True)
    ),
    **dict.fromkeys(("attention.head_count", "attention.head_count_kv"), _Range(0, 2**16, may_differ=True)),
    "feed_forward_length": _Range(0, 2**24, may_differ=True),
    **dict.fromkeys(
        ("attention.layer_norm_rms_epsilon", "attention.layer_norm_epsilon"), _Range(0, 1e30, is_float=True)
    ),
    "full_attention_interval": _Range(1, MAX_LAYERS),
    "ssm.inner_size": _Range(1, 2**32),
    "rope.freq_base": _Range(1, 1e30, is_float=True),
    **dict.fromkeys(("rope.scaling.factor", "rope.scale_linear", "rope.scaling.attn_factor"), _Range(0, 1e6, True)),
    **dict.fromkeys(("logit_scale", "embedding_scale", "residual_scale", "attention.scale"), _FINITE),
    **dict.fromkeys(("attn_logit_softcapping", "final_logit_softcapping", "attention.clamp_kqv"), _FINITE),
}
"""By key, without the architecture."""


def check_entries(pairs: Mapping[str, object], kinds: Mapping[str, int], architecture: str) -> None:
    """Checks the entries of an architecture.

    Args:
        pairs: Scalars and strings by key.
        kinds: Their types in the file.

    Raises:
        InconsistentFileError: A value is of another type, not a number, or too large or small. The message names it.
    """
    has_states = any(key.startswith(f"{architecture}.ssm.") for key in pairs)
    may_rotate_nothing = has_states and not architecture.startswith(_GATED_DELTA)
    for suffix, allowed in _RANGES.items():
        key = f"{architecture}.{suffix}"
        if (kind := kinds.get(key)) is None or (kind == ARRAY and allowed.may_differ):
            continue
        value = pairs.get(key)
        if kind not in (_FLOATS if allowed.is_float else _INTEGERS):
            wanted = "a floating-point number" if allowed.is_float else "an integer"
            raise InconsistentFileError(f"{key} is {_NAMES.get(kind, value)}, not {wanted}")
        # A comparison with NaN is false.
        if not (isinstance(value, int | float) and math.isfinite(value) and allowed.low <= value <= allowed.high):
            raise InconsistentFileError(f"{key} is {value}, not {allowed.low:g} to {allowed.high:g}")
        if allowed.is_even and (value % 2 or (value == 0 and not may_rotate_nothing)):
            raise InconsistentFileError(f"{key} is {value}, not an even number")
    heads, kv_heads = (pairs.get(f"{architecture}.attention.head_count{end}") for end in ("", "_kv"))
    if isinstance(heads, int) and isinstance(kv_heads, int) and kv_heads and heads % kv_heads:
        raise InconsistentFileError(f"{architecture}.attention.head_count is {heads}, not a multiple of {kv_heads}")
    inner, num_state_heads = (pairs.get(f"{architecture}.ssm.{end}") for end in ("inner_size", "time_step_rank"))
    has_state_heads = architecture not in _WITHOUT_STATE_HEADS and num_state_heads
    if has_state_heads and isinstance(inner, int) and isinstance(num_state_heads, int) and inner % num_state_heads:
        raise InconsistentFileError(f"{architecture}.ssm.inner_size is {inner}, not a multiple of {num_state_heads}")
    scaling = pairs.get(f"{architecture}.rope.scaling.type")
    if isinstance(scaling, bytes) and scaling not in _ROPE_SCALINGS:
        raise InconsistentFileError(f"{architecture}.rope.scaling.type is {scaling.decode()!r}, which llama.cpp lacks")
    if pairs.get(f"{architecture}.attention.causal") == 0:
        raise InconsistentFileError(f"{architecture}.attention.causal is false: it does not write text token by token")
    experts = [pairs.get(f"{architecture}.expert_{name}", 0) for name in ("count", "used_count")]
    num_experts, num_used = (value if isinstance(value, int) else None for value in experts)
    if num_experts is None or num_used is None:  # a number of experts for each layer
        return
    if not (0 < num_used <= num_experts or num_used == num_experts == 0):
        raise InconsistentFileError(f"{architecture}.expert_used_count is {num_used} of {num_experts} experts")


def check_heads(architecture: str, entries: Mapping[str, Sequence[int]], key_rows: Mapping[str, int]) -> None:
    """Checks that all layers have heads of one size: llama.cpp believes the header, and ends the process.

    Args:
        architecture: llama.cpp's name.
        entries: Numbers of heads by layer, by the key of the entry; without the entries that are one number.
        key_rows: Rows of the projections to keys, by the name of the tensor.

    Raises:
        InconsistentFileError: They have not.
    """
    key, sizes = f"{architecture}.attention.head_count_kv", set()
    heads = entries.get(key, ())
    for layer, num_heads in enumerate(heads):
        rows = key_rows.get(f"blk.{layer}.attn_k.weight")
        if rows is not None:
            sizes.add(rows / num_heads if num_heads else math.inf)
    if len(sizes) > 1 or math.inf in sizes:
        raise InconsistentFileError(f"{key} is {list(heads)[:8]}, which does not fit the shapes of the tensors")


def check_layers(kinds: Mapping[str, int], pairs: Mapping[str, object], architecture: str, names: Set[bytes]) -> None:
    """Checks that layers have the heads and projections without which llama.cpp ends the process.

    Args:
        kinds: Types of the entries.
        pairs: As in `check_entries`.
        names: Of the tensors.

    Raises:
        InconsistentFileError: One is missing.
    """
    attending = [name.removesuffix(_ATTENDS) for name in sorted(names) if name.endswith(_ATTENDS)]
    key = f"{architecture}.attention.head_count"
    if attending and kinds.get(key) != ARRAY and not pairs.get(key):
        raise InconsistentFileError(f"{key} is {pairs.get(key, 'missing')}")
    # Where each layer has its own number of heads, a layer may have none (Deci).
    for layer in attending if kinds.get(f"{key}_kv") != ARRAY else ():
        if not any(layer + part in names for part in _QUERIES):
            raise InconsistentFileError(f"the tensor {(layer + _QUERIES[0]).decode()!r} is missing")
    if not architecture.startswith(_GATED_DELTA):
        return
    for name in sorted(names):
        layer = name.removesuffix(_HAS_STATE)
        if layer != name and layer + b"ssm_in.weight" not in names:
            for part in (b"attn_qkv.weight", b"attn_gate.weight"):
                if layer + part not in names:
                    raise InconsistentFileError(f"the tensor {(layer + part).decode()!r} is missing")
