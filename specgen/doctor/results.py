"""Defines the results of `specgen doctor`. Sizes are in bytes. The field names are keys of its JSON."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from specgen.core.cost_model import MeasuredCosts
from specgen.core.errors import SpecgenError
from specgen.core.machine import Machine
from specgen.core.settings import DraftVocab


@dataclass(frozen=True, slots=True)
class CacheState:
    """A cache of models.

    Args:
        name: `converted` (models that specgen converted) or `hub`.
        path: Its folder.
        num_models: Models in it.
        num_bytes: Disk space that it uses.
        free_bytes: Free space on its disk; None if unknown.
    """

    name: str
    path: str
    num_models: int
    num_bytes: int
    free_bytes: int | None


@dataclass(frozen=True, slots=True)
class TerminalState:
    """What the terminal can display.

    Args:
        is_terminal: Whether stdout is a terminal.
        columns: Its width; None if stdout is not a terminal.
        color: `color`, `attributes` or `marks`.
        encoding: Of stdout.
        term: The value of `TERM`.
    """

    is_terminal: bool
    columns: int | None
    color: str
    encoding: str
    term: str


@dataclass(frozen=True, slots=True)
class RollbackPlan:
    """How a model's cache returns to the state before rejected tokens.

    Args:
        kind: `crop` removes tokens; `snapshot_and_replay` restores a copy of the running states and feeds the accepted
            tokens again; `unknown` if the model can't be run without its weights.
        num_snapshots: Copies of the running states that are kept; 0 without running states.
        snapshot_bytes: Memory of one; None if unknown, as for GGUF files of RWKV.
    """

    kind: Literal["crop", "snapshot_and_replay", "unknown"] = "crop"
    num_snapshots: int = 0
    snapshot_bytes: int | None = 0

    @property
    def num_bytes(self) -> int:
        """Memory of all copies, as far as it is known."""
        return self.num_snapshots * (self.snapshot_bytes or 0)


CROP = RollbackPlan()
"""That of a model without running states."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """The memory that a model will use on its device.

    Args:
        weights: The weights in their format.
        copies: Additional copies of weights: layers joined for speed, mapped pages of the file.
        cache: Keys and values for the planned positions, and running states.
        activations: Of the largest pass.
        graphs: Of recorded passes: logits, and an estimate for CUDA graphs and their pool. 0 on other devices.
        rollback: The copies of running states.
    """

    weights: int
    copies: int
    cache: int
    activations: int
    graphs: int = 0
    rollback: RollbackPlan = CROP

    @property
    def total(self) -> int:
        """All of it."""
        return self.copies + self.required

    @property
    def required(self) -> int:
        """What must be free. Excludes the copies, as the system can drop file pages at any time."""
        return self.weights + self.cache + self.activations + self.graphs + self.rollback.num_bytes


@dataclass(frozen=True, slots=True)
class ModelPlan:
    """A model as it would run.

    Args:
        role: `target` or `draft`.
        model_type: Its architecture.
        dtype: Compute type.
        quant: Weight format.
        remarks: Reasons for the automatic choices.
        window: Positions; None if its config does not limit them.
        required_by_device: What must be free on each device; empty if all of it is on one.
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
    required_by_device: Mapping[str, int] = field(default_factory=dict)

    def required_on(self, device: str) -> int:
        """Returns what must be free on a device."""
        found = self.required_by_device or {self.device: self.memory.required}
        return found.get(device, 0)


@dataclass(frozen=True, slots=True)
class DevicePlan:
    """The memory needed and free on one device.

    Args:
        device: Its name.
        needed: Required by all models on it.
        free: Available; None if unknown.
    """

    device: str
    needed: int
    free: int | None

    @property
    def fits(self) -> bool | None:
        """Whether the needed memory is free; None if unknown."""
        return None if self.free is None else self.needed <= self.free


@dataclass(frozen=True, slots=True)
class PairReport:
    """A target and its draft, if any, before their weights are read.

    Args:
        models: Target first.
        devices: The devices they would run on.
        num_shared_tokens: Tokens with the same meaning in both; None without a draft model.
        notice: A harmless difference between the tokenizers.
        window: Positions that both support.
        num_positions: Positions that the memory is planned for.
        library_bytes: Main memory of the program and its libraries, without models.
        costs: Measured pass costs, if any; those of the draft under `draft`.
        drafter: `model`, `lookup`, `model+lookup` or `none`.
        draft_vocab: How the draft's vocabulary is used; None without a draft model.
        vocab_remark: Describes a draft with another vocabulary; empty if it has the target's.
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
    draft_vocab: DraftVocab | None = None
    vocab_remark: str = ""

    @property
    def peak_bytes(self) -> int:
        """Expected peak memory of the process if everything runs on the CPU."""
        return (self.library_bytes or 0) + sum(model.memory.total for model in self.models)


@dataclass(frozen=True, slots=True)
class LibraryState:
    """The libraries on this machine.

    Args:
        versions: By name; None if not installed.
        cuda: The state of CUDA in one sentence.
        bitsandbytes: By device: `works`, or the error.
        llama_cpp: `works`, `not installed`, or what is wrong with it.
    """

    versions: Mapping[str, str | None]
    cuda: str
    bitsandbytes: Mapping[str, str]
    llama_cpp: str


@dataclass(frozen=True, slots=True)
class SystemReport:
    """The state of the machine, without models."""

    machine: Machine
    libraries: LibraryState
    terminal: TerminalState
    caches: tuple[CacheState, ...]


@dataclass(frozen=True, slots=True)
class Findings:
    """What is known of the machine and a pair of models on it.

    Args:
        system: The machine.
        pair: The models; None if none were given or the target can't be examined.
        error: What is wrong with the pair; None if nothing is.
    """

    system: SystemReport
    pair: PairReport | None = None
    error: SpecgenError | None = None
