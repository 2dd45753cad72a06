"""Estimates how much memory a model takes, from its config and the headers of its files. Reads no weights."""

from __future__ import annotations

from pathlib import Path

from specgen.core.settings import MAX_CHECKED_TOKENS, MAX_DRAFT_TOKENS
from specgen.doctor.model_sizes import ModelSizes, mtp_sizes, own_sizes, transformers_sizes
from specgen.doctor.results import CROP, MemoryPlan, RollbackPlan
from specgen.loading.cuda_memory import GRAPH_BYTES, cuda_capacity, logits_bytes, weight_matrix_bytes
from specgen.loading.gguf.metadata import GgufHeader
from specgen.loading.packed_formats import packed_head
from specgen.loading.placement import Placement
from specgen.loading.resolved_model import ModelConfig, Role
from specgen.models.cached_model import PREFILL_CHUNK
from specgen.models.checkpoints import MAX_CHECKPOINTS
from specgen.models.float_rows import INPUTS_UNIT
from specgen.models.kv_slots import FIRST_CAPACITY
from specgen.models.packing import has_float_matmul
from specgen.models.static.prefill import prefill_chunk

_PACKED_BYTES = {"bfloat16": 2.0, "float16": 2.0, "int8": 1.0, "nf4": 0.53125}
"""Bytes of a packed value; in nf4 with a bfloat16 scale for each 64. In int8, each row also has a float32 scale."""


def plan_memory(
    folder: Path, config: ModelConfig, placement: Placement, num_positions: int, role: Role = "target"
) -> MemoryPlan:
    """Estimates what a model takes, with a cache for `num_positions`.

    Raises:
        LoadError: Rejected tokens can't be removed from its cache.
    """
    num_value_bytes = 4 if placement.packed_dtype is not None else placement.torch_dtype.itemsize
    sizes = own_sizes(config.decoder) if config.decoder is not None else transformers_sizes(folder, num_value_bytes)
    if placement.packed_dtype is not None:
        head = packed_head(placement.packed_dtype, is_draft=role == "draft" and config.decoder is not None)
        return _packed_plan(sizes, config, (placement.packed_dtype, head), num_positions)
    size = placement.torch_dtype.itemsize
    is_quantized = placement.quant != "none" and config.quant_method is None
    weights = (sizes.embedding + sizes.head + sizes.rest) * size
    for rows, values in sizes.layers:
        weights += weight_matrix_bytes(rows, values, placement.quant) if is_quantized else values * size
    if role == "draft" and config.decoder is not None and not sizes.head and placement.quant in ("nf4", "fp4"):
        weights += weight_matrix_bytes(sizes.vocab, sizes.embedding, placement.quant)  # see `needed_bytes`
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
    config: ModelConfig, placement: Placement, of_target: Placement, num_positions: int
) -> MemoryPlan:
    """Estimates what a draft head takes in addition to its target, with a cache for `num_positions`."""
    head = config.draft_head
    assert head is not None, "the caller checks it"
    size = _PACKED_BYTES.get(placement.packed_dtype or placement.quant, placement.torch_dtype.itemsize)
    compute_size = 4 if placement.packed_dtype is not None else placement.torch_dtype.itemsize
    sizes = mtp_sizes(config) if head.spec is None else own_sizes(head.spec)
    # It has rows of its target's head, that head itself, or a copy of it in another format.
    is_shared = placement.quant == "none" or (placement.quant == "int8" and of_target.packed_dtype in ("int8", "nf4"))
    rows = head.num_draft_ids or (0 if is_shared else config.vocab_rows or 0)
    capacity = _capacity(placement, num_positions)
    features = (capacity if _is_cuda(placement) else num_positions) * sizes.hidden
    return MemoryPlan(
        int((config.num_parameters + rows * sizes.hidden) * size),
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
    logits = MAX_CHECKED_TOKENS * (config.vocab_rows or 0) * 4
    states = header.state_bytes
    cache = header.num_cache_values * 2 * (config.max_positions or 0) + 2 * (states or 0)
    # llama.cpp restores copies also for models whose states are convolutions alone. It holds the one before a draft.
    rollback = RollbackPlan("snapshot_and_replay", MAX_CHECKPOINTS, states) if header.state_layers else CROP
    return MemoryPlan(header.num_weight_bytes, 0, cache, logits, rollback=rollback)


def _packed_plan(sizes: ModelSizes, config: ModelConfig, formats: tuple[str, str], num_positions: int) -> MemoryPlan:
    """Plans packed layers and head, the embedding as stored, the rest in float32.

    Args:
        formats: Of the layers and of the head.
    """
    import torch

    stored = getattr(torch, config.dtype, torch.float32)
    # Our own kernel reads 16-bit weights of specgen's decoder where they are, a tied head the embedding.
    may_stay = formats[0] == config.dtype and config.decoder is not None and has_float_matmul(stored)

    def stays(matrix: tuple[int, int]) -> bool:
        return may_stay and matrix[1] // matrix[0] % INPUTS_UNIT == 0

    def num_bytes(matrix: tuple[int, int], packed: str) -> int:
        # No other kernel computes bfloat16.
        size = 4 if packed == "bfloat16" and not stays(matrix) else _PACKED_BYTES[packed]
        return int(matrix[1] * size) + (4 * matrix[0] if packed == "int8" else 0)

    head = (sizes.vocab, sizes.head or sizes.embedding)
    weights = sum(num_bytes(matrix, formats[0]) for matrix in sizes.layers)
    weights += sizes.embedding * stored.itemsize + sizes.rest * 4
    if sizes.head or not stays(head):
        weights += num_bytes(head, formats[1])
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


def _activation_bytes(sizes: ModelSizes, size: int, chunk: int = PREFILL_CHUNK) -> int:
    """Returns the bytes of a chunk of the prompt in a layer, and of the longest draft's float32 logits and copies."""
    layer = chunk * (3 * sizes.inner + 8 * sizes.hidden) * max(size, 4)
    logits = 3 * 4 * (MAX_DRAFT_TOKENS // 4 + 1) * sizes.vocab
    return layer + logits
