"""Makes benchmark reports by hand, for tests of figures, advice and rendering."""

from __future__ import annotations

from collections.abc import Sequence

from specgen.bench.results import BenchReport, BenchSettings, Difference, Prompt, Run, Setting
from specgen.core.cost_model import MeasuredCosts
from specgen.core.events import Prefill, Round
from specgen.core.metrics import Counts
from specgen.core.results import ModelInfo

TARGET = ModelInfo("Qwen2.5-Coder-1.5B-Instruct", "none", "bfloat16", "cpu", num_bytes=3 * 2**30)
DRAFT = ModelInfo("Qwen2.5-Coder-0.5B-Instruct", "nf4", "bfloat16", "cpu", num_bytes=2**29)
LABEL = "Qwen2.5-Coder-0.5B-Instruct nf4"
SETTINGS = (
    Setting("none"),
    Setting("model", "Qwen/0.5B:nf4", LABEL, 4, "constant", "nf4", 2**29),
    Setting("lookup", "lookup", "lookup", 16, "auto"),
)


def counts(seconds_per_token: float, num_drafted: int = 0, num_accepted: int = 0, num_rounds: int = 10) -> Counts:
    """Returns equal rounds; if anything was drafted, drafting takes a tenth of the time."""
    made = Counts()
    made.observe_prefill(Prefill(20, 0, 0.3, 0.1))
    for index in range(num_rounds):
        seconds = seconds_per_token * (num_accepted + 1)
        draft = seconds / 10 if num_drafted else 0.0
        made.observe(Round(index, tuple(range(num_drafted)), num_accepted, 1, 0, draft, seconds - draft, 0.0))
    return made


def report(
    model_seconds: Sequence[float] = (0.05, 0.05, 0.05),
    lookup_seconds: Sequence[float] = (0.08, 0.08, 0.08),
    differences: Sequence[Difference] = (),
    settings: Sequence[Setting] = SETTINGS,
) -> BenchReport:
    """Reports a baseline of 0.1 s per token, a draft model and lookup, on two prompts; seconds per token by repeat."""
    runs = []
    for repeat, (model, lookup) in enumerate(zip(model_seconds, lookup_seconds, strict=True)):
        for prompt in range(2):
            rows = (counts(0.1), counts(model, 4, 3), counts(lookup, 2, 1))
            runs += [Run(i, prompt, repeat, row, (1,) * row.num_emitted, 2**30) for i, row in enumerate(rows)]
    return BenchReport(
        target=TARGET,
        drafts={LABEL: DRAFT},
        settings=tuple(settings),
        prompts=(Prompt("p0", "code", 20), Prompt("p1", "story", 20)),
        config=BenchSettings(num_repeats=len(model_seconds)),
        runs=tuple(runs),
        differences=tuple(differences),
        costs=MeasuredCosts({n: 0.1 + 0.01 * (n - 1) for n in range(1, 10)}, {LABEL: 0.015, "lookup": 1e-5}),
        compared=frozenset((i, prompt) for i in (1, 2) for prompt in range(2)),
        environment={"processor": "test"},
        is_complete=True,
    )
