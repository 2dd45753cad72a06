"""Computes how many bytes a model's weights take in a format, and how many of them a pass reads. Reads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from specgen.loading.resolved_model import ModelConfig, ModuleSizes, ResolvedModel
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.tensor_names import EMBEDDING, HEAD, layer_matrices, tensor_shapes

_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}
_QUANT_BYTES = {"int8": 1.15, "nf4": 0.65, "fp4": 0.65}
"""Bytes per parameter of a draft head, and where the modules are unknown, including scales and embeddings."""
_LAYER_BYTES = {"int8": 1.0, "nf4": 0.5625, "fp4": 0.5625}
"""Bytes per parameter of a quantized layer, with a float32 scale per 64 values of 4 bits."""


@dataclass(frozen=True, slots=True)
class StoredWeights:
    """How a model's weights are stored: in memory or, without a device, in its files.

    Args:
        num_bytes: Of all of them; a head that a draft head shares with its target is not counted.
        dtype: The compute type; without a device, the stored type.
        quant: Weight format.
        device: Where they are.
    """

    num_bytes: int
    dtype: str
    quant: str = "none"
    device: str = ""


def needed_bytes(config: ModelConfig, dtype: str, quant: str, device: str = "", *, is_draft: bool = False) -> int:
    """Estimates the memory of the weights in a format, without cache and activations."""
    if config.quant_method is not None and not config.is_unpacked(device):
        return config.num_weight_bytes
    size = _BYTES.get(dtype, 4)
    sizes = config.modules if config.decoder is None else decoder_sizes(config.decoder)
    if sizes is None:
        return int(config.num_parameters * _QUANT_BYTES.get(quant, size))
    layer_size = _LAYER_BYTES.get(quant, size)
    if config.quant_method is None and _is_packed(config, dtype, quant, device):
        # The embedding is as stored, and what is not packed computes in float32. For the head see `packed_head`.
        head_size = layer_size if is_draft and config.decoder is not None else max(layer_size, 1)
        packed = sizes.linear * layer_size + sizes.head * head_size
        return int(packed + sizes.embedding * _BYTES.get(config.dtype, 4) + (sizes.conv1d + sizes.rest) * 4)
    layers = sizes.linear + sizes.conv1d
    # See `DecoderModel.use_nf4_head`: the embedding stays.
    has_copy = is_draft and config.decoder is not None and config.decoder.is_tied and quant in ("nf4", "fp4")
    copy = sizes.head * layer_size if has_copy else 0
    return int(layers * layer_size + (sizes.total - layers) * size + copy)


def bytes_per_pass(model: ResolvedModel, weights: StoredWeights, of_target: StoredWeights | None = None) -> int:
    """Returns the bytes of weights that a pass reads: of an embedding only single rows, unless it is also the head.

    Half of the memory of Qwen2.5-Coder-0.5B in nf4 is the embedding. The head that a draft head shares with its target
    is read, too, but not part of its memory. Of a large vocabulary, a draft on a CPU mostly reads the first ids.

    Args:
        weights: Those of the model.
        of_target: Those of a draft head's target; None: in the files, where the head is not quantized.
    """
    config, head, num_bytes = model.config, model.draft_head, weights.num_bytes
    dtype, quant, device = weights.dtype, weights.quant, weights.device
    if head is not None:
        hidden = config.values["hidden_size"] if head.spec is None else head.spec.hidden_size
        size = (config.vocab_rows or 0) * hidden
        is_int8 = of_target is not None and _has_int8_head(of_target)
        is_shared = quant == "none" or (quant == "int8" and is_int8)
        if head.num_draft_ids is not None or not is_shared:  # it has a head of its own
            return num_bytes
        return num_bytes + size * (1 if is_int8 else _BYTES.get(dtype, 4))
    is_packed = _is_packed(config, dtype, quant, device)
    # llama.cpp's embeddings are small: 4 bits and tied in most files.
    if model.gguf is not None or config.decoder is None:
        return num_bytes
    if model.role == "draft" and device == "cpu":
        head_size = _BYTES.get(dtype, 4)
        num_bytes -= _skipped_bytes(config.decoder, _LAYER_BYTES.get(quant, head_size) if is_packed else head_size)
    if config.decoder.is_tied and not is_packed:
        return num_bytes
    return num_bytes - decoder_sizes(config.decoder).embedding * _BYTES.get(config.dtype if is_packed else dtype, 4)


def _skipped_bytes(spec: DecoderSpec, size: float) -> int:
    """Returns the bytes of a draft's head that few passes read, with `size` bytes a value."""
    from specgen.models.shortlist_head import num_always_computed  # it imports torch, which a device needs anyway

    num_ids = spec.vocab_size
    return int((num_ids - num_always_computed(spec, num_ids)) * spec.hidden_size * size)


def _is_packed(config: ModelConfig, dtype: str, quant: str, device: str) -> bool:
    """Returns whether packed copies replace the weights, on a CPU: a tied head is then one, next to the embedding."""
    # specgen's decoder computes 16-bit weights where they are: a tied head has no memory of its own.
    is_as_stored = config.decoder is not None and quant == "none" and dtype == config.dtype
    has_packed_type = quant == "int8" or dtype == "float16" or (quant, dtype) == ("nf4", "float32")
    return device == "cpu" and has_packed_type and not is_as_stored and (quant != "int8" or _packs_int8())


def _has_int8_head(weights: StoredWeights) -> bool:
    """Returns whether the head of a target on specgen's decoder is in int8; see `packed_head`."""
    if weights.device != "cpu":
        return False
    return (weights.quant, weights.dtype) == ("nf4", "float32") or (weights.quant == "int8" and _packs_int8())


def _packs_int8() -> bool:
    """Returns whether layers in int8 are packed on this machine; else they have bitsandbytes' format."""
    from specgen.models.formats import has_int8_matmul  # it imports torch, which a device needs anyway

    return has_int8_matmul()


def decoder_sizes(spec: DecoderSpec) -> ModuleSizes:
    """Returns the sizes of specgen's decoder."""
    shapes = tensor_shapes(spec)
    return ModuleSizes(
        linear=sum(map(prod, layer_matrices(spec))),
        conv1d=0,
        embedding=prod(shapes[EMBEDDING]),
        head=prod(shapes.get(HEAD, shapes[EMBEDDING])),
        is_tied=spec.is_tied,
        rest=sum(prod(shape) for shape in shapes.values() if len(shape) == 1),
    )
