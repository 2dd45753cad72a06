"""What is told about a run when it ends: frozen values that renderers turn into a summary or JSON."""

from __future__ import annotations

from dataclasses import dataclass, field

from specgen.events import FinishReason
from specgen.metrics import Baseline, Counts, speedup
from specgen.settings import DraftSchedule, SamplingSettings


@dataclass(frozen=True, slots=True)
class ModelInfo:
    """A model as it really runs, not as it was asked for.

    Args:
        name: What the user called it, or the built-in model's name.
        quant: `none`, `int8`, `nf4`, `fp4`, or the checkpoint's own method.
        dtype: Compute type, `bfloat16`.
        device: `cpu`, `cuda:0`, or `cuda:0-1` when spread over several.
        revision: Commit of a hub model, where known.
        num_parameters: Parameters of the model.
        num_bytes: Bytes its weights take in memory.
        remark: How an `auto` was decided or what the source was ("from GGUF"), for the banner. May be empty.
    """

    name: str
    quant: str
    dtype: str
    device: str
    revision: str | None = None
    num_parameters: int = 0
    num_bytes: int = 0
    remark: str = ""


@dataclass(frozen=True, slots=True)
class RunInfo:
    """What is known before the first token.

    Args:
        target: The target model.
        draft: The draft model; None for lookup or none.
        drafter: `model`, `lookup` or `none`.
        num_draft_tokens: Longest draft of a round; 0 without a drafter.
        schedule: `constant`, or `auto`: lengths chosen by measured cost.
        sampling: Effective sampling settings.
        sampling_source: Where they come from: `options`, `model` (its generation_config), `default`.
        max_new_tokens: Budget.
        load_seconds: Loading both models.
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

    @property
    def verification(self) -> str:
        """Name of the accept rule: `exact_match` (greedy), `coupled_noise` (same text) or `rejection_sampling`."""
        if self.sampling.is_greedy:
            return "exact_match"
        return "coupled_noise" if self.sampling.same_text else "rejection_sampling"


@dataclass(frozen=True, slots=True)
class RunReport:
    """A finished run.

    Args:
        info: What was known before it.
        counts: Sums over its rounds.
        text: The whole answer.
        finish_reason: Why it ended.
        total_seconds: Prompt in to last token out, the display included.
        peak_memory_bytes: Largest device memory, or the process's largest resident size on CPU.
        baseline: The target alone; None if it was not measured.
        stop_text: The stop string that ended it, if one did.
        notices: Messages told during the run.
    """

    info: RunInfo
    counts: Counts
    text: str
    finish_reason: FinishReason
    total_seconds: float
    peak_memory_bytes: int
    baseline: Baseline | None = None
    stop_text: str | None = None
    notices: tuple[str, ...] = field(default=())

    @property
    def speedup(self) -> float | None:
        return speedup(self.counts, self.baseline)
