"""Defines the settings and the report of a benchmark as frozen values. Does not import torch."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from specgen.core.cost_model import MeasuredCosts
from specgen.core.errors import SettingsError
from specgen.core.metrics import Counts
from specgen.core.results import LogitGap, ModelInfo
from specgen.core.settings import DraftSchedule, Quantization, SamplingSettings, TreeSchedule

BASELINE = 0
"""Index of the baseline, the target alone, among the settings of every report."""


@dataclass(frozen=True, slots=True)
class Setting:
    """Describes one way to generate: a drafter and a draft length.

    Args:
        drafter: `model`, `lookup`, `model+lookup`, `server` (as a server was started), `peer` (another program), or
            `none` for the baseline.
        draft: The draft as on the command line, or the peer's name; empty for the baseline.
        label: Short name of the draft as it really runs.
        num_draft_tokens: Longest draft.
        schedule: `auto` chooses lengths by cost.
        quant: Requested weight format of the draft.
        num_draft_bytes: Size of the draft's weights in memory.
        backend: `llama.cpp` or `transformers` if two backends are compared; else empty.
        concurrency: Requests that a server gets at a time.
        num_tree_nodes: Tokens of a draft that branches; 0: drafts don't.
        tree_schedule: `auto` chooses sizes by cost, up to `num_tree_nodes`; `default` until the models are loaded.
        can_branch: The drafts can branch.
    """

    drafter: str
    draft: str = ""
    label: str = "(target alone)"
    num_draft_tokens: int = 0
    schedule: DraftSchedule = "constant"
    quant: Quantization = "auto"
    num_draft_bytes: int = 0
    backend: str = ""
    concurrency: int = 1
    num_tree_nodes: int = 0
    tree_schedule: TreeSchedule = "constant"
    can_branch: bool = False

    @property
    def has_drafter(self) -> bool:
        """Whether it is neither the target alone nor another program."""
        return self.drafter not in ("none", "peer")

    @property
    def length(self) -> str:
        """Draft length as on the command line; `-` if a server or another program decided it."""
        if self.drafter in ("server", "peer"):
            return "-"
        return "auto" if self.schedule == "auto" else str(self.num_draft_tokens)

    @property
    def tree(self) -> str:
        """Size of drafts that branch, as on the command line."""
        if not self.num_tree_nodes:
            return "off"
        return "auto" if self.tree_schedule == "auto" else str(self.num_tree_nodes)

    @property
    def position_unit(self) -> str:
        """What the position of a difference counts: servers send text."""
        return "character" if self.drafter == "server" else "token"

    @property
    def name(self) -> str:
        """Name for messages: `lookup -k auto`."""
        name = self.label if self.drafter in ("none", "server", "peer") else f"{self.label} -k {self.length}"
        if self.num_tree_nodes:
            name = f"{name} --tree {self.tree}"
        if self.concurrency > 1:
            name = f"{name} at concurrency {self.concurrency}"
        return f"{name} on {self.backend}" if self.backend else name


@dataclass(frozen=True, slots=True)
class BenchSettings:
    """Holds the options of a measurement.

    Args:
        num_tokens: New tokens per run.
        num_repeats: Runs per prompt and setting.
        num_warmups: Uncounted runs of full length per setting.
        stops_at_end: Stop at the model's end token, so lengths may differ.
        time_limit_seconds: Start no repeat that would end after this time, counted from the first pass; the first
            repeat ends after the prompt that reaches it. None: no limit.
        template_variables: Variables for the chat template, for the report.
        times_passes: Also time single passes and draft tokens, to predict the speedup.
        concurrencies: How many requests servers get at a time; each is measured on its own.
    """

    num_tokens: int = 128
    num_repeats: int = 5
    num_warmups: int = 1
    sampling: SamplingSettings = field(default_factory=SamplingSettings)
    stops_at_end: bool = False
    time_limit_seconds: float | None = None
    times_passes: bool = True
    template_variables: Mapping[str, Any] = field(default_factory=dict)
    concurrencies: tuple[int, ...] = (1,)

    def __post_init__(self) -> None:
        for name, value, least in (
            ("max-new-tokens", self.num_tokens, 2),
            ("repeats", self.num_repeats, 1),
            ("warmup", self.num_warmups, 0),
        ):
            if value < least:
                raise SettingsError(f"invalid --{name} {value}: out of range", f"give an integer >= {least}")


@dataclass(frozen=True, slots=True)
class Prompt:
    """Describes a prompt; reports do not contain its text."""

    id: str
    category: str
    num_tokens: int


@dataclass(frozen=True, slots=True)
class Run:
    """Holds one run of a prompt in a setting.

    Args:
        setting: Index into the report's settings.
        prompt: Index into the report's prompts.
        repeat: From 0.
        counts: Sums over its rounds.
        token_ids: The generated tokens.
        started_seconds: Since the first pass of the benchmark.
        peak_memory_bytes: Peak memory during the run, without the weights of models that it did not use; None: the
            system does not report it.
        total_seconds: From the request to the end of the answer, for servers.
    """

    setting: int
    prompt: int
    repeat: int
    counts: Counts
    token_ids: tuple[int, ...]
    peak_memory_bytes: int | None = None
    started_seconds: float = 0.0
    total_seconds: float = 0.0


@dataclass(frozen=True, slots=True)
class Difference:
    """Describes a greedy answer that differs from the baseline's.

    Args:
        setting: Index of the setting.
        prompt: Index of the prompt.
        position: Index of the first token that differs, or of the first character in texts of servers.
        gap: Between the logits of the baseline's token and of the other token there.
    """

    setting: int
    prompt: int
    position: int
    gap: LogitGap

    @property
    def is_near_tie(self) -> bool:
        """Whether rounding explains the difference."""
        return self.gap.is_near_tie


@dataclass(frozen=True, slots=True)
class Failure:
    """Describes a setting that failed and was skipped afterwards."""

    setting: int
    message: str


@dataclass(frozen=True, slots=True)
class BenchReport:
    """Holds the runs of a benchmark so far, and how they were measured.

    Args:
        target: The target as it really runs, on the first backend.
        drafts: The draft models, by label.
        settings: The baseline first; those of a second backend or concurrency follow all of the first one's, likewise.
        prompts: In the order they were run.
        runs: All finished runs.
        differences: The worst difference per setting and prompt, greedy runs only.
        compared: Setting and prompt of the greedy answers that were compared with the baseline's.
        costs: Costs of passes on the first backend; None if they were not measured.
        notices: Notices from loading.
        environment: Versions, processor, devices.
        is_complete: False while it runs, and if it was interrupted or reached its time limit.
        is_out_of_time: The time limit was reached before the runs finished.
        doubts: Codes and messages of what a benchmark of servers saw: `not_alone`, `merged_chunks`,
            `different_models`, `retried`, `perfect_acceptance`, `counters_differ`.
        other_target: The same target on the second backend, if two are compared.
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
    doubts: tuple[tuple[str, str], ...] = ()

    def baseline_of(self, index: int) -> int:
        """Returns the index of the setting that another one is compared with: the first of its concurrency."""
        concurrency = self.settings[index].concurrency
        return next(number for number, one in enumerate(self.settings) if one.concurrency == concurrency)


Stage = Literal["reading", "costs", "warmup", "run", "prompt", "repeat", "end"]


@dataclass(frozen=True, slots=True)
class BenchStep:
    """Reports a step that is done.

    Args:
        stage: `reading` (earlier turns), `costs`, `warmup`, `run`, `prompt` (all its runs in a repeat), `repeat`,
            `end`.
        num_done: Runs done, warm-up included.
        num_steps: All runs.
        run: The finished run, for `run`.
    """

    stage: Stage
    num_done: int
    num_steps: int
    run: Run | None = None
