"""The tensors of a shallow draft: a config in, their names and shapes out; a file's header compared with them."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from specgen.core.errors import ModelFileError

Kind = Literal["layers", "features"]
"""`layers` reads tokens; `features` reads the inputs of the target's head as well."""
FLOATS = {"F16": "float16", "BF16": "bfloat16", "F32": "float32"}
WEIGHTS = "model.safetensors"
_NORMS = ("input_layernorm", "post_attention_layernorm")


def tensor_shapes(config: Mapping[str, Any], kind: Kind, num_draft_ids: int | None) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the tensors a draft's folder holds, by its config."""
    hidden, inner, num_heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    num_kv_heads = config.get("num_key_value_heads") or num_heads
    head = config.get("head_dim") or hidden // num_heads
    model_type = config["model_type"]
    has_bias = bool(config.get("attention_bias", False)) and model_type != "mistral"
    products = {
        "self_attn.q_proj": ((num_heads * head, hidden), has_bias or model_type == "qwen2"),
        "self_attn.k_proj": ((num_kv_heads * head, hidden), has_bias or model_type == "qwen2"),
        "self_attn.v_proj": ((num_kv_heads * head, hidden), has_bias or model_type == "qwen2"),
        "self_attn.o_proj": ((hidden, num_heads * head), has_bias and model_type != "qwen2"),
        "mlp.gate_proj": ((inner, hidden), _has_mlp_bias(config)),
        "mlp.up_proj": ((inner, hidden), _has_mlp_bias(config)),
        "mlp.down_proj": ((hidden, inner), _has_mlp_bias(config)),
    }
    shapes: dict[str, tuple[int, ...]] = {"norm.weight": (hidden,)}
    for layer in range(config["num_hidden_layers"]):
        for name in _NORMS:
            shapes[f"layers.{layer}.{name}.weight"] = (hidden,)
        if model_type == "qwen3":
            for name in ("q_norm", "k_norm"):
                shapes[f"layers.{layer}.self_attn.{name}.weight"] = (head,)
        for name, (shape, biased) in products.items():
            shapes[f"layers.{layer}.{name}.weight"] = shape
            if biased:
                shapes[f"layers.{layer}.{name}.bias"] = shape[:1]
    if kind == "features":
        shapes["fc.weight"] = (hidden, 2 * hidden)
    if num_draft_ids is not None:
        shapes["draft_ids"] = (num_draft_ids,)
    return shapes


def _has_mlp_bias(config: Mapping[str, Any]) -> bool:
    return config["model_type"] == "llama" and bool(config.get("mlp_bias", False))


def check_tensors(folder: Path, wanted: Mapping[str, tuple[int, ...]]) -> tuple[str, int]:
    """Compare the header of a draft's weights with what its config asks for.

    Args:
        folder: The draft.
        wanted: See `tensor_shapes`.

    Returns:
        The type its norm is stored in, `bfloat16`, and the number of its parameters.

    Raises:
        ModelFileError: A tensor is missing, left over, or of another shape or type.
    """
    from safetensors import safe_open

    with safe_open(folder / WEIGHTS, "pt") as file:
        found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118  it is no mapping
        shapes = {name: tuple(part.get_shape()) for name, part in found.items()}
        types = {name: str(part.get_dtype()) for name, part in found.items()}
    for names, what in (
        (sorted(wanted.keys() - shapes.keys()), "lacks {} the config asks for"),
        (sorted(shapes.keys() - wanted.keys()), "holds {} the config has no place for"),
        (sorted(name for name in wanted if shapes.get(name) != wanted[name]), "has {} of another shape"),
        (
            sorted(n for n in types if (types[n] != "I64" if n == "draft_ids" else types[n] not in FLOATS)),
            "has {} of a type it can't have",
        ),
    ):
        if names:
            count = "one tensor" if len(names) == 1 else f"{len(names)} tensors"
            raise bad_draft(
                folder, f"it {what.format(count)}: {', '.join(names[:3])}{', ...' if len(names) > 3 else ''}"
            )
    return FLOATS[types["norm.weight"]], sum(math.prod(shape) for name, shape in shapes.items() if name != "draft_ids")


def bad_draft(folder: Path, why: str) -> ModelFileError:
    """The error for a folder that is damaged or not what it says."""
    return ModelFileError(f"{folder} is no shallow draft that can be run: {why}", "make it again with specgen distill")
