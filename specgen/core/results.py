"""Defines the result of a run: frozen values that renderers turn into a summary or JSON."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from specgen.core.baseline import Baseline, speedup
from specgen.core.cost_model import Forecast
from specgen.core.events import FinishReason
from specgen.core.metrics import Counts
from specgen.core.settings import DraftSchedule, SamplingSettings


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """Describes a model as it really runs, which may differ from the request.

    Args:
        name: The user's name for it, or the built-in model's.
        quant: `none`, `int8`, `nf4`, `fp4`, or the checkpoint's own method.
        dtype: Compute type, `bfloat16`; of packed 16-bit weights their own.
        device: `cpu`, `cuda:0`, or `cuda:0-1` when spread over several.
        revision: Commit of a hub model, if known.
        num_bytes: Of its weights in memory.
        remark: How `auto` was decided, or the source ("from GGUF"), for the banner. May be empty.
        arithmetic: What packed layers compute in: `float32`, or `int8` if they round their inputs. Empty: `dtype`.
    """

    name: str
    quant: str
    dtype: str
    device: str
    revision: str | None = None
    num_parameters: int = 0
    num_bytes: int = 0
    remark: str = ""
    arithmetic: str = ""


@dataclass(frozen=True, slots=True)
class BatchInvarianceCheck:
    """Result of the self-test at start: whether tokens verified together change each other's logits.

    Args:
        max_difference: Largest change of a logit by the tokens after its position; 0 if rows are independent.
        threshold: Outlier threshold of int8 layers; above 0, any text may contain an outlier that makes rows interact.
        is_exact: Passes over several tokens give the logits of passes over one token, bit for bit.
        has_exact_trees: Passes over trees do so, too, if those over consecutive tokens do.
        recurrent_difference: Largest difference of a logit between a pass over several tokens and passes over one, if a
            layer is recurrent: its rules for the two round differently. None for other models, and if not measured.
    """

    max_difference: float
    threshold: float = 0.0
    is_exact: bool = False
    has_exact_trees: bool = True
    recurrent_difference: float | None = None

    @property
    def is_invariant(self) -> bool:
        """Whether rows are independent; False for a difference of NaN."""
        return self.max_difference == 0.0 and self.threshold == 0.0

    @property
    def reason(self) -> str:
        """Why a run is not lossless; empty if it is."""
        if self.threshold > 0:
            return f"int8 with outlier threshold {self.threshold:g} lets draft tokens change the logits before them"
        if not self.is_invariant:
            return f"tokens verified together change each other's logits by up to {self.max_difference:.2g}"
        return ""


Guarantee = Literal["exact", "near_tie", "same_distribution", "none", "unchecked"]
"""Guarantee of a text: the target's own tokens; the same up to rounding; the same distribution; nothing; what a server
promises, which is not checked."""
Source = Literal["response", "metrics", "client"]
"""Where a figure of a served answer comes from: the answer itself, the server's counters, or our own clock."""


@dataclass(frozen=True, slots=True)
class ServerInfo:
    """Describes the server that answers.

    Args:
        engine: Name and version.
        host: Host and port.
        baseline_host: The server without drafts that it is compared with; empty without one.
        marks_tokens: It reports which tokens were accepted while they arrive.
    """

    engine: str
    host: str
    baseline_host: str = ""
    marks_tokens: bool = False


