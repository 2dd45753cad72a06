"""Unpacks the weights of a GGUF file into safetensors, for the families that specgen's decoder runs.

Names of tensors come from the `gguf` package's own table, values from its `dequantize`. What the makers of GGUF files
change on the way is undone here: the order of rotated rows (Llama), and 1 added to norms (Gemma).
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gguf
import torch
from safetensors.torch import save_file
from torch import Tensor

from specgen.core.errors import ModelFileError, NumericalError
from specgen.loading.config_reader import UnsupportedConfig, is_number
from specgen.loading.decoder_families import decoder_spec
from specgen.loading.gguf.rotary import FACTORS, rope_scaling
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.tensor_names import HEAD, tensor_shapes

SHARD_BYTES = 2 * 2**30
"""A shard of the safetensors is written when it has this size."""


@dataclass(frozen=True, slots=True)
class _Family:
    """How a GGUF architecture maps to a family of checkpoints.

    Args:
        keys: Further keys of config.json, by their keys in the GGUF, without the architecture.
        extra: Further entries of config.json.
        permutes_rotary: Rows of queries and keys are stored in pairs, for another rotary kernel.
        norm_offset: Was added to the norms.
    """

    model_type: str
    architecture: str
    keys: Mapping[str, str] = field(default_factory=dict)
    extra: Mapping[str, Any] = field(default_factory=dict)
    permutes_rotary: bool = False
    norm_offset: float = 0.0


_COMMON = {
    "context_length": "max_position_embeddings",
    "block_count": "num_hidden_layers",
    "feed_forward_length": "intermediate_size",
    "embedding_length": "hidden_size",
    "attention.head_count": "num_attention_heads",
    "attention.head_count_kv": "num_key_value_heads",
    "attention.layer_norm_rms_epsilon": "rms_norm_eps",
}
_REQUIRED = ("block_count", "feed_forward_length", "embedding_length", "attention.head_count")
"""Entries without which transformers would make a model of its default size: 7 billion random parameters."""
_CHANGES_THE_OUTPUT = (
    *("attention.scale", "attention.clamp_kqv"),
    *("attention.sliding_window", "attention.sliding_window_pattern", "attn_logit_softcapping", "logit_scale"),
    *("final_logit_softcapping", "embedding_scale", "residual_scale", "expert_count"),
)
"""Keys of a GGUF, without the architecture, that a file with no entry for them in its family must not set."""
_FAMILIES = {
    "llama": _Family("llama", "LlamaForCausalLM", {"attention.key_length": "head_dim"}, permutes_rotary=True),
    "qwen2": _Family("qwen2", "Qwen2ForCausalLM"),
    "qwen3": _Family("qwen3", "Qwen3ForCausalLM", {"attention.key_length": "head_dim"}),
    "phi3": _Family("phi3", "Phi3ForCausalLM", {"attention.sliding_window": "sliding_window"}),
    "gemma2": _Family(
        "gemma2",
        "Gemma2ForCausalLM",
        {
            "attention.key_length": "head_dim",
            "attention.sliding_window": "sliding_window",
            "attn_logit_softcapping": "attn_logit_softcapping",
            "final_logit_softcapping": "final_logit_softcapping",
        },
        {"hidden_activation": "gelu_pytorch_tanh"},
        norm_offset=1.0,
    ),
    "gemma3": _Family(
        "gemma3_text",
        "Gemma3ForCausalLM",
        {"attention.key_length": "head_dim", "attention.sliding_window": "sliding_window"},
        {"rope_local_base_freq": 10_000.0, "hidden_activation": "gelu_pytorch_tanh"},
        norm_offset=1.0,
    ),
}


def can_unpack(architecture: str) -> bool:
    """Returns whether files of a GGUF architecture can be unpacked here."""
    return architecture in _FAMILIES


def unpack(path: Path, folder: Path, dtype: torch.dtype = torch.bfloat16) -> DecoderSpec:
    """Writes config.json and safetensors of a GGUF file.

    Args:
        dtype: Of the written weights.

    Raises:
        UnsupportedConfig: The file describes something that specgen's decoder can't run.
        ModelFileError: Entries of the header or tensors are missing, left over or misshapen.
        NumericalError: An embedding or a norm contains NaN or infinity.
    """
    reader: Any = gguf.GGUFReader(path)
    architecture = str(_field(reader, "general.architecture"))
    family = _FAMILIES.get(architecture)
    if family is None:
        raise UnsupportedConfig(f"the architecture is {architecture!r}")
    for key in (f"{architecture}.{name}" for name in _REQUIRED):
        if reader.get_field(key) is None:
            raise ModelFileError(f"{path}: the entry {key} is missing", "download it again")
    try:
        config = _config(reader, architecture, family)
        spec = decoder_spec(config)
    except UnsupportedConfig as error:
        if _has_other_query_scale(reader, architecture):
            # transformers would take the query scale of the smaller models.
            raise ModelFileError(f"{path} can't be converted: {error}", "use a folder with safetensors") from error
        raise
    stored = {tensor.name: tensor for tensor in reader.tensors}
    names = _names(architecture, spec, stored, path)
    config["dtype"] = str(dtype).removeprefix("torch.")
    (folder / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True))
    shapes = tensor_shapes(spec)

    def convert(name: str) -> Tensor:
        try:
            return _converted(name, stored[names[name]], shapes[name], spec, family).to(dtype).contiguous()
        except (ModelFileError, NumericalError) as error:
            raise type(error)(f"{path}: {error.message}", error.hint) from error

    _save(folder, list(names), convert)
    return spec


def _config(reader: Any, architecture: str, family: _Family) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for key, name in {**_COMMON, **family.keys}.items():
        value = _field(reader, f"{architecture}.{key}")
        if value is not None:
            found[name] = value
    sizes = found.get("hidden_size"), found.get("num_attention_heads")
    if "attention.key_length" in family.keys and "head_dim" not in found and all(type(size) is int for size in sizes):
        found["head_dim"] = found["hidden_size"] // max(found["num_attention_heads"], 1)  # as in llama.cpp
    scaling = rope_scaling(reader, architecture)
    if architecture == "gemma3" and scaling.get("rope_type") not in (None, "linear"):
        raise UnsupportedConfig(f"gemma3.rope.scaling.type is {scaling['rope_type']!r}")
    for suffix in _CHANGES_THE_OUTPUT:
        key = f"{architecture}.{suffix}"
        if suffix not in family.keys and (value := _field(reader, key)) not in (None, 0, 0.0, False, "none"):
            raise UnsupportedConfig(f"{key} is {value!r}")
    theta = _field(reader, f"{architecture}.rope.freq_base")
    tensors = {tensor.name for tensor in reader.tensors}
    embeddings = next((tensor for tensor in reader.tensors if tensor.name == "token_embd.weight"), None)
    if embeddings is None or len(embeddings.shape) < 2:
        raise UnsupportedConfig("the file has no token_embd.weight")
    if int(embeddings.shape[0]) != found["hidden_size"]:
        raise ModelFileError(
            f"{architecture}.embedding_length is {found['hidden_size']}, but {embeddings.name} has "
            f"{int(embeddings.shape[0])} columns",
            "download it again",
        )
    if (size := _field(reader, f"{architecture}.rope.dimension_count")) is not None:
        heads = found.get("num_attention_heads")
        whole = found.get("head_dim") or (found["hidden_size"] // heads if heads and "hidden_size" in found else size)
        if (ratio := _ratio(size, whole)) != 1:
            found["partial_rotary_factor"] = ratio
    return {
        **found,
        **family.extra,
        "architectures": [family.architecture],
        "model_type": family.model_type,
        "rope_theta": theta or 10_000.0,
        "tie_word_embeddings": "output.weight" not in tensors,
        "vocab_size": int(embeddings.shape[1]),
        # Of Gemma 3's layers without a window: a GGUF and a config mean the same.
        **({"rope_scaling": scaling} if scaling else {}),
        **({"query_pre_attn_scalar": _query_scalar(reader, architecture, found)} if "gemma" in architecture else {}),
    }


def _query_scalar(reader: Any, architecture: str, found: Mapping[str, Any]) -> Any:
    """Returns what a GGUF does not have. llama.cpp recognizes the models with another scale by their layers, too."""
    if _has_other_query_scale(reader, architecture):
        return found["hidden_size"] // found["num_attention_heads"]
    return found.get("head_dim", 256)


def _has_other_query_scale(reader: Any, architecture: str) -> bool:
    """Returns whether a file is of a Gemma of 27 billion parameters."""
    return bool(_field(reader, f"{architecture}.block_count") == {"gemma2": 46, "gemma3": 62}.get(architecture, 0))


def _ratio(part: Any, whole: Any) -> float:
    if not (is_number(part) and is_number(whole) and whole > 0):
        raise UnsupportedConfig(f"rope.dimension_count is {part!r}")
    return float(part / whole)


def _field(reader: Any, key: str) -> Any:
    field = reader.get_field(key)
    value = None if field is None else field.contents()
    # One value per layer, the same for all.
    return value[0] if isinstance(value, list) and value and value.count(value[0]) == len(value) else value


def _names(architecture: str, spec: DecoderSpec, stored: Mapping[str, Any], path: Path) -> dict[str, str]:
    """Returns the file's names of the tensors that the decoder needs."""
    number = next(kind for kind, name in gguf.MODEL_ARCH_NAMES.items() if name == architecture)
    table = gguf.get_tensor_name_map(number, len(spec.layers))
    found = {name: table.get_name(name, try_suffixes=(".weight", ".bias")) for name in tensor_shapes(spec)}
    missing = [name for name, own in found.items() if own not in stored]
    if missing:
        raise ModelFileError(f"{path}: missing tensors: {', '.join(missing[:3])}", "download it again")
    if left := sorted(stored.keys() - set(found.values()) - {FACTORS}):
        raise UnsupportedConfig(f"it has the tensor {left[0]}")
    return {name: str(own) for name, own in found.items()}


