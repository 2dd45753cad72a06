"""What a benchmark is asked to do and what it found, as frozen values. No torch, no arithmetic."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from specgen.core.cost_model import PassCosts, interpolated
from specgen.core.errors import SettingsError
from specgen.core.metrics import Counts
from specgen.core.results import LogitGap, ModelInfo
from specgen.core.settings import DraftSchedule, Quantization, SamplingSettings

BASELINE = 0
"""Index of the target alone among the settings of every report."""


@dataclass(frozen=True, slots=True)
class Setting:
    """One way to generate: a drafter and a draft length.

    Args:
        drafter: `model`, `lookup`, `model+lookup`, or `none` for the target alone.
        draft: The draft as it was asked for on the command line; empty for the target alone.
        label: Short name of the draft as it really runs.
        num_draft_tokens: Longest draft.
        schedule: `auto` chooses lengths by cost.
        quant: Weight format asked for the draft.
        num_draft_bytes: What the draft's weights take in memory.
        engine: What runs the target where two engines are compared: `llama.cpp` or `transformers`; else empty.
    """

    drafter: str
    draft: str = ""
    label: str = "(target alone)"
    num_draft_tokens: int = 0
    schedule: DraftSchedule = "constant"
    quant: Quantization = "auto"
    num_draft_bytes: int = 0
    backend: str = ""

    @property
    def length(self) -> str:
        """The draft length as on the command line."""
        return "auto" if self.schedule == "auto" else str(self.num_draft_tokens)

    @property
    def name(self) -> str:
        """`lookup -k auto`, for messages."""
        name = self.label if self.drafter == "none" else f"{self.label} -k {self.length}"
        return f"{name} on {self.backend}" if self.backend else name


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """How to measure.

    Args:
        num_tokens: New tokens of each run.
        num_repeats: Times each prompt is run in each setting.
        num_warmups: Runs of full length per setting that are not counted.
        sampling: How tokens are chosen.
        stops_at_end: Stop at the model's end token, so that lengths may differ.
        budget_seconds: Begin no further repeat that would end behind this, counted from the first pass; the first
            repeat ends behind the prompt that reaches it. None: no limit.
        probes_costs: Time passes of the target and draft tokens on their own, for the model's prediction.
    """

    num_tokens: int = 128
    num_repeats: int = 5
    num_warmups: int = 1
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stops_at_end: bool = False
    time_limit_seconds: float | None = None
    times_passes: bool = True

    def __post_init__(self) -> None:
        for name, value, least in (
            ("max-new-tokens", self.num_tokens, 2),
            ("repeats", self.num_repeats, 1),
            ("warmup", self.num_warmups, 0),
        ):
            if value < least:
                raise SettingsError(f"--{name} {value} is out of range", f"give an integer >= {least}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """A prompt by name. Its text is not kept in reports."""

    id: str
    category: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """One prompt in one setting, once.

    Args:
        setting: Index into the report's settings.
        prompt: Index into the report's prompts.
        repeat: From 0.
        counts: Sums over its rounds.
        token_ids: What was generated.
        started_seconds: Since the first pass of the benchmark.
        peak_memory_bytes: Most memory in use during the run, weights of drafts it did not use left out; None: the
            system does not tell.
    """

    setting: int
    prompt: int
    repeat: int
    counts: Counts
    token_ids: tuple[int, ...]
    peak_memory_bytes: int | None = None
    started_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Difference:
    """A greedy answer that is not the target's own.

    Args:
        setting: Index of the setting.
        prompt: Index of the prompt.
        position: Index of the first token that differs.
        gap: Between the target's own choice there and the token written instead.
    """

    setting: int
    prompt: int
    position: int
    gap: LogitGap

    @property
    def is_near_tie(self) -> bool:
        """Whether rounding can have decided it."""
        return self.gap.is_near_tie


@dataclass(frozen=True, slots=True)
class MeasuredCosts:
    """What passes cost on this machine, in seconds, measured apart from any run.

    Args:
        verify_seconds: v(n): a pass of the target over n tokens behind a prompt, by n.
        draft_seconds: One draft token, by the draft's label; for lookup, one proposal.
        catch_up_seconds: What the first token of a draft costs more where the draft model has one more token to read.
    """

    verify_seconds: Mapping[int, float]
    draft_seconds: Mapping[str, float]
    catch_up_seconds: Mapping[str, float] = field(default_factory=dict)

    def verify(self, num_tokens: int) -> float | None:
        """Return v(n), interpolated between measured lengths; None outside them."""
        return interpolated(self.verify_seconds, num_tokens)

    def of(self, label: str) -> PassCosts:
        """Return the costs of a round with one of the drafts."""
        # Lookup proposes all its tokens at once.
        return PassCosts(
            self.verify_seconds,
            self.draft_seconds.get(label, 0.0),
            is_per_round=label == "lookup",
            catch_up_seconds=self.catch_up_seconds.get(label, 0.0),
        )


@dataclass(frozen=True, slots=True)
class Failure:
    """A setting that broke and was left out from then on."""

    setting: int
    message: str


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Everything a benchmark found so far: raw runs, and what they were taken with.

    Args:
        target: The target as it really runs, on the first engine.
        drafts: The draft models, by label.
        settings: The target alone first; behind all settings of its engine the other engine's, likewise.
        prompts: In the order they were run.
        config: How it was measured.
        runs: Every finished run.
        differences: First difference per setting and prompt, greedy runs only.
        compared: Setting and prompt of the greedy answers that were held beside the target's own.
        costs: Passes of the first engine timed on their own; None if they were not.
        failures: Settings that broke.
        notices: What loading had to tell.
        environment: Versions, processor, devices.
        is_complete: False while it runs, and for ever if it was interrupted or its time ran out.
        is_out_of_time: The time budget ended before the runs did.
        other_target: The same target on the second engine, where two are compared.
    """

    target: ModelInfo
    drafts: Mapping[str, ModelInfo]
    settings: tuple[Setting, ...]
    prompts: tuple[Prompt, ...]
    config: BenchSettings
    runs: tuple[Run, ...] = ()
    differences: tuple[Difference, ...] = ()
    compared: frozenset[tuple[int, int]] = frozenset()
    costs: MeasuredCosts | None = None
    failures: tuple[Failure, ...] = ()
    notices: tuple[str, ...] = ()
    environment: Mapping[str, Any] = field(default_factory=dict)
    is_complete: bool = False
    is_out_of_time: bool = False
    other_target: ModelInfo | None = None


Stage = Literal["reading", "costs", "warmup", "run", "prompt", "repeat", "end"]


@dataclass(frozen=True, slots=True)
class BenchStep:
    """Something is done.

    Args:
        stage: `reading` (earlier turns), `costs`, `warmup`, `run`, `prompt` (all its runs of a repeat), `repeat`
            (a whole one), `end`.
        num_done: Steps of equal length done; those of the warm-up count.
        num_steps: Of how many.
        run: The run that was finished, for `run`.
    """

    stage: Stage
    num_done: int
    num_steps: int
    run: Run | None = None
