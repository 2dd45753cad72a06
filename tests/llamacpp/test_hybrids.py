"""Models with running states on llama.cpp: rejected tokens leave no trace in the states."""

from __future__ import annotations

import random
from collections.abc import Callable
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.core.errors import DeviceError
from specgen.core.settings import BackendSettings, ModelSettings, PairSettings
from specgen.doctor.examine import examine_pair
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.models.batch_invariance import check_batch_invariance
from specgen.models.checkpoints import MAX_CHECKPOINTS, Checkpoints
from specgen.models.llama_cpp import PREFILL_CHUNK, LlamaCppModel
from specgen.models.llama_cpp_states import SequenceStates
from specgen.render.doctor import format_pair
from specgen.runtime.pair import resolve_pair
from tests.fakes import ScriptedDrafter, always_wrong, ids_of, oracle, random_tokens, rounds_of, run_events, sampler
from tests.llamacpp.builders import load
from tests.llamacpp.hybrids import ARCHITECTURES, VOCAB, make_hybrid_gguf
from tests.loading.builders import make_gguf

NUM_TOKENS = 60
PROMPT = [1, 20, 21, 22, 20, 21, 22, 20]


@pytest.fixture(scope="module", params=ARCHITECTURES)
def path(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_hybrid_gguf(tmp_path_factory.mktemp("hybrid") / "tiny.gguf", request.param)


@pytest.fixture(scope="module")
def weights(path: Path) -> Any:
    return load(path).weights


@pytest.fixture(scope="module")
def expected(path: Path) -> list[int]:
    """Greedy text of llama-cpp-python itself, which never removes a token."""
    from llama_cpp import Llama

    settings = {"n_ctx": 256, "n_batch": PREFILL_CHUNK, "n_ubatch": PREFILL_CHUNK, "flash_attn": True}
    theirs = Llama(str(path), n_threads=1, n_threads_batch=1, verbose=False, **settings)
    return list(islice(theirs.generate(PROMPT, temp=0.0, repeat_penalty=1.0, top_k=1), NUM_TOKENS))


def model(weights: Any) -> LlamaCppModel:
    return LlamaCppModel(weights, VOCAB, 512, 1)


def half_right(answer: list[int]) -> Any:
    """Drafts with one wrong token, later in each round, then a draft without."""
    right, rounds = oracle(answer, len(PROMPT)).script, count()

    def script(ids: list[int], limit: int) -> list[int]:
        drafted, at = right(ids, limit), next(rounds) % 5
        return [*drafted[:at], *((token + 1) % VOCAB for token in drafted[at : at + 1]), *drafted[at + 1 :]]

    return ScriptedDrafter(script)


@pytest.mark.parametrize("kind", ["none", "lookup", "itself", "right", "wrong", "half right", "random"])
@pytest.mark.fast("lfm2-*right", "lfm2-lookup", "mamba2-half right", "qwen35-half right")
def test_greedy_text_equals_llama_cpp_pythons_own(weights: Any, expected: list[int], kind: str) -> None:
    drafters: dict[str, Callable[[], Any]] = {
        "none": NoDrafter,
        "lookup": LookupDrafter,
        "itself": lambda: ModelDrafter(model(weights), VOCAB, sampler()),
        "right": lambda: oracle(expected, len(PROMPT)),
        "wrong": lambda: always_wrong(expected, len(PROMPT), VOCAB),
        "half right": lambda: half_right(expected),
        "random": lambda: random_tokens(3, VOCAB),
    }

    events = run_events(model(weights), drafters[kind](), PROMPT, max_new_tokens=NUM_TOKENS, num_draft_tokens=4)

    assert ids_of(events) == expected
    if kind == "half right":
        assert {round_.num_accepted for round_ in rounds_of(events)} >= {0, 1, 2, 3, 4}


def test_a_rejected_draft_leaves_states_bit_equal(weights: Any) -> None:
    drafted, plain = model(weights), model(weights)
    for one in (drafted, plain):
        one.feed(PROMPT)

    for num_accepted in range(4):
        ids = [*PROMPT, 30, *range(40, 40 + num_accepted)]
        drafted.logits(PROMPT, 1, torch.tensor([30, *range(40, 44)]))
        drafted.rewind(len(ids) - 1)

        assert torch.equal(drafted.logits([*ids, 50], 1), plain.logits([*ids, 50], 1))

        for one in (drafted, plain):
            one.rewind(len(PROMPT))
            assert one.length == len(PROMPT)


@pytest.mark.thorough
def test_any_order_of_feeding_and_rewinding_equals_a_fresh_prefill(weights: Any) -> None:
    check_any_order(weights)


def check_any_order(weights: Any) -> None:
    order, used = random.Random(5), model(weights)
    text = list(PROMPT)
    for _ in range(40):
        used.rewind(order.randint(0, used.length))
        text = [*text[: max(used.length, 1)], *(order.randrange(4, VOCAB) for _ in range(order.randint(1, 6)))]
        if order.random() < 0.3:
            used.feed(text[:-1])
        num_tail = min(order.randint(0, 4), len(text) - 1 - used.length)
        ids, tail = text[: len(text) - num_tail], text[len(text) - num_tail :]

        found = used.logits(ids, 1, torch.tensor(tail, dtype=torch.int64) if tail else None)

        torch.testing.assert_close(found, model(weights).logits(text, 1), rtol=1e-4, atol=1e-4)


def test_the_next_turn_returns_to_the_end_of_the_last_prompt(weights: Any) -> None:
    chatting = model(weights)
    events = run_events(chatting, always_wrong([9] * 20, len(PROMPT), VOCAB), PROMPT, max_new_tokens=20)
    assert ids_of(events)

    chatting.rewind(len(PROMPT) + 2)

    assert chatting.length == len(PROMPT) - 1


@pytest.mark.fast("mamba2")
def test_the_self_test_measures_how_recurrent_rules_round(weights: Any) -> None:
    target, together = model(weights), model(weights)
    check = check_batch_invariance(target)
    step = VOCAB // 19
    ids = [step * (index + 1) for index in range(10)]
    rows = together.logits(ids, 10)[4:6].clone()
    alone = torch.stack([model(weights).logits(ids[: end + 1], 1)[0].clone() for end in (4, 5)])

    assert target.length == 0
    assert check.is_invariant
    assert check.recurrent_difference is not None
    assert check.recurrent_difference <= 2 * float((alone - rows).abs().max()) + 1e-4
    assert check_batch_invariance(target, measures_recurrence=False).recurrent_difference is None


def test_a_gguf_with_attention_alone_has_no_such_difference(tmp_path: Path) -> None:
    target = LlamaCppModel(load(make_gguf(tmp_path / "tiny.gguf")).weights, 64, 128, 1)

    assert check_batch_invariance(target).recurrent_difference is None


Patch = pytest.MonkeyPatch


def _stale_states(patch: Patch) -> None:
    keep = SequenceStates.note_draft

    def stale(self: SequenceStates, length: int) -> None:
        if self._num_kept:
            self._num_kept = length
        else:
            keep(self, length)

    patch.setattr(SequenceStates, "note_draft", stale)


def _replay_one_short(patch: Patch) -> None:
    restore = SequenceStates.restore
    patch.setattr(SequenceStates, "restore", lambda self, n: min(restore(self, n) + 1, n))


def _states_not_restored(patch: Patch) -> None:
    rewind = LlamaCppModel.rewind

    def wrong(self: LlamaCppModel, length: int) -> None:
        if 0 < self._states._num_kept <= length < self.length:
            self._library.llama_memory_seq_rm(self._memory, 1, -1, -1)
            self.length = self._states._num_kept
            return
        rewind(self, length)

    patch.setattr(LlamaCppModel, "rewind", wrong)


def _stale_copies_at_prompts(patch: Patch) -> None:
    copy, first = SequenceStates._copy, []

    def stale(self: SequenceStates, unneeded: object = None) -> bytearray:
        first.append(copy(self, unneeded))
        return first[0]

    patch.setattr(SequenceStates, "_copy", stale)


@pytest.mark.parametrize("plant", [_stale_states, _replay_one_short, _states_not_restored])
@pytest.mark.fast("lfm2-*")
def test_a_planted_bug_is_caught(weights: Any, expected: list[int], plant: Callable[[Patch], None]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        plant(patch)
        try:
            drafter = half_right(expected)
            events = run_events(model(weights), drafter, PROMPT, max_new_tokens=NUM_TOKENS, num_draft_tokens=4)
        except DeviceError:  # llama.cpp refuses some of the wrong positions
            return

    assert ids_of(events) != expected


@pytest.mark.thorough
def test_stale_copies_of_turns_are_caught(weights: Any) -> None:
    with pytest.MonkeyPatch.context() as patch:
        _stale_copies_at_prompts(patch)
        with pytest.raises((AssertionError, DeviceError)):
            check_any_order(weights)


def test_llama_cpp_removes_no_keys_without_the_states_before_them(
    weights: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SequenceStates, "restore", lambda self, length: length)
    target = model(weights)
    target.feed(PROMPT)

    target.rewind(4)

    assert target.length == 0


def test_the_best_copy_is_the_longest_that_fits() -> None:
    copies = iter(range(100))
    kept = Checkpoints[int](lambda _unneeded: next(copies))
    for length in (3, 5, 9, 14, 20):
        kept.note_prompt(length)
    kept.note_draft(17)

    assert [kept.best(n) for n in (4, 5, 16, 19, 30)] == [None, (5, 1), (14, 3), (17, 5), (20, 4)]
    assert MAX_CHECKPOINTS == 4

    kept.forget_after(14)

    assert kept.best(30) == (14, 3)
    kept.note_draft(14)
    assert next(copies) == 6


@pytest.mark.fast("mamba2")
def test_doctor_shows_the_size_of_the_states_that_are_restored(path: Path, weights: Any) -> None:
    target = model(weights)
    target.feed(PROMPT)
    report = examine_pair(
        resolve_pair(PairSettings(ModelSettings(str(path), backend=BackendSettings("llama.cpp")), "none"))
    )

    rollback = report.models[0].memory.rollback
    assert (rollback.kind, rollback.num_snapshots) == ("snapshot_and_replay", MAX_CHECKPOINTS)
    # llama.cpp adds the positions of the cells to a copy.
    assert 0 <= len(target._states._copy()) - (rollback.snapshot_bytes or 0) < 128
    assert "rollback" in format_pair(report).plain
