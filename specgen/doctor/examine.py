"""Examines libraries, caches, and a pair of models before their weights are read."""

from __future__ import annotations

import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from specgen.core.cost_model import MeasuredCosts
from specgen.core.errors import DeviceError, MemoryShortageError, PairError, SpecgenError
from specgen.core.machine import Machine
from specgen.core.progress import SILENT, ProgressListener
from specgen.core.settings import PairSettings
from specgen.doctor.model_plan import plan_models
from specgen.doctor.results import (
    CacheState,
    DevicePlan,
    Findings,
    LibraryState,
    ModelPlan,
    PairReport,
    SystemReport,
    TerminalState,
)
from specgen.loading.llama_trial import llama_cpp_state
from specgen.loading.memory import free_bytes
from specgen.loading.placement import check_bitsandbytes
from specgen.runtime.environment import inspect_machine, library_versions
from specgen.runtime.loaded_models import load_models
from specgen.runtime.pair import Pair, resolve_pair
from specgen.runtime.pass_costs import measure_pass_costs
from specgen.storage.folders import cache_root
from specgen.text.chat_template import encode_text
from specgen.text.prompts import bundled_prompts

LONGEST_MEASURED_DRAFT = 12


def examine(
    settings: PairSettings | None,
    terminal: TerminalState,
    progress: ProgressListener = SILENT,
    context_tokens: int | None = None,
    *,
    measures: bool = False,
) -> Findings:
    """Examines the machine, and a pair of models on it.

    Args:
        settings: The pair; None examines the machine alone.
        terminal: Of the user.
        progress: Receives what is examined.
        context_tokens: As in `examine_pair`.
        measures: Also time passes, if the models fit into memory.
    """
    progress.stage("examining the machine")
    machine = inspect_machine()
    system = SystemReport(machine, examine_libraries(machine), terminal, tuple(examine_caches()))
    if settings is None:
        return Findings(system)
    pair, error = _examine_checked(settings, context_tokens, progress, measures=measures)
    return Findings(system, pair, error or (_memory_error(pair) if pair is not None else None))


def _examine_checked(
    settings: PairSettings, context_tokens: int | None, progress: ProgressListener, *, measures: bool
) -> tuple[PairReport | None, SpecgenError | None]:
    """Returns what is known of the pair, and what went wrong.

    If the measurement fails, the memory plan is still returned; if draft and target don't fit together, the target's.
    """
    report = None
    try:
        try:
            pair = resolve_pair(settings, progress)
        except PairError:
            with suppress(SpecgenError):
                alone = replace(settings, drafter="none", draft=None)
                report = examine_pair(resolve_pair(alone, progress), context_tokens)
            raise
        report = examine_pair(pair, context_tokens)
        if not measures or any(device.fits is False for device in report.devices):
            return report, None
        longest = max((prompt.messages[0].content for prompt in bundled_prompts()), key=len)
        return measure_pair(pair, report, encode_text(pair.tokenizer, longest), progress), None
    except SpecgenError as error:
        return report, error


def _memory_error(pair: PairReport) -> MemoryShortageError | None:
    full = next((device for device in pair.devices if device.fits is False), None)
    if full is None:
        return None
    option = "--context-size" if pair.models[0].dtype == "mixed" else "--quant nf4"
    return MemoryShortageError(
        f"the models do not fit into the memory of {full.device}", f"try {option} or a smaller model, or no draft"
    )


def examine_libraries(machine: Machine) -> LibraryState:
    """Returns versions, the state of CUDA, whether bitsandbytes can quantize on each device, and llama.cpp works."""
    state = {}
    for device in ["cpu", *(gpu.device for gpu in machine.gpus)]:
        try:
            check_bitsandbytes("nf4", device)
            state[device] = "works"
        except DeviceError as error:
            state[device] = error.message
    return LibraryState(library_versions(), _cuda(machine), state, llama_cpp_state())


def _cuda(machine: Machine) -> str:
    if machine.cuda_version is None:
        return "this torch was built without CUDA"
    if not machine.gpus:
        return f"torch was built for CUDA {machine.cuda_version}, but finds no device: check nvidia-smi"
    return f"CUDA {machine.cuda_version}, {len(machine.gpus)} device{'s' if len(machine.gpus) > 1 else ''}"


def examine_caches() -> list[CacheState]:
    """Returns the cache of converted models and the cache of the hub."""
    from huggingface_hub.constants import HF_HUB_CACHE

    return [
        _cache_state("converted", cache_root(), "*/*/config.json"),
        _cache_state("hub", Path(HF_HUB_CACHE), "models--*"),
    ]


def _cache_state(name: str, path: Path, pattern: str) -> CacheState:
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    try:
        free: int | None = shutil.disk_usage(existing).free
    except OSError:
        free = None
    return CacheState(name, str(path), sum(1 for _ in path.glob(pattern)), _size(path), free)


def _size(path: Path) -> int:
    """Returns the bytes of all files below. Links do not count, as most point to another file below."""
    total = 0
    for folder, _, names in os.walk(path):
        for name in names:
            file = os.path.join(folder, name)
            with suppress(OSError):  # a download in progress renames its files
                total += 0 if os.path.islink(file) else os.lstat(file).st_size
    return total


def examine_pair(pair: Pair, num_positions: int | None = None) -> PairReport:
    """Plans the memory of a pair, without reading weights.

    Args:
        pair: Files, tokenizers and their compatibility are already checked.
        num_positions: Text length to plan for. Default: the window, at most 4096. With llama.cpp always the window.

    Raises:
        DeviceError: A requested device is missing.
        SettingsError: A weight format can't be applied.
    """
    window = min((size for size in (pair.window, pair.draft_window) if size), default=None)
    # llama.cpp allocates its cache for the whole window at the start.
    whole = window if pair.target.gguf is not None else None
    positions = whole or num_positions or min(window or 4096, 4096)
    models = plan_models(pair.target, pair.draft, positions)
    return PairReport(
        models=tuple(models),
        devices=tuple(_devices(models)),
        num_shared_tokens=None if pair.shared is None else pair.shared.num_shared - len(pair.shared.masked_ids),
        notice=None if pair.shared is None else pair.shared.notice,
        window=window,
        num_positions=positions,
        library_bytes=_resident_bytes(),
        drafter=pair.settings.drafter,
        draft_vocab=None if pair.shared is None else pair.shared.kind,
        vocab_remark="" if pair.shared is None else pair.shared.remark,
    )


def _devices(models: Sequence[ModelPlan]) -> list[DevicePlan]:
    devices = dict.fromkeys(device for model in models for device in model.required_by_device or [model.device])
    return [
        DevicePlan(device, sum(model.required_on(device) for model in models), free_bytes(device)) for device in devices
    ]


def _resident_bytes() -> int | None:
    """Returns the memory of the process, which now has all libraries of a run loaded; None if unknown."""
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return None


def measure_pair(
    pair: Pair, report: PairReport, prompt_ids: Sequence[int], progress: ProgressListener = SILENT
) -> PairReport:
    """Loads the models, times passes, and returns the report with the costs.

    Raises:
        LoadError: A file is damaged.
        DeviceError: Too little memory.
    """
    models = load_models(pair, progress)
    progress.stage("timing passes")
    drafter = pair.settings.drafter
    label = "lookup" if drafter == "lookup" else "draft"
    costs = measure_pass_costs({label: models}, prompt_ids, LONGEST_MEASURED_DRAFT)
    # Without a drafter, the costs of drafting are meaningless.
    return replace(report, costs=MeasuredCosts(costs.verify_seconds, {}) if drafter == "none" else costs)