@dataclass(frozen=True, slots=True)
class ServedFigures:
    """Describes where the figures of a served answer come from.

    Args:
        acceptance: Of drafted and accepted tokens; None if the server does not report them.
        clock: Of the decoding time.
        ceiling: What the speedup is at most, by its rounds; None if unknown. A round takes at least a plain step.
        advice: How the server could be started to report more; empty if nothing is missing.
        baseline_command: Starts the same model without drafts; empty if a speedup was measured, or for other engines.
    """

    acceptance: Source | None
    clock: Source
    ceiling: float | None = None
    advice: str = ""
    baseline_command: str = ""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """Describes a run before its first token.

    Args:
        draft: The draft model; None without one.
        drafter: `model`, `lookup`, `model+lookup` (each round the better one) or `none`.
        num_draft_tokens: Longest draft of a round; 0 without a drafter.
        schedule: `constant`, or `auto`: lengths chosen by measured cost.
        num_tree_nodes: Most tokens of a draft that branches; 0: drafts don't.
        tree_schedule: Of the sizes of trees, as `schedule`.
        sampling: The settings in effect.
        sampling_source: Where they come from: `options`, `model` (its generation_config), `default`.
        load_seconds: Of both models.
        batch_invariance: The target's self-test; None if it was not needed: plain float32.
        server: The server that answers; None if this program does.
    """

    target: ModelInfo
    draft: ModelInfo | None
    drafter: str
    num_draft_tokens: int
    sampling: SamplingSettings
    sampling_source: str
    max_new_tokens: int
    load_seconds: float
    schedule: DraftSchedule = "constant"
    num_tree_nodes: int = 0
    tree_schedule: DraftSchedule = "constant"
    batch_invariance: BatchInvarianceCheck | None = None
    server: ServerInfo | None = None

    @property
    def guarantee(self) -> Guarantee:
        """Returns the guarantee of the text, by the formats and the sampling that really run."""
        if self.server is not None:
            return "unchecked"
        if self.drafter == "none" or self.num_draft_tokens == 0:
            return "exact"
        if self.batch_invariance is not None and not self.batch_invariance.is_invariant:
            return "none"
        if not self.sampling.is_greedy:
            return "same_distribution"
        check = self.batch_invariance
        is_exact = check is not None and check.is_exact and (check.has_exact_trees or self.num_tree_nodes == 0)
        is_float32 = (self.target.dtype, self.target.quant) == ("float32", "none")
        return "exact" if is_float32 or is_exact else "near_tie"

    @property
    def verification(self) -> str:
        """Accept rule: `exact_match` (greedy), `coupled_noise` (same text), `rejection_sampling`, or `server`."""
        if self.server is not None:
            return "server"
        if self.sampling.is_greedy:
            return "exact_match"
        return "coupled_noise" if self.sampling.same_text else "rejection_sampling"


@dataclass(frozen=True, slots=True)
class RunReport:
    """Describes a finished run.

    Args:
        counts: Sums over its rounds.
        text: The whole answer.
        total_seconds: From the prompt to the last token, including the display.
        peak_memory_bytes: Largest device memory, or the process's largest resident size on CPU.
        baseline: The target without a draft; None if it was not measured.
        forecast: Speedups predicted from the costs of passes.
        stop_text: The stop string that ended it, if one did.
        token_ids: All ids that were generated, special tokens and those of a stop string included; None if a server
            answered.
        served: Where its figures come from, if a server answered.
    """

    info: RunInfo
    counts: Counts
    text: str
    finish_reason: FinishReason
    total_seconds: float
    peak_memory_bytes: int
    baseline: Baseline | None = None
    forecast: Forecast | None = None
    stop_text: str | None = None
    token_ids: tuple[int, ...] | None = None
    notices: tuple[str, ...] = ()
    served: ServedFigures | None = None

    @property
    def speedup(self) -> float | None:
        """Speedup over the baseline of the same run; None if it was not measured."""
        return speedup(self.counts, self.baseline)


@dataclass(frozen=True, slots=True)
class LogitGap:
    """Distance of two tokens in the target's logits; see `specgen.engine.near_ties`.

    Args:
        distance: Distance of their logits; NaN if a server does not report it, infinite if the other token is not among
            those that it reports.
        tolerance: Largest distance that rounding explains.
    """

    distance: float
    tolerance: float

    @property
    def is_near_tie(self) -> bool:
        """Whether rounding explains the difference; False for a distance of NaN."""
        return self.distance <= self.tolerance