def _converted(name: str, tensor: Any, shape: tuple[int, ...], spec: DecoderSpec, family: _Family) -> Tensor:
    values = torch.from_numpy(gguf.dequantize(tensor.data, tensor.tensor_type).copy()).float()
    while values.ndim > len(shape) and values.shape[0] == 1:
        values = values[0]
    if tuple(values.shape) != shape:
        raise ModelFileError(f"{tensor.name} has the shape {tuple(values.shape)}, not {shape}", "download it again")
    if len(shape) == 1 or name.endswith(("embed_tokens.weight", HEAD)):
        low, high = torch.aminmax(values)
        if not (torch.isfinite(low) and torch.isfinite(high)):
            raise NumericalError(f"the tensor {tensor.name} contains NaN or infinity", "download it again")
    if family.norm_offset and name.endswith("norm.weight"):
        values = values - family.norm_offset
    if family.permutes_rotary and ".q_proj." in name:
        values = _in_halves(values, spec.num_heads)
    if family.permutes_rotary and ".k_proj." in name:
        values = _in_halves(values, spec.num_kv_heads)
    return values


def _in_halves(values: Tensor, num_heads: int) -> Tensor:
    """Reorders the rows of each head from pairs to halves: the two rows of a rotated pair are half a head apart."""
    pairs = values.view(num_heads, values.shape[0] // num_heads // 2, 2, *values.shape[1:])
    return pairs.transpose(1, 2).reshape(values.shape)


def _save(folder: Path, names: list[str], convert: Callable[[str], Tensor]) -> None:
    """Writes the tensors in shards, so that memory for one shard is enough."""
    where: dict[str, str] = {}
    shards: list[dict[str, Tensor]] = []
    for shard in _shards(names, convert):
        file = f"model-{len(shards) + 1:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        where |= dict.fromkeys(shard, file)
        shards.append({})
    if len(shards) == 1:
        (folder / "model-00001.safetensors").rename(folder / "model.safetensors")
        return
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": where}))


def _shards(names: list[str], convert: Callable[[str], Tensor]) -> Iterator[dict[str, Tensor]]:
    shard: dict[str, Tensor] = {}
    num_bytes = 0
    with ThreadPoolExecutor(torch.get_num_threads()) as pool:
        for first in range(0, len(names), 16):
            group = names[first : first + 16]
            for name, tensor in zip(group, pool.map(convert, group), strict=True):
                shard[name] = tensor
                num_bytes += tensor.nbytes
            if num_bytes >= SHARD_BYTES:
                yield shard
                shard, num_bytes = {}, 0
    if shard:
        yield shard
