"""Provides test doubles: table models, scripted drafters, tiny random transformers models, scripted randomness."""

from __future__ import annotations

import gc
import itertools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache

import torch
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM, Qwen2Config, Qwen2ForCausalLM

from specgen.core.errors import DraftError
from specgen.core.events import Event, Round
from specgen.core.settings import DecodeSettings, SamplingSettings, TokenRules
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.drafters.base import empty_draft
from specgen.engine.enumeration import ScriptedRandomness, TableModel, every_outcome
from specgen.engine.randomness import TorchRandomness
from specgen.engine.sampling import Sampler
from specgen.engine.verification import Draft
from specgen.models.decoder import Decoder
from specgen.models.decoder_model import DecoderModel
from tests.decoders import decoder_of

__all__ = ["ScriptedRandomness", "TableModel", "every_outcome"]

CPU = torch.device("cpu")
GREEDY = SamplingSettings()
TINY = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 512,
    # transformers' default of 0.02 makes the top two logits nearly equal.
    "initializer_range": 0.3,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}


@cache
def tiny_model(kind: str = "llama", seed: int = 0, **changes: int) -> torch.nn.Module:
    """Makes a random float32 model of a real architecture; a forward takes a millisecond."""
    torch.manual_seed(seed)
    settings = {**TINY, **changes}
    if kind == "llama":
        return LlamaForCausalLM(LlamaConfig(**settings)).eval()
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**settings)).eval()
    if kind == "mistral":
        return MistralForCausalLM(MistralConfig(**settings, sliding_window=16)).eval()
    raise ValueError(kind)


class QuickCollector:
    """The garbage collector, but what was frozen before stays so: to collect all that tests import takes seconds."""

    def __getattr__(self, name: str) -> object:
        return (lambda: 0) if name == "get_freeze_count" else getattr(gc, name)


class NoCollections:
    """Replaces `gc` where collections would only take time."""

    def __getattr__(self, name: str) -> Callable[[], int]:
        return lambda: 0


@dataclass
class ScriptedDrafter:
    """Proposes what `script(ids, limit)` returns, as point masses, and records rewinds."""

    script: Callable[[list[int], int], list[int]]
    rewinds: list[int] = field(default_factory=list)

    def feed(self, ids: Sequence[int]) -> None:
        pass

    def propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        return Draft(torch.tensor(self.script(list(ids), limit)[:limit], dtype=torch.int64))

    def rewind(self, length: int) -> None:
        self.rewinds.append(length)

    def release(self) -> None:
        self.rewind(0)


class FailingDrafter(ScriptedDrafter):
    """Works for `num_good` proposals, then raises."""

    def __init__(self, num_good: int) -> None:
        super().__init__(lambda ids, limit: [5])
        self.num_left = num_good

    def propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        if self.num_left == 0:
            raise DraftError("planted")
        self.num_left -= 1
        return super().propose(ids, limit, draft_length)


def oracle(answer: Sequence[int], num_prompt: int) -> ScriptedDrafter:
    """Always proposes the target's tokens."""
    return ScriptedDrafter(lambda ids, limit: list(answer[len(ids) - num_prompt :]))


def always_wrong(answer: Sequence[int], num_prompt: int, vocab_size: int) -> ScriptedDrafter:
    """Never proposes the target's tokens."""
    return ScriptedDrafter(lambda ids, limit: [(i + 1) % vocab_size for i in answer[len(ids) - num_prompt :]])


def random_tokens(seed: int, vocab_size: int) -> ScriptedDrafter:
    """Proposes anything, any number of tokens, sometimes none."""
    generator = torch.Generator().manual_seed(seed)

    def script(ids: list[int], limit: int) -> list[int]:
        count = int(torch.randint(0, limit + 1, (1,), generator=generator))
        return torch.randint(0, vocab_size, (count,), generator=generator).tolist()

    return ScriptedDrafter(script)


class EmptyDrafter(ScriptedDrafter):
    def __init__(self) -> None:
        super().__init__(lambda ids, limit: [])

    def propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        return empty_draft()


def sampler(sampling: SamplingSettings = GREEDY, seed: int = 0) -> Sampler:
    """Makes a sampler on the CPU, without position noise."""
    return Sampler(sampling, TorchRandomness(seed, CPU))


def run_events(target: object, drafter: object, prompt: Sequence[int], **options: object) -> list[Event]:
    """Runs a generation: greedy, 20 tokens and draft length 4 unless overridden. `num_events` ends it early."""
    num_events = options.pop("num_events", None)
    settings = DecodeSettings(
        max_new_tokens=options.pop("max_new_tokens", 20),
        num_draft_tokens=options.pop("num_draft_tokens", 4),
        end_ids=frozenset(options.pop("end_ids", ())),
        strict=options.pop("strict", False),
        verification=options.pop("verification", "block"),
    )
    sampling = options.pop("sampling", GREEDY)
    randomness = options.pop("randomness", None) or TorchRandomness(sampling.seed, CPU)
    sampler = Sampler(sampling, randomness, options.pop("noise", None), options.pop("rules", TokenRules()))
    events = decode(target, drafter, prompt, sampler, DecodeOptions(settings, **options))
    return list(itertools.islice(events, num_events))


def ids_of(events: Sequence[Event]) -> list[int]:
    """Returns the tokens that a generation added to its prompt."""
    return list(itertools.chain.from_iterable(e.token_ids for e in events if isinstance(e, Round)))


def rounds_of(events: Sequence[Event]) -> list[Round]:
    return [event for event in events if isinstance(event, Round)]


def cached(model: torch.nn.Module, vocab_size: int = 96) -> DecoderModel:
    """Returns our decoder with an empty cache. Models made from one transformers model share their weights."""
    return DecoderModel(_decoder(model), vocab_size)


@cache
def _decoder(model: torch.nn.Module) -> Decoder:
    return decoder_of(model)


NUM_ROUNDINGS = 2**13
"""Rounding steps of the type that two orders of additions may lie apart: 1e-3 of the largest value in float32."""


@contextmanager
def threads(number: int) -> Iterator[None]:
    """Lets torch and our own kernels run on a number of threads for a while."""
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def assert_close(
    found: torch.Tensor,
    expected: torch.Tensor,
    dtype: torch.dtype = torch.float32,
    num_roundings: int = NUM_ROUNDINGS,
) -> None:
    """Compares two results of the same sums in another order.

    Kernels differ between processors, so the tolerance is relative to the largest value and follows from the type that
    the sums were made in.
    """
    assert found.shape == expected.shape
    difference = float((found - expected).abs().max())
    assert difference <= num_roundings * torch.finfo(dtype).eps * float(expected.abs().max()), difference
