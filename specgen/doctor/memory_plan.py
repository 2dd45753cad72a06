"""Estimates how much memory a model takes, from its config and the headers of its files. Reads no weights."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, Literal

from specgen.core.errors import library_failures
from specgen.core.settings import MAX_DRAFT_TOKENS
from specgen.doctor.results import CROP, MemoryPlan, RollbackPlan
from specgen.loading.cuda_memory import GRAPH_BYTES, cache_values, cuda_capacity, logits_bytes, weight_matrix_bytes
from specgen.loading.gguf.metadata import GgufHeader
from specgen.loading.module_sizes import empty_model
from specgen.loading.placement import Placement
from specgen.loading.resolved_model import DraftHeadConfig, ModelConfig
from specgen.loading.weight_sizes import decoder_sizes
from specgen.models.cached_model import PREFILL_CHUNK
from specgen.models.checkpoints import MAX_CHECKPOINTS, MAX_COPIES
from specgen.models.decoder_spec import DecoderSpec
from specgen.models.float_rows import INPUTS_UNIT
from specgen.models.hybrid_support import refuse_unfit_states
from specgen.models.kv_slots import FIRST_CAPACITY
from specgen.models.llama_cpp import MAX_ROWS
from specgen.models.packing import has_float_matmul
from specgen.models.running_states import StateSizes, state_sizes
from specgen.models.static.prefill import prefill_chunk
from specgen.models.tensor_names import layer_matrices

_PACKED_BYTES = {"bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "nf4": 0.53125}
"""Bytes of a packed value; in nf4 with a bfloat16 scale for each 64."""


@dataclass(frozen=True, slots=True)
class _Sizes:
    """Numbers of values of a model.

    Args:
        layers: Rows and values of each matrix in the layers.
        embedding: Values of the embedding.
        head: Values of the head; 0 if it is the embedding.
        rest: Norms and biases.
        cache: Values of keys and values per position.
        hidden: Width of the model.
        inner: Width of the feed-forward.
        vocab: Rows of the logits.
        states: Bytes of the running states.
        rollback: The copies of these.
    """

    layers: tuple[tuple[int, int], ...]
    embedding: int
    head: int
    rest: int
    cache: int
    hidden: int
    inner: int
    vocab: int
    states: int = 0
    rollback: RollbackPlan = CROP


def plan_memory(folder: Path, config: ModelConfig, placement: Placement, num_positions: int) -> MemoryPlan:
    """Estimates what a model takes, with a cache for `num_positions`.

    Raises:
        LoadError: Rejected tokens can't be removed from its cache.
    """
    num_value_bytes = 4 if placement.packed_dtype is not None else placement.torch_dtype.itemsize
    sizes = _own_sizes(config.decoder) if config.decoder is not None else _transformers_sizes(folder, num_value_bytes)
    if placement.packed_dtype is not None:
        return _packed_plan(sizes, config, placement.packed_dtype, num_positions)
    size = placement.torch_dtype.itemsize
    is_quantized = placement.quant != "none" and config.quant_method is None
    weights = (sizes.embedding + sizes.head + sizes.rest) * size
    for rows, values in sizes.layers:
        weights += weight_matrix_bytes(rows, values, placement.quant) if is_quantized else values * size
    if config.quant_method is not None and not config.is_unpacked(placement.device):
        weights = config.num_weight_bytes
    copies = 0
    if config.decoder is not None:
        copies = 2 * max((values for _, values in sizes.layers), default=0)
    elif placement.device == "cpu" and (is_quantized or config.dtype != placement.dtype):
        # transformers converts all weights from the mapped file, whose pages stay.
        copies = config.num_weight_bytes
    cache = sizes.cache * _capacity(placement, num_positions) * size + sizes.states
    graphs = _graph_bytes(placement, config.vocab_rows)
    chunk = prefill_chunk(config.decoder) if _is_cuda(placement) else PREFILL_CHUNK
    return MemoryPlan(weights, copies, cache, _activation_bytes(sizes, size, chunk), graphs, sizes.rollback)


def plan_draft_head_memory(
    config: ModelConfig, head: DraftHeadConfig, placement: Placement, num_positions: int
) -> MemoryPlan:
    """Estimates what a draft head takes in addition to its target, as stored, with a cache for `num_positions`."""
    packed = _PACKED_BYTES.get(placement.packed_dtype or "")
    size = packed or placement.torch_dtype.itemsize
    compute_size = 4 if packed else placement.torch_dtype.itemsize
    sizes = _mtp_sizes(config) if head.spec is None else _own_sizes(head.spec)
    # In int8 and nf4, the target's head is copied, unless it is in int8 itself.
    is_quantized = placement.packed_dtype in ("int8", "nf4")
    rows = (head.num_draft_ids or (config.vocab_rows or 0 if is_quantized else 0)) * sizes.hidden
    capacity = _capacity(placement, num_positions)
    features = (capacity if _is_cuda(placement) else num_positions) * sizes.hidden
    return MemoryPlan(
        int((config.num_parameters + rows) * size),
        config.num_weight_bytes,
        (sizes.cache * capacity + (0 if head.kind == "layers" else features)) * compute_size,
        _activation_bytes(sizes, compute_size),
        _graph_bytes(placement, config.vocab_rows),
    )


def plan_gguf_memory(header: GgufHeader, config: ModelConfig) -> MemoryPlan:
    """Estimates what a GGUF takes on llama.cpp, which allocates a float16 cache for the whole window at the start.

    It also makes room for two float32 sets of running states: the present ones, and those before a draft. The size is
    unknown for some architectures, and then not counted.
    """
    logits = MAX_ROWS * (config.vocab_rows or 0) * 4
    states = header.state_bytes
    cache = header.num_cache_values * 2 * (config.max_positions or 0) + 2 * (states or 0)
    # llama.cpp restores copies also for models whose states are convolutions alone. It holds the one before a draft.
    rollback = RollbackPlan("snapshot_and_replay", MAX_CHECKPOINTS, states) if header.state_layers else CROP
    return MemoryPlan(header.num_weight_bytes, 0, cache, logits, rollback=rollback)


def _own_sizes(spec: DecoderSpec) -> _Sizes:
    sizes = decoder_sizes(spec)
    return _Sizes(
        layers=tuple((shape[0], prod(shape)) for shape in layer_matrices(spec)),
        embedding=sizes.embedding,
        head=0 if sizes.is_tied else sizes.head,
        rest=sizes.rest,
        cache=2 * len(spec.layers) * spec.num_kv_heads * spec.head_size,
        hidden=spec.hidden_size,
        inner=spec.intermediate_size,
        vocab=spec.vocab_size,
    )


def _mtp_sizes(config: ModelConfig) -> _Sizes:
    """Sizes of a head in a checkpoint, as far as they are not known from the headers of its files."""
    hidden = config.values["hidden_size"]
    inner = config.values.get("intermediate_size") or 4 * hidden
    return _Sizes((), 0, 0, 0, cache=cache_values(config), hidden=hidden, inner=inner, vocab=config.vocab_rows or 0)


def _transformers_sizes(folder: Path, num_value_bytes: int) -> _Sizes:
    """Sizes of a model that transformers builds, without memory for its weights."""
    import torch

    model = empty_model(folder)
    config = model.config.get_text_config()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings()
    head_weight = None if head is None or head.weight is embedding else head.weight
    apart = {id(embedding), id(head_weight)}
    matrices = [
        module.weight
        for module in model.modules()
        if isinstance(module, torch.nn.Linear) and id(module.weight) not in apart
    ]
    apart |= {id(weight) for weight in matrices}
    rest = sum(int(parameter.numel()) for parameter in model.parameters() if id(parameter) not in apart)
    states, rollback = _states(model, num_value_bytes)  # last: it converts the model
    return _Sizes(
        layers=tuple((int(weight.shape[0]), int(weight.numel())) for weight in matrices),
        embedding=int(embedding.numel()),
        head=0 if head_weight is None else int(head_weight.numel()),
        rest=rest,
        cache=_cache_values(config, config.num_hidden_layers if states is None else states.num_attention_layers),
        hidden=config.hidden_size,
        inner=_widest(getattr(config, "intermediate_size", None)) or 4 * config.hidden_size,
        vocab=config.vocab_size,
        states=0 if states is None else states.num_bytes,
        rollback=rollback,
    )


def _cache_values(config: Any, num_layers: int) -> int:
    """Returns the values of keys and values per position."""
    if not num_layers:
        return 0
    num_heads = config.num_attention_heads
    num_kv_heads = getattr(config, "num_key_value_heads", None) or num_heads
    head_size = getattr(config, "head_dim", None) or config.hidden_size // num_heads
    return int(2 * num_layers * num_kv_heads * head_size)


def _states(model: Any, num_value_bytes: int) -> tuple[StateSizes | None, RollbackPlan]:
    """Returns the sizes of a model's running states and the plan of their copies.

    Raises:
        LoadError: As for `TransformersModel`.
    """
    refuse_unfit_states(model)
    try:
        sizes = state_sizes(model, num_value_bytes)
    except library_failures():
        # Installed kernels, as those of flash-linear-attention, run on a GPU only.
        return None, RollbackPlan("unknown")
    if sizes is None:
        return None, CROP
    kind: Literal["crop", "snapshot_and_replay"] = "snapshot_and_replay" if sizes.is_recurrent else "crop"
    return sizes, RollbackPlan(kind, MAX_COPIES, sizes.num_bytes)


def _widest(size: int | list[int] | None) -> int | None:
    return max(size) if isinstance(size, list) else size


def _packed_plan(sizes: _Sizes, config: ModelConfig, dtype: str, num_positions: int) -> MemoryPlan:
    """Plans packed layers and head, the embedding as stored, the rest in float32."""
    import torch

    stored, size = getattr(torch, config.dtype, torch.float32), _PACKED_BYTES[dtype]
    # Our own kernel reads 16-bit weights of specgen's decoder where they are, a tied head the embedding.
    may_stay = dtype == config.dtype and config.decoder is not None and has_float_matmul(stored)

    def stays(matrix: tuple[int, int]) -> bool:
        return may_stay and matrix[1] // matrix[0] % INPUTS_UNIT == 0

    def num_bytes(matrix: tuple[int, int]) -> int:
        # No other kernel computes bfloat16.
        return int(matrix[1] * (4 if dtype == "bfloat16" and not stays(matrix) else size))

    head = (sizes.vocab, sizes.head or sizes.embedding)
    weights = sum(map(num_bytes, sizes.layers)) + sizes.embedding * stored.itemsize + sizes.rest * 4
    if sizes.head or not stays(head):
        weights += max(num_bytes(head), head[1])  # at least 8 bits
    # What does not stay is packed from a float32 copy; transformers also keeps the pages of the file.
    largest = max((matrix[1] for matrix in (*sizes.layers, head) if not stays(matrix)), default=0)
    copies = 4 * largest + (0 if config.decoder is not None else config.num_weight_bytes)
    cache = sizes.cache * _grown(num_positions) * 4 + sizes.states
    return MemoryPlan(weights, copies, cache, _activation_bytes(sizes, 4), rollback=sizes.rollback)


def _is_cuda(placement: Placement) -> bool:
    return placement.device.startswith("cuda")


def _capacity(placement: Placement, num_positions: int) -> int:
    return cuda_capacity(num_positions) if _is_cuda(placement) else _grown(num_positions)


def _grown(num_positions: int) -> int:
    """Returns the positions of a cache that doubled until it held a text."""
    capacity = FIRST_CAPACITY
    while capacity < num_positions:
        capacity *= 2
    return capacity


def _graph_bytes(placement: Placement, num_logits: int | None) -> int:
    return GRAPH_BYTES + logits_bytes(num_logits or 0) if _is_cuda(placement) else 0


def _activation_bytes(sizes: _Sizes, size: int, chunk: int = PREFILL_CHUNK) -> int:
    """Returns the bytes of a chunk of the prompt in a layer, and of the longest draft's float32 logits and copies."""
    layer = chunk * (3 * sizes.inner + 8 * sizes.hidden) * max(size, 4)
    logits = 3 * 4 * (MAX_DRAFT_TOKENS // 4 + 1) * sizes.vocab
    return layer + logits
