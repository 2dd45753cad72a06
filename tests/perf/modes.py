"""Defines modes, which run a prompt and return timings: our loop, and transformers' `generate`."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any

import torch
from scipy import stats

from specgen.core.events import Finish, Prefill
from specgen.core.metrics import Counts
from specgen.core.settings import LONGEST_AUTO_DRAFT, DecodeSettings, SamplingSettings, Verification
from specgen.engine.clock import device_clock
from specgen.engine.contract import LanguageModel
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.draft_length.policy import CostAwareLength
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.combined import CombinedDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.randomness import TorchRandomness
from specgen.engine.sampling import Sampler

GREEDY = SamplingSettings()

SWEEP: dict[str, dict[str, Any]] = {
    "": {},
    **{
        f" {length}/{threshold:g}": {
            "num_assistant_tokens": length,
            "num_assistant_tokens_schedule": "constant",
            "assistant_confidence_threshold": threshold,
        }
        for length in (2, 4, 8)
        for threshold in (0.4, 0.0)
    },
}
"""Settings of transformers' assisted generation by the suffix of the mode's name: tokens / confidence threshold.

The first is its default, which in transformers 5.23 is 20 tokens, a constant schedule and a threshold of 0.4.
"""


@dataclass
class Run:
    """Holds one run of a prompt in a mode."""

    mode: str
    prompt: str
    ids: list[int]
    decode_seconds: float
    num_tokens: int
    counts: Counts | None = None
    overhead_seconds: float = 0.0
    """Decoding time outside of forward passes."""
    turn: int = 0
    """Number of the prompt in the comparison, repeats included."""
    step_seconds: list[float] = field(default_factory=list)
    """Seconds of each round, or of each token of plain decoding; empty if unknown."""


@dataclass
class Mode:
    """Describes a way to generate, and holds its runs so far.

    Args:
        name: For tables.
        run: Takes prompt ids, and by name `seed` and `num_tokens`; returns a run.
        runs: In the order of the turns.
        draft: Label of our draft; empty without one.
        length: As on the command line, `4` or `auto`.
        rule: `block` or `token`; empty if the two are equal.
    """

    name: str
    run: Callable[..., Run]
    runs: list[Run] = field(default_factory=list)
    draft: str = ""
    length: str = ""
    rule: str = ""


def ours(
    name: str,
    target: LanguageModel,
    draft: LanguageModel | str | None,
    k: str,
    num_tokens: int,
    draft_window: int | None = None,
    *,
    temperature: float = 0.0,
    rule: Verification = "block",
    has_lookup: bool = False,
) -> Mode:
    """Returns our loop; `draft` is a model, "lookup" or None. With k "auto", learned costs are kept between runs.

    With `has_lookup`, lookup also drafts, in addition to the draft model.
    """
    draft_length = CostAwareLength(CostTable(), DraftCost()) if k == "auto" else FixedLength()
    num_draft_tokens = LONGEST_AUTO_DRAFT if k == "auto" else int(k)
    usual = num_tokens

    def run(prompt: list[int], seed: int = 0, num_tokens: int | None = None) -> Run:
        sampling = SamplingSettings(temperature=temperature, seed=seed)
        settings = DecodeSettings(num_tokens or usual, num_draft_tokens, verification=rule)
        sampler = Sampler(sampling, TorchRandomness(seed, target.device))
        drafter: Any = NoDrafter() if draft is None else LookupDrafter()
        models = [target]
        if draft is not None and not isinstance(draft, str):
            drafter = ModelDrafter(draft, target.vocab_size, sampler, draft_window)
            if has_lookup:
                drafter = CombinedDrafter(LookupDrafter(), drafter)
            models.append(draft)
        for model in models:
            _keep_prompt(model, prompt)
        counts, ids, forwards = Counts(), [], 0.0
        steps: list[float] = []
        clock = device_clock(*(model.device for model in models))
        options = DecodeOptions(settings, draft_length=draft_length, clock=clock)
        for event in decode(target, drafter, prompt, sampler, options):
            if isinstance(event, Prefill):
                counts.observe_prefill(event)
                forwards = sum(model.forward_seconds for model in models)
            elif not isinstance(event, Finish):
                counts.observe(event)
                ids += event.token_ids
                steps.append(event.draft_seconds + event.verify_seconds + event.other_seconds)
        outside = counts.decode_seconds - sum(model.forward_seconds for model in models) + forwards
        return Run(name, "", ids, counts.decode_seconds, len(ids), counts, outside, step_seconds=steps)

    return Mode(name, run)


PROMPT_OF: dict[int, list[int]] = {}


def _keep_prompt(model: LanguageModel, prompt: list[int]) -> None:
    """Prefills the prompt once for all modes that run it in turn: prefill is not timed."""
    if PROMPT_OF.get(id(model)) == prompt:
        model.rewind(min(model.length, len(prompt) - 1))
    else:
        model.reset()
        PROMPT_OF[id(model)] = prompt


class StepTimes:
    """Stopping criterion that never stops, and records the time and number of tokens of each step of `generate`."""

    def __init__(self) -> None:
        self.steps: list[tuple[float, int]] = []

    def __call__(self, input_ids: torch.Tensor, scores: Any, **options: Any) -> torch.Tensor:
        self.steps.append((perf_counter(), input_ids.shape[1]))
        return torch.zeros(input_ids.shape[0], dtype=torch.bool)


def theirs(
    name: str,
    model: Any,
    num_tokens: int,
    *,
    temperature: float = 0.0,
    assisted: Mapping[str, Any] | None = None,
    **options: Any,
) -> Mode:
    """Returns transformers' `generate`, timed without its first step, which includes the prefill.

    Args:
        name: Shown.
        model: The target.
        num_tokens: New tokens of a run.
        temperature: 0 is greedy.
        assisted: Settings of the assistant's generation config, which is where `generate` reads them.
        options: For `generate`.
    """
    usual = num_tokens

    def run(prompt: list[int], seed: int = 0, num_tokens: int | None = None) -> Run:
        times, wanted = StepTimes(), num_tokens or usual
        torch.manual_seed(seed)
        with _settings_of(options.get("assistant_model"), assisted or {}):
            output = model.generate(
                torch.tensor([prompt], device=model.device),
                attention_mask=torch.ones(1, len(prompt), dtype=torch.int64, device=model.device),
                do_sample=temperature > 0,
                repetition_penalty=1.0,
                temperature=temperature or None,
                top_p=1.0 if temperature else None,
                top_k=0 if temperature else None,
                max_new_tokens=wanted,
                min_new_tokens=wanted,
                eos_token_id=None,
                pad_token_id=0,
                stopping_criteria=[times],
                **options,
            )
        (first_at, first), (last_at, last) = times.steps[0], times.steps[-1]
        if first == last and num_tokens is None:
            raise SystemExit(f"{name}: {wanted} tokens came in one step; ask for more with -n")
        ids = output[0, len(prompt) :].tolist()
        return Run(name, "", ids, last_at - first_at, last - first)

    return Mode(name, run)


@contextmanager
def _settings_of(assistant: Any, settings: Mapping[str, Any]) -> Iterator[None]:
    """Changes an assistant's generation config within the block."""
    if assistant is None:
        yield
        return
    config = assistant.generation_config
    before = {name: getattr(config, name) for name in settings}
    try:
        for name, value in settings.items():
            setattr(config, name, value)
        yield
    finally:
        for name, value in before.items():
            setattr(config, name, value)


