"""Defines what a benchmark measures and where, and reads the peak memory of a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from time import perf_counter
from typing import TYPE_CHECKING, Any

import torch

from specgen.bench.results import Setting
from specgen.core.settings import DecodeSettings
from specgen.engine.clock import Clock

if TYPE_CHECKING:
    from specgen.runtime.loaded_models import LoadedModels


@dataclass(frozen=True, slots=True)
class Configuration:
    """Joins a setting and the models that run it.

    All configurations of a backend share one target in memory; those with the same draft also share their models.
    """

    setting: Setting
    models: LoadedModels

    def decode_settings(self, num_tokens: int, end_ids: frozenset[int]) -> DecodeSettings:
        """Returns how a run generates."""
        setting = self.setting
        return DecodeSettings(
            num_tokens,
            setting.num_draft_tokens,
            setting.schedule,
            end_ids,
            strict=True,
            num_tree_nodes=setting.num_tree_nodes,
            tree_schedule=setting.tree_schedule,
        )


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
