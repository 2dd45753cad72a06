"""What `doctor` found, as frozen values. Sizes in bytes. Standard library only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from specgen.bench.results import MeasuredCosts
from specgen.core.machine import Machine


@dataclass(frozen=True, slots=True)
class CacheState:
    """A folder of models.

    Args:
        name: `converted` (ours) or `hub`.
        path: Where it is.
        num_models: Entries in it.
        num_bytes: What they take.
        free_bytes: Free on its disk; None if the folder's disk can't be asked.
    """

    name: str
    path: str
    num_models: int
    num_bytes: int
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class TerminalState:
    """What the terminal can show.

    Args:
        is_terminal: stdout is one.
        columns: Its width; None if it is none.
        color: `color`, `attributes` or `marks`.
        encoding: Of stdout.
        term: `TERM`.
    """

    is_terminal: bool
    columns: int | None
    color: str
    encoding: str
    term: str


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """What a model will take on its device.

    Args:
        weights: As they are kept.
        copies: Of weights, beside them: layers joined for speed, file pages still mapped.
        cache: Keys and values for the planned positions.
        activations: Of the largest pass.
    """

    weights: int
    copies: int
    cache: int
    activations: int

    @property
    def total(self) -> int:
        """Bytes in all."""
        return self.weights + self.copies + self.cache + self.activations

    @property
    def least(self) -> int:
        """What must be free: file pages can be dropped by the system at any time."""
        return self.weights + self.cache + self.activations


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A model as it would run.

    Args:
        role: `target` or `draft`.
        name: What the user called it.
        model_type: Its architecture.
        num_parameters: Its parameters.
        device: Where it would run.
        dtype: Compute type.
        quant: What is done to its weights.
        remarks: Why an `auto` was decided so.
        window: Positions; None if its config names none.
        memory: What it would take.
    """

    role: str
    name: str
    model_type: str
    num_parameters: int
    device: str
    dtype: str
    quant: str
    remarks: tuple[str, ...]
    window: int | None
    memory: MemoryPlan


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """Everything on one device against what is free there.

    Args:
        device: Its name.
        needed: Of all models on it.
        free: What may be taken; None where the system does not tell.
    """

    device: str
    needed: int
    free: int | None

    @property
    def fits(self) -> bool | None:
        """Whether what is needed is free; None where nobody knows what is free."""
        return None if self.free is None else self.needed <= self.free


@dataclass(frozen=True, slots=True)
class PairReport:
    """A target, and a draft if there is one, before their weights are read.

    Args:
        models: Target first.
        devices: Where they would go.
        num_shared_tokens: Ids that mean the same to both; None without a draft model.
        notice: What differs between the tokenizers and does no harm.
        window: Positions both can use.
        num_positions: What the memory is planned for.
        library_bytes: What this program and its libraries take, without any model; main memory.
        costs: Of passes, if they were measured; the draft's under `draft`.
        drafter: What proposes the drafts: `model`, `lookup`, `model+lookup` or `none`.
    """

    models: tuple[ModelPlan, ...]
    devices: tuple[DevicePlan, ...]
    num_shared_tokens: int | None
    notice: str | None
    window: int | None
    num_positions: int
    library_bytes: int | None
    costs: MeasuredCosts | None = None
    drafter: str = "none"

    @property
    def peak_bytes(self) -> int:
        """Expected peak of the process where everything runs on the CPU."""
        return (self.library_bytes or 0) + sum(model.memory.total for model in self.models)


@dataclass(frozen=True, slots=True)
class LibraryState:
    """Libraries.

    Args:
        versions: By name; None for what is not installed.
        cuda: CUDA in one sentence.
        bitsandbytes: By device: `works`, or what is wrong.
    """

    versions: Mapping[str, str | None]
    cuda: str
    bitsandbytes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class SystemReport:
    """Holds what `doctor` found without looking at models."""

    machine: Machine
    libraries: LibraryState
    terminal: TerminalState
    caches: tuple[CacheState, ...]
