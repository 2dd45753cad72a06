"""Loads the models of a benchmark, each draft once and all with one target in memory, and measures their memory."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from specgen.bench.results import Setting
from specgen.core.progress import SILENT, ProgressListener
from specgen.engine.clock import Clock
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import Pair
from specgen.text.vocabulary import compare_tokenizers


@dataclass(frozen=True, slots=True)
class Configuration:
    """Joins a setting and the models that run it.

    All configurations of a backend share one target in memory; those with the same draft also share their models.
    """

    setting: Setting
    models: LoadedModels


@dataclass(frozen=True, slots=True)
class Host:
    """Describes where a benchmark runs.

    Args:
        environment: Versions and hardware, for the report.
        clock: Seconds of passes; None: the engine's own clock, which waits for the devices.
        wall_clock: Seconds for the time limit.
    """

    environment: Mapping[str, Any] = field(default_factory=dict)
    clock: Clock | None = None
    wall_clock: Clock = perf_counter


def open_configurations(
    baseline: Pair, drafts: Mapping[str, Pair], settings: Sequence[Setting], progress: ProgressListener = SILENT
) -> list[Configuration]:
    """Loads the weights of a target and of every draft; returns the baseline, then a configuration per setting.

    Args:
        baseline: The target without a drafter.
        drafts: A pair with the same target for each draft, by the `draft` of its settings.
        settings: What to run besides the baseline.
        progress: Receives the progress of loading.

    Raises:
        LoadError: A file is damaged.
        DeviceError: Too little memory for all of them.
    """
    target_alone = load_models(baseline, progress)
    loaded: dict[str, LoadedModels] = {}
    for name, pair in drafts.items():
        progress.stage(f"loading draft {name}")
        loaded[name] = target_alone.with_draft(pair, progress)
    labelled = [
        Configuration(_with_label(setting, loaded[setting.draft]), loaded[setting.draft]) for setting in settings
    ]
    return [Configuration(Setting("none"), target_alone), *_with_distinct_labels(labelled)]


def open_backends(
    pairs: Mapping[str, tuple[Pair, Mapping[str, Pair]]],
    settings: Sequence[Setting],
    progress: ProgressListener = SILENT,
) -> list[Configuration]:
    """Loads one target on several backends; returns the configurations of the first one, then those of the others.

    Args:
        pairs: The first two arguments of `open_configurations`, by the backend's name.
        settings: What to run on each backend.
        progress: Receives the progress of loading.

    Raises:
        PairError: The backends tokenize differently.
        LoadError: A file is damaged.
        DeviceError: Too little memory for all of them.
    """
    first, *others = [baseline for baseline, _ in pairs.values()]
    for other in others:
        compare_tokenizers(first.tokenizer, other.tokenizer)
    return [
        replace(configuration, setting=replace(configuration.setting, backend=backend))
        for backend, (baseline, drafts) in pairs.items()
        for configuration in open_configurations(baseline, drafts, settings, progress)
    ]


def _with_distinct_labels(configurations: Sequence[Configuration]) -> list[Configuration]:
    """Labels drafts from two folders that share a name and a format by their names on the command line instead."""
    drafts: dict[str, set[str]] = defaultdict(set)
    for one in configurations:
        drafts[one.setting.label].add(one.setting.draft)
    return [
        replace(one, setting=replace(one.setting, label=one.setting.draft))
        if len(drafts[one.setting.label]) > 1
        else one
        for one in configurations
    ]


def _with_label(setting: Setting, models: LoadedModels) -> Setting:
    """Returns the setting, labelled with the draft that really runs: `auto` is decided by now."""
    info, drafter = models.draft_info, models.pair.settings.drafter
    if info is None:
        return replace(setting, drafter=drafter, draft=drafter, label=drafter)
    weight_format = info.dtype if info.quant == "none" else info.quant
    lookup = "+lookup" if drafter == "model+lookup" else ""
    kind = "same" if models.pair.shared is None else models.pair.shared.kind
    vocab = "" if kind == "same" else f" by {'shared tokens' if kind == 'shared' else kind}"
    label = f"{info.name} {weight_format}{vocab}{lookup}"
    return replace(setting, drafter=drafter, label=label, num_draft_bytes=info.num_bytes)


class PeakMemory:
    """Measures the peak memory of a run from now on, without the weights of models that the run does not use.

    It is that of the CUDA devices if there are any, else the resident size of the process, which only Linux can reset.
    """

    def __init__(self, configurations: Sequence[Configuration], running: Configuration) -> None:
        self._idle_bytes = _idle_weight_bytes(configurations, running)
        self._uses_cuda = any(device.type == "cuda" for device in running.models.devices)
        self._is_known = True
        if self._uses_cuda:
            for index in range(torch.cuda.device_count()):
                torch.cuda.reset_peak_memory_stats(index)
            return
        try:
            Path("/proc/self/clear_refs").write_text("5")  # sets VmHWM back to the present size; see proc(5)
        except OSError:
            self._is_known = False

    def read(self) -> int | None:
        """Returns the peak in bytes; None if the system does not report it."""
        if self._uses_cuda:
            peak = sum(torch.cuda.max_memory_reserved(index) for index in range(torch.cuda.device_count()))
            return max(peak - self._idle_bytes, 0)
        if not self._is_known:
            return None
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            peak = 1024 * int(next(line for line in lines if line.startswith("VmHWM:")).split()[1])
        except (OSError, StopIteration, ValueError, IndexError):
            return None
        return max(peak - self._idle_bytes, 0)


def _idle_weight_bytes(configurations: Sequence[Configuration], running: Configuration) -> int:
    sizes = {id(one.models.draft): one.setting.num_draft_bytes for one in configurations}
    sizes |= {id(one.models.target): one.models.target_info.num_bytes for one in configurations}
    for model in (running.models.target, running.models.draft):
        sizes.pop(id(model), None)
    return sum(sizes.values())
