"""Part 6: the decoding loop with a draft whose acceptance is given."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from time import perf_counter

import torch
from torch import Tensor

from specgen.core.events import Event, Round
from specgen.core.settings import DecodeSettings, SamplingSettings
from specgen.engine.clock import device_clock
from specgen.engine.contract import LanguageModel
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.drafters.base import Drafter, NoDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.sampling import Sampler
from specgen.engine.verification import Draft
from specgen.models.static.model import StaticModel
from tests.gpu.isolation import described
from tests.gpu.models import (
    Quant,
    auto_options,
    eager_model,
    failure_of,
    random_decoder,
    spec_of,
    static_model,
    with_nf4_head,
)
from tests.gpu.passes import draft_step_ms, verify_ms
from tests.gpu.report import Context
from tests.gpu.timing import Timer, num_host_reads

PROMPT = list(range(100, 132))
"""A steady model continues to count."""
AUTO, AHEAD = -1, -2
"""Draft lengths: `-k auto`, and the same with each next token drafted while the host waits for a confidence."""
NAMES = {AUTO: "auto", AHEAD: "auto, ahead"}
LONGEST_AUTO = 16
NUM_WARMUP = 64
"""Tokens, enough for two rounds of the longest draft and for the policy to know its costs."""


class OracleDrafter:
    """Runs the passes of a real draft, then proposes the target's own next tokens, some of them spoiled.

    A rejected token is followed by the target's own, so each position is verified once: whether it is spoiled can be
    drawn in advance, and a proposal is a slice on the device.

    Args:
        drafter: The real one.
        text: The target's text, prompt included.
        alpha: Chance that a token is right.
        device: The target's.
    """

    def __init__(self, drafter: Drafter, text: Sequence[int], alpha: float, device: torch.device) -> None:
        self._drafter = drafter
        generator = torch.Generator().manual_seed(0)
        # The longest draft may reach beyond the text that is wanted.
        ids = torch.tensor([*text, *[0] * 64])
        is_spoiled = torch.rand(ids.shape, generator=generator) >= alpha
        self._proposed: Tensor = torch.where(is_spoiled, (ids + 7) % max(text), ids).to(device)

    def feed(self, ids: Sequence[int]) -> None:
        self._drafter.feed(ids)

    def propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        draft = self._drafter.propose(ids, limit, draft_length)
        return replace(draft, ids=self._proposed[len(ids) : len(ids) + draft.ids.shape[0]])

    def rewind(self, length: int) -> None:
        self._drafter.rewind(length)

    def release(self) -> None:
        self._drafter.release()


def measure(context: Context) -> None:
    """Part 6."""
    quants: tuple[Quant, ...] = ("none", "nf4")
    for quant in quants:
        try:
            _measure_pair(context, quant)
        except RuntimeError as error:
            context.say("loop", quant=quant, error=described(error))


def _measure_pair(context: Context, quant: Quant) -> None:
    """Measures 7B with a draft of 0.5B in the same format."""
    device, num_tokens = context.device, context.pick(256, 24)
    decoder = random_decoder(spec_of("7B", is_tiny=context.is_tiny), device, quant=quant, is_steady=True)
    small = random_decoder(spec_of("0.5B", is_tiny=context.is_tiny), device, quant=quant)
    target, draft = static_model(decoder), static_model(with_nf4_head(small) if quant == "nf4" else small)
    loop = Loop(context, target, draft, num_tokens)
    eager = loop.run(eager_model(decoder), NoDrafter(), 0, context.pick(64, 8))
    context.say("plain", quant=quant, runner="eager", tokens_per_s=eager.rate)
    plain = loop.run(target, NoDrafter(), 0, num_tokens)
    context.say("plain", quant=quant, runner="static", tokens_per_s=plain.rate, over_eager=plain.rate / eager.rate)
    text = [*PROMPT, *plain.ids]
    lengths = {0.8: (4, 2, 3, 1, 5, 6, 7, 8, AUTO, AHEAD), 0.6: (2, 4, AUTO, AHEAD), 0.9: (4, 7, 8, AUTO)}
    if context.is_tiny:
        lengths = {0.8: (2, 7, AUTO, AHEAD)}
    timer = Timer(device, context.pick(20, 2))
    step = draft_step_ms(timer, draft)
    for alpha, choices in lengths.items():
        for length in choices:
            run = loop.run(target, loop.oracle(text, alpha, is_ahead=length == AHEAD), length, num_tokens)
            context.say(
                "loop",
                quant=quant,
                alpha=alpha,
                k=NAMES.get(length, length),
                tokens_per_s=run.rate,
                speedup=run.rate / plain.rate,
                over_eager=run.rate / eager.rate,
                tokens_per_round=run.tokens_per_round,
                accepted=run.accepted,
                is_same_text=run.ids == plain.ids,
                **({} if length in NAMES else {"busy": run.busy(step, verify_ms(timer, target, length))}),
            )
    reads = loop.reads_per_round(target, loop.oracle(text, 0.8), 4)
    context.say("host_reads", quant=quant, k=4, per_round=reads)
    for model in (target, draft):
        if (failure := failure_of(model)) is not None:
            context.say("recording_failed", quant=quant, error=failure)


class LoopRun:
    """A run of the loop.

    Args:
        rounds: Its rounds.
        seconds: From the first round to the end.
    """

    def __init__(self, rounds: Sequence[Round], seconds: float) -> None:
        self.ids = [token for round_ in rounds for token in round_.token_ids]
        self.seconds = seconds
        self.rate = len(self.ids) / seconds
        self.tokens_per_round = len(self.ids) / len(rounds)
        self.num_rounds = len(rounds)
        self._num_drafted = sum(len(round_.draft_ids) + round_.num_cut for round_ in rounds)
        num_tested = sum(round_.num_accepted + round_.num_rejected for round_ in rounds)
        self.accepted = sum(round_.num_accepted for round_ in rounds) / max(num_tested, 1)

    def busy(self, step_ms: float, pass_ms: float) -> float:
        """Returns the share of the time that the device needs for the same passes back to back."""
        return (self._num_drafted * step_ms + self.num_rounds * pass_ms) / (1000 * self.seconds)


class Loop:
    """Runs the loop on a pair.

    Args:
        context: Of the part.
        target: With recorded passes.
        draft: Likewise.
        num_tokens: Of a text.
    """

    def __init__(self, context: Context, target: StaticModel, draft: StaticModel, num_tokens: int) -> None:
        self._context = context
        self._draft = draft
        self._num_tokens = num_tokens
        self._vocab = target.vocab_size
        self._sampler = Sampler.seeded(SamplingSettings(), context.device, target.vocab_size)
        # One capacity for all runs, so that no recording is lost.
        for model in (target, draft):
            model.reserve(len(PROMPT) + num_tokens + 64)

    def oracle(self, text: Sequence[int], alpha: float, *, is_ahead: bool = False) -> OracleDrafter:
        """Returns a drafter with a given acceptance."""
        drafter = ModelDrafter(self._draft, self._vocab, self._sampler)
        drafter.drafts_ahead = is_ahead
        return OracleDrafter(drafter, text, alpha, self._context.device)

    def run(self, target: LanguageModel, drafter: Drafter, length: int, num_tokens: int) -> LoopRun:
        """Runs the loop twice on the same prompt; the first and shorter run warms up and records."""
        runs = [self._once(target, drafter, length, count) for count in (min(num_tokens, NUM_WARMUP), num_tokens)]
        return runs[-1]

    def reads_per_round(self, target: LanguageModel, drafter: Drafter, length: int) -> float | None:
        """Returns how often a round waits for the device, once all its passes are recorded; None on a CPU."""
        num_tokens = min(self._num_tokens, NUM_WARMUP)
        self._once(target, drafter, length, num_tokens)
        events = self._after_prompt(target, drafter, length, num_tokens)
        rounds: list[Round] = []
        reads = num_host_reads(self._context.device, lambda: rounds.extend(_rounds_of(events)))
        return None if reads is None else reads / len(rounds)

    def _once(self, target: LanguageModel, drafter: Drafter, length: int, num_tokens: int) -> LoopRun:
        events = self._after_prompt(target, drafter, length, num_tokens)
        started = perf_counter()
        rounds = _rounds_of(events)
        return LoopRun(rounds, perf_counter() - started)

    def _after_prompt(self, target: LanguageModel, drafter: Drafter, length: int, num_tokens: int) -> Iterator[Event]:
        """Begins a text; returns its events after the prompt was read."""
        target.rewind(0)
        drafter.rewind(0)
        limit = LONGEST_AUTO if length in NAMES else length
        options = DecodeOptions(DecodeSettings(num_tokens, limit), clock=device_clock(self._context.device))
        if length in NAMES:
            options = auto_options(target, options)
        events = decode(target, drafter, PROMPT, self._sampler, options)
        next(events)  # the prompt
        return events


def _rounds_of(events: Iterator[Event]) -> list[Round]:
    return [event for event in events if isinstance(event, Round)]
