"""Tests properties of the loop with random inputs. Where each property is tested:

P1 ids are those of plain decoding            `test_decoding`, here with real models as drafters
P2 budgets cut, and change nothing before     here
P3 counts add up                              `test_decoding`
P4 caches hold the text but its last token    here, also after an end, a stop and an error
P5 pieces join to the text                    `tests/text/test_detokenizer.py`
P6 the sanitizer                              `tests/render/test_sanitize.py`, `tests/fuzz`
P7 user text makes no control token           `tests/text/test_chat_template.py`
P8 sessions come back, old or new             `tests/storage/test_saved_chats.py`, `tests/fuzz`
P9 the GGUF scan                              `tests/loading/test_gguf_header.py`, `tests/fuzz`
P10 settings out of range reach no engine     here
P11 any feeding and taking back of a cache    here, as a state machine
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from specgen.cli.options.groups import SamplingOptions
from specgen.cli.request import parse_draft_length
from specgen.core.errors import MemoryShortageError, NumericalError, SettingsError
from specgen.core.events import Notice, Round
from specgen.core.settings import MAX_DRAFT_TOKENS, DecodeSettings, SamplingSettings
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.models.cached_model import CachedModel
from specgen.models.decoder_model import DecoderModel
from specgen.models.transformers_model import TransformersModel
from tests.fakes import GREEDY, assert_close, cached, ids_of, random_tokens, run_events, sampler, tiny_model
from tests.profiles import share_of_profile

# The nightly profile tries eighty times as much as the usual one.
pytestmark = pytest.mark.timeout(300 if settings().max_examples < 1000 else 3600)


IDS = st.lists(st.integers(0, 95), min_size=1, max_size=8)
SAMPLED = SamplingSettings(temperature=0.8, top_k=20)


@settings(max_examples=share_of_profile(2 / 3))
@given(prompt=IDS, budget=st.integers(1, 24), k=st.integers(0, 8), draft_seed=st.integers(0, 3))
@pytest.mark.thorough
def test_p1_any_draft_model_gives_the_ids_of_plain_decoding(
    prompt: list[int], budget: int, k: int, draft_seed: int
) -> None:
    drafter = ModelDrafter(cached(tiny_model(seed=draft_seed)), 96, sampler())

    drafted = run_events(cached(tiny_model()), drafter, prompt, max_new_tokens=budget, num_draft_tokens=k)

    assert ids_of(drafted) == ids_of(run_events(cached(tiny_model()), NoDrafter(), prompt, max_new_tokens=budget))


@given(
    prompt=IDS,
    budget=st.integers(1, 20),
    more=st.integers(0, 12),
    ends=st.sets(st.integers(0, 95), max_size=6),
    seed=st.integers(0, 9),
)
@pytest.mark.thorough
def test_p2_a_budget_cuts_and_changes_nothing_before(
    prompt: list[int], budget: int, more: int, ends: set[int], seed: int
) -> None:
    short, long = (
        ids_of(run_events(cached(tiny_model()), random_tokens(seed, 96), prompt, max_new_tokens=number, end_ids=ends))
        for number in (budget, budget + more)
    )

    assert len(short) <= budget
    assert long[: len(short)] == short
    assert not ends & set(long[:-1])


class _Failing(DecoderModel):
    """Fails at the passes named, by memory or by NaN."""

    fails_at: int = -1
    with_nan = False

    def logits(self, ids, num_last, tail=None):  # type: ignore[no-untyped-def]
        self.fails_at -= 1
        if self.fails_at == 0 and not self.with_nan:
            self.reset()
            raise MemoryShortageError("out of memory during generation")
        found = super().logits(ids, num_last, tail)
        return torch.full_like(found, torch.nan) if self.fails_at == 0 else found


class _StopAfter:
    """A stop check that ends the text after so many new tokens, wherever in a round that is."""

    def __init__(self, num_tokens: int) -> None:
        self.num_left = num_tokens

    def cut(self, ids: Sequence[int]) -> int | None:
        keep = self.num_left if self.num_left <= len(ids) else None
        self.num_left -= len(ids)
        return keep


@given(
    prompt=IDS,
    ends=st.sets(st.integers(0, 95), max_size=6),
    stop_after=st.none() | st.integers(1, 12),
    leave_after=st.none() | st.integers(0, 6),
    fails_at=st.integers(0, 6),
    with_nan=st.booleans(),
    sampling=st.sampled_from([GREEDY, SAMPLED]),
)
@pytest.mark.thorough
def test_p4_caches_hold_a_prefix_of_the_text_in_every_case(
    prompt: list[int],
    ends: set[int],
    stop_after: int | None,
    leave_after: int | None,
    fails_at: int,
    with_nan: bool,
    sampling: SamplingSettings,
) -> None:
    target, draft = _Failing(cached(tiny_model()).decoder, 96), cached(tiny_model(seed=1))
    target.fails_at, target.with_nan = fails_at, with_nan
    shared = sampler(sampling, seed=3)
    limits = DecodeSettings(16, 4, end_ids=frozenset(ends))
    stop = None if stop_after is None else _StopAfter(stop_after)
    run = decode(target, ModelDrafter(draft, 96, shared), prompt, shared, DecodeOptions(limits, stop=stop))
    text, num_in_draft = list(prompt), len(prompt) - 1
    with suppress(NumericalError, MemoryShortageError):
        for index, event in enumerate(run):
            if isinstance(event, Notice):
                num_in_draft = 0  # its cache was given back
            if isinstance(event, Round):
                num_drafted = len(event.draft_ids) + event.num_cut
                if num_drafted:  # the draft reads the text and its own tokens but the last
                    num_in_draft = len(text) + num_drafted - 1
                text += event.token_ids
                num_in_draft = min(num_in_draft, len(text) - 1)
                # All of the text but its last token, which the next round feeds: no more, and no less.
                assert target.length == len(text) - 1
                assert draft.length == num_in_draft
            if index == leave_after:
                break
    run.close()

    # What the caches hold must be that text: going on from here is what a fresh model would write.
    for model, kind in ((target, 0), (draft, 1)):
        model.rewind(min(model.length, len(text) - 1))
        target.fails_at = -1
        found = model.logits(text, 1)
        assert_close(found, cached(tiny_model(seed=kind)).logits(text, 1))


NUMBERS = st.floats() | st.integers(-(10**6), 10**6).map(float)


@given(
    temperature=st.none() | NUMBERS,
    top_k=st.none() | st.integers(-5, 10**6),
    top_p=st.none() | NUMBERS,
    min_p=st.none() | NUMBERS,
    penalty=st.none() | NUMBERS,
    seed=st.none() | st.integers(-(2**65), 2**65),
)
def test_p10_sampling_out_of_range_reaches_no_engine(
    temperature: float | None,
    top_k: int | None,
    top_p: float | None,
    min_p: float | None,
    penalty: float | None,
    seed: int | None,
) -> None:
    try:
        made, _ = SamplingOptions(temperature, top_k, top_p, min_p, penalty, seed).resolve(None)
    except SettingsError:
        return

    assert 0 <= made.temperature < float("inf")
    assert made.top_k >= 0
    assert 0 < made.top_p <= 1
    assert 0 <= made.min_p < 1
    assert 0 < made.repetition_penalty < float("inf")
    assert 0 <= made.seed < 2**63


@given(st.text(max_size=8) | st.integers(-5, 200).map(str))
def test_p10_any_word_is_a_draft_length_or_a_settings_error(word: str) -> None:
    with suppress(SettingsError):
        length, schedule = parse_draft_length(word)
        assert 0 <= length <= MAX_DRAFT_TOKENS
        assert schedule == ("auto" if word == "auto" else "constant")


class CacheMachine(RuleBasedStateMachine):
    """P11: feeds, logits and rewinds in any order; the logits are those of transformers after a fresh prefill."""

    kind = "llama"

    def __init__(self) -> None:
        super().__init__()
        self.model = self.make()
        self.ids: list[int] = []

    def make(self) -> CachedModel:
        return cached(tiny_model(self.kind))

    @initialize(ids=IDS)
    def begin(self, ids: list[int]) -> None:
        self.ids = list(ids)

    @rule(ids=IDS)
    def feed(self, ids: list[int]) -> None:
        self.ids += ids
        self.model.feed(self.ids[:-1])

    @rule(tail=st.lists(st.integers(0, 95), max_size=6))
    def ask(self, tail: list[int]) -> None:
        # As a round does: what is missing, a draft after it, and the whole draft taken back.
        num_kept = len(self.ids) - 1
        self.model.rewind(min(self.model.length, num_kept))
        found = self.model.logits(self.ids, len(tail) + 1, tail=torch.tensor(tail, dtype=torch.int64))
        fresh = TransformersModel(tiny_model(self.kind), 96).logits([*self.ids, *tail], len(tail) + 1)
        assert_close(found, fresh)
        self.model.rewind(min(self.model.length, num_kept))

    @precondition(lambda self: len(self.ids) > 1)
    @rule(data=st.data())
    def rewind(self, data: st.DataObject) -> None:
        length = data.draw(st.integers(1, len(self.ids)))
        self.ids = self.ids[:length]
        self.model.rewind(min(self.model.length, length - 1))

    @rule()
    def rewind_nothing(self) -> None:
        self.model.rewind(self.model.length)

    @invariant()
    def holds_a_prefix(self) -> None:
        assert self.model.length <= max(len(self.ids) - 1, 0)


class WindowedCacheMachine(CacheMachine):
    """The same with a sliding window of 16."""

    kind = "mistral"


class TransformersCacheMachine(CacheMachine):
    """The same with the cache of transformers."""

    def make(self) -> CachedModel:
        return TransformersModel(tiny_model(self.kind), 96)


class WindowedTransformersCacheMachine(TransformersCacheMachine):
    """The same with the cache of transformers and a sliding window of 16."""

    kind = "mistral"


MACHINES = [CacheMachine, WindowedCacheMachine, TransformersCacheMachine, WindowedTransformersCacheMachine]


@pytest.mark.parametrize("machine", MACHINES)
@pytest.mark.fast("*CacheMachine", without=("*Transformers*",))
def test_p11_any_order_of_feeding_and_rewinding_equals_a_fresh_prefill(machine: type[CacheMachine]) -> None:
    from hypothesis.stateful import run_state_machine_as_test

    run_state_machine_as_test(machine, settings=settings(max_examples=share_of_profile(0.4), stateful_step_count=15))