def tpot(runs: Sequence[Run]) -> float:
    """Returns seconds per token, as a ratio of sums."""
    return sum(run.decode_seconds for run in runs) / sum(run.num_tokens for run in runs)


def ratio_with_interval(baseline: Mode, mode: Mode) -> tuple[float, float, float]:
    """Returns the speedup of `mode` over `baseline` as a ratio of sums, and the 95 % t interval of paired log ratios.

    Pairs are prompts with their repeats summed, since repeats of one prompt are not independent of each other. With a
    single prompt the repeats are the pairs, and the interval is about this prompt only.
    """
    prompts = list(dict.fromkeys(run.prompt for run in baseline.runs))
    pairs = [
        ([a for a in baseline.runs if a.prompt == prompt], [b for b in mode.runs if b.prompt == prompt])
        for prompt in prompts
    ]
    if len(prompts) == 1:
        pairs = [([a], [b]) for a, b in zip(baseline.runs, mode.runs, strict=True)]
    logs = [math.log(tpot(a) / tpot(b)) for a, b in pairs]
    mean, half = sum(logs) / len(logs), math.inf
    if len(logs) > 1:
        half = float(stats.t.ppf(0.975, len(logs) - 1)) * float(stats.sem(logs))
    return tpot(baseline.runs) / tpot(mode.runs), math.exp(mean - half), math.exp(mean + half)
