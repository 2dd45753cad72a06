"""Plans which GPU runs which layers of a model that one GPU can't hold, and which GPU runs the draft.

Several GPUs give room, not speed: at one text, only one of them computes at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import accumulate
from math import prod

import torch

from specgen.engine.contract import LanguageModel
from specgen.loading.cuda_memory import (
    GRAPH_BYTES,
    PLANNED_POSITIONS,
    USABLE,
    cuda_bytes,
    cuda_capacity,
    logits_bytes,
    spec_cache_values,
    weight_matrix_bytes,
)
from specgen.loading.memory import free_bytes, shortage
from specgen.loading.placement import DeviceLayers, Placement
from specgen.loading.resolved_model import ModelConfig, ResolvedModel
from specgen.models.decoder_model import DecoderModel
from specgen.models.static.model import StaticModel
from specgen.models.tensor_names import EMBEDDING, HEAD, NORM, layer_prefix, tensor_shapes

ROOM_NOT_SPEED = "too large for one GPU: several give room, not speed"
NUM_SHARES = 32
"""Steps in which the devices are filled equally."""


@dataclass(frozen=True, slots=True)
class SegmentBytes:
    """What the parts of a decoder take, in bytes.

    Args:
        layers: Each layer with its cache.
        first: On the device of the first layer: the embedding.
        last: On the device of the last layer: norm, head, logits, and room for a draft.
        each: On each device: recorded passes.
    """

    layers: tuple[int, ...]
    first: int = 0
    last: int = 0
    each: int = 0

    def on_each(self, num_layers: Sequence[int]) -> list[int]:
        """Returns the bytes of segments of these lengths."""
        ends = list(accumulate(num_layers))
        found = [sum(self.layers[end - number : end]) + self.each for end, number in zip(ends, num_layers, strict=True)]
        found[0] += self.first
        found[-1] += self.last
        return found


def plan_segments(needs: SegmentBytes, free: Sequence[int]) -> list[tuple[int, int]] | None:
    """Divides layers between devices, in order: as few devices as possible, filled equally.

    Args:
        needs: What each part takes.
        free: What may be used of each device.

    Returns:
        Indices of devices and numbers of layers, none of them 0; None if the layers don't fit.
    """
    for num_devices in range(1, len(free) + 1):
        for share in range(1, NUM_SHARES + 1):
            found = _fill(needs, [space * share // NUM_SHARES for space in free[:num_devices]])
            if found is not None:
                return found
    return None


def _fill(needs: SegmentBytes, space: Sequence[int]) -> list[tuple[int, int]] | None:
    """Puts on each device but the last one as many layers as fit, and the others on the last one."""
    found: list[tuple[int, int]] = []
    start = 0
    for device, room in enumerate(space[:-1]):
        left = room - needs.each - (0 if start else needs.first)
        end = start
        while end < len(needs.layers) - 1 and needs.layers[end] <= left:
            left -= needs.layers[end]
            end += 1
        if end > start:
            found.append((device, end - start))
        start = end
    found.append((len(space) - 1, len(needs.layers) - start))
    return found if needs.on_each([number for _, number in found])[-1] <= space[-1] else None


def segment_bytes(config: ModelConfig, placement: Placement, num_positions: int, reserved: int = 0) -> SegmentBytes:
    """Returns what the parts of a model take that specgen's decoder runs.

    Args:
        num_positions: Length of the text.
        reserved: Room for a draft.
    """
    spec = config.decoder
    assert spec is not None, "only specgen's decoder has segments"
    shapes, size = tensor_shapes(spec), placement.torch_dtype.itemsize
    cache = spec_cache_values(spec) // len(spec.layers) * cuda_capacity(num_positions) * size
    layers = []
    for index in range(len(spec.layers)):
        own = [shape for name, shape in shapes.items() if name.startswith(layer_prefix(index))]
        is_packed = placement.quant != "none"
        weights = [
            weight_matrix_bytes(shape[0], prod(shape), placement.quant)
            if is_packed and len(shape) == 2
            else prod(shape) * size
            for shape in own
        ]
        layers.append(sum(weights) + cache)
    embedding = prod(shapes[EMBEDDING]) * size
    head = prod(shapes.get(HEAD, shapes[EMBEDDING])) * size + prod(shapes[NORM]) * size
    return SegmentBytes(tuple(layers), embedding, head + logits_bytes(spec.vocab_size) + reserved, GRAPH_BYTES)


def in_segments(placement: Placement, resolved: ResolvedModel) -> Placement:
    """Returns a placement with the layers of each GPU, if specgen's decoder runs a model on several.

    Raises:
        MemoryShortageError: The layers can't be divided between the GPUs.
    """
    if not placement.spread:
        return placement
    if not resolved.fits_own_decoder:
        return replace(placement, remarks=(*placement.remarks, ROOM_NOT_SPEED))
    config = resolved.config
    positions = min(config.max_positions or PLANNED_POSITIONS, PLANNED_POSITIONS)
    free = [int(space * USABLE) for space in free_by_gpu().values()]
    for reserved in (resolved.draft_bytes, 0):
        plan = plan_segments(segment_bytes(config, placement, positions, reserved), free)
        if plan is not None:
            segments = tuple(DeviceLayers(f"cuda:{index}", number) for index, number in plan)
            remarks = placement.remarks if len(segments) == 1 else (*placement.remarks, ROOM_NOT_SPEED)
            return replace(
                placement,
                device=segments[0].device,
                spread=len(segments) > 1,
                remarks=remarks,
                segments=segments,
            )
    needed = cuda_bytes(config, placement.dtype, placement.quant)
    raise shortage(resolved.name, "all CUDA devices", needed, placement.quant)


def leaving_room(target: ResolvedModel, draft: ResolvedModel | None) -> ResolvedModel:
    """Returns a target whose last GPU keeps room for a draft, should its layers be spread over several."""
    if draft is None or draft.format == "gguf":
        return target
    return replace(target, draft_bytes=draft_bytes(draft, target.config))


def draft_bytes(draft: ResolvedModel, target: ModelConfig, auto: str = "none") -> int:
    """Returns what a draft takes on CUDA if `--quant auto` becomes the format `auto`: at most, by default."""
    settings = draft.settings
    dtype = "bfloat16" if settings.dtype == "auto" else settings.dtype
    needed = cuda_bytes(draft.config, dtype, auto if settings.quant == "auto" else settings.quant, is_draft=True)
    if draft.draft_head is None or target.decoder is None:
        return needed
    # Next to a target in segments it has a copy of the embedding, and another one of the head in a format of its own.
    return needed + 4 * target.decoder.vocab_size * target.decoder.hidden_size


def beside_target(draft: ResolvedModel, target: LanguageModel | None) -> ResolvedModel:
    """Returns a draft model with the GPU that it should be loaded on: that of the target's head, if it fits there."""
    if target is None or target.device.type != "cuda":
        return draft
    free = free_by_gpu()
    if isinstance(target, DecoderModel | StaticModel) and target.decoder is not None:
        # The cache of the target is made when its first text begins.
        last, size = target.decoder.segments[-1].spec, target.decoder.dtype.itemsize
        cache = spec_cache_values(last) * cuda_capacity(PLANNED_POSITIONS) * size
        free[str(target.device)] -= cache + logits_bytes(last.vocab_size) + GRAPH_BYTES
    return on_gpu(draft, str(target.device), free)


def on_gpu(draft: ResolvedModel, preferred: str, free: Mapping[str, int]) -> ResolvedModel:
    """Returns a draft model with the preferred GPU if it fits there, else with the one that has most room.

    A device that the user chose stays, and `auto` stays for a draft that no GPU can hold.
    """
    if draft.settings.device != "auto" or len(free) < 2 or draft.draft_head is not None:
        return draft
    for quant in ("none", "nf4"):
        needed = draft_bytes(draft, draft.config, quant)
        for device in (preferred, max(free, key=lambda name: free[name])):
            if needed <= free[device] * USABLE:
                return replace(draft, settings=replace(draft.settings, device=device))
    return draft


def free_by_gpu() -> dict[str, int]:
    """Returns the free memory of each CUDA device."""
    return {name: free_bytes(name) or 0 for name in (f"cuda:{index}" for index in range(torch.cuda.device_count()))}
