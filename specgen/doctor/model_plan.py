"""Plans how the models of a pair would run: devices, weight formats and memory. Reads no weights."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

from specgen.doctor.memory_plan import plan_draft_head_memory, plan_gguf_memory, plan_memory
from specgen.doctor.results import MemoryPlan, ModelPlan
from specgen.loading.draft_head_parts import draft_head_placement
from specgen.loading.gpus import free_by_gpu, in_segments, leaving_room, on_gpu, segment_bytes
from specgen.loading.llama_cpp import gpu_layers, llama_library
from specgen.loading.module_sizes import with_module_sizes
from specgen.loading.placement import Placement, choose_placement
from specgen.loading.resolved_model import ModelConfig, ResolvedModel
from specgen.storage.cost_store import CostStore


def plan_models(target: ResolvedModel, draft: ResolvedModel | None, num_positions: int) -> list[ModelPlan]:
    """Plans a target and its draft.

    Raises:
        DeviceError: A requested device is missing.
        SettingsError: A weight format can't be applied.
    """
    target, placement = _placed(leaving_room(target, draft))
    plan = _plan(target, placement, num_positions)
    if draft is None:
        return [plan]
    last = [plan.device, *plan.required_by_device][-1]
    if draft.draft_head is not None and placement is not None:
        of_draft = draft_head_placement(draft, target.config, placement, last)
        memory = plan_draft_head_memory(draft.config, of_draft, placement, num_positions)
        return [plan, _torch_plan(draft, of_draft, memory)]
    if draft.gguf is None and last.startswith("cuda"):
        left = {device: free - plan.required_on(device) for device, free in free_by_gpu().items()}
        draft = on_gpu(draft, last, left)
    return [plan, _plan(*_placed(draft), num_positions)]


def _placed(model: ResolvedModel) -> tuple[ResolvedModel, Placement | None]:
    """Returns a model with the sizes of its modules, and where torch runs it; None: llama.cpp runs it."""
    if model.gguf is not None:
        return model, None
    model = replace(model, config=with_module_sizes(model.config, model.path))
    from_gguf, times = model.files.from_gguf, CostStore()
    placement = choose_placement(model.settings, model.config, from_gguf=from_gguf, role=model.role, times=times)
    return model, in_segments(placement, model)


def _plan(model: ResolvedModel, placement: Placement | None, num_positions: int) -> ModelPlan:
    if placement is None:
        return _gguf_plan(model)
    memory = plan_memory(model.path, model.config, placement, num_positions, model.role)
    by_device = _by_device(model.config, placement, memory, num_positions) if placement.spread else {}
    return replace(_torch_plan(model, placement, memory), required_by_device=by_device)


def _torch_plan(model: ResolvedModel, placement: Placement, memory: MemoryPlan) -> ModelPlan:
    config, device = model.config, placement.device_name
    quant = config.quant_method or placement.quant
    return _plan_of(model)(device, placement.dtype, quant, placement.remarks, config.max_positions, memory)


def _gguf_plan(model: ResolvedModel) -> ModelPlan:
    assert model.gguf is not None, "llama.cpp runs it"
    header = model.gguf.header
    is_on_gpu = gpu_layers(model.settings, can_offload=bool(llama_library().llama_supports_gpu_offload())) != 0
    device, memory = "gpu" if is_on_gpu else "cpu", plan_gguf_memory(header, model.config)
    return _plan_of(model)(device, "mixed", header.quantization, ("llama.cpp",), header.context_length, memory)


def _plan_of(model: ResolvedModel) -> Callable[..., ModelPlan]:
    """Returns what makes a model's plan from its device and all that depends on that."""
    return partial(ModelPlan, model.role, model.name, model.config.model_type, model.config.num_parameters)


def _by_device(config: ModelConfig, placement: Placement, memory: MemoryPlan, num_positions: int) -> dict[str, int]:
    """Returns what a model on several GPUs needs on each; transformers divides it by the free memory."""
    if not placement.segments:
        free = free_by_gpu()
        return {device: memory.required * space // max(sum(free.values()), 1) for device, space in free.items()}
    needed = segment_bytes(config, placement, num_positions).on_each([part.num_layers for part in placement.segments])
    return {part.device: number + memory.activations for part, number in zip(placement.segments, needed, strict=True)}
