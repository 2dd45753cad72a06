"""Makes runs by hand for tests of figures."""

from __future__ import annotations

from typing import Any

from specgen.core.baseline import Baseline
from specgen.core.events import Prefill, Round
from specgen.core.metrics import Counts
from specgen.core.results import ModelInfo, RunInfo, RunReport
from specgen.core.settings import SamplingSettings

TARGET_MODEL = ModelInfo("Qwen/Qwen2.5-7B-Instruct", "nf4", "bfloat16", "cuda:0", num_bytes=5 * 2**30)
DRAFT_MODEL = ModelInfo("Qwen/Qwen2.5-0.5B-Instruct", "nf4", "bfloat16", "cuda:0")


def counts(*drafted_and_accepted: tuple[int, int], draft_seconds: float = 0.01, verify_seconds: float = 0.02) -> Counts:
    """Counts rounds of (drafted, accepted), each with one token of the target; a prefill of 9 tokens takes 0.05 s."""
    made = Counts()
    made.observe_prefill(Prefill(9, 0, 0.04, 0.01))
    for index, (num_drafted, num_accepted) in enumerate(drafted_and_accepted):
        made.observe(Round(index, tuple(range(num_drafted)), num_accepted, 1, 0, draft_seconds, verify_seconds, 0.0))
    return made


def warmed_up(made: Counts) -> Counts:
    """Adds two rounds of 0.4 s, each with a rejected draft token, in which a pass was recorded."""
    for index in range(2):
        made.observe(Round(index, (1,), 0, 1, 0, 0.1, 0.3, 0.0, is_warmup=True))
    return made


def info(drafter: str = "model", num_draft_tokens: int = 5, sampling: SamplingSettings | None = None) -> RunInfo:
    return RunInfo(
        target=TARGET_MODEL,
        draft=DRAFT_MODEL if drafter == "model" else None,
        drafter=drafter,
        num_draft_tokens=num_draft_tokens,
        sampling=sampling or SamplingSettings(),
        sampling_source="options",
        max_new_tokens=256,
        load_seconds=6.1,
    )


def report(made: Counts, tpot_seconds: float | None = 0.02, **changes: Any) -> RunReport:
    values: dict[str, Any] = {
        "info": info(),
        "counts": made,
        "text": " The quick fox",
        "finish_reason": "stop",
        "total_seconds": 0.5,
        "peak_memory_bytes": 6 * 2**30,
        "baseline": None if tpot_seconds is None else Baseline("calibrate", 8, tpot_seconds),
        **changes,
    }
    return RunReport(**values)
