"""Multi-token-prediction heads of checkpoints: their logits, and their caches over rounds with rejected drafts."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers.modeling_layers
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import rule, run_state_machine_as_test
from transformers import DynamicCache

from specgen.core.progress import SILENT
from specgen.core.settings import ModelSettings
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.loading import mtp_weights, weights
from specgen.loading.load import load
from specgen.loading.mtp_folder import resolve_mtp
from specgen.loading.resolve import find_files, resolve
from specgen.models import cached_model, draft_head
from specgen.models.cached_model import CachedModel
from specgen.models.draft_head import DraftHeadModel
from specgen.models.draft_head_layers import FeatureJoin
from specgen.models.static.model import StaticModel
from specgen.models.transformers_model import TransformersModel
from tests.fakes import assert_close, ids_of, run_events, sampler
from tests.models.static.recorder import TraceRecorder
from tests.models.test_draft_head import DraftMachine
from tests.mtp import KINDS, QWEN, SlowMtp, save_with_mtp
from tests.profiles import share_of_profile
from tests.toys import toy_tokenizer

needs_reference = pytest.mark.skipif(
    not hasattr(transformers.modeling_layers, "MtpModel"), reason="needs transformers with MtpModel, the reference"
)


def referenced(kinds: Iterable[str]) -> list[Any]:
    """Returns kinds of heads as parameters: the reference of all but Qwen's is transformers' `MtpModel`."""
    return [kind if kind in QWEN else pytest.param(kind, marks=needs_reference) for kind in kinds if kind in KINDS]


NUM_TOKENS = len(toy_tokenizer())
TEXT = [1, 17, 40, 17, 40, 9, 88, 3]
TAIL = [5, 7, 60, 5]


@pytest.fixture(scope="module")
def open_pair(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[TransformersModel, DraftHeadModel]]:
    root = tmp_path_factory.mktemp("mtp")

    @cache
    def folder(kind: str) -> Path:
        return save_with_mtp(root / kind, kind)

    def opened(kind: str) -> tuple[TransformersModel, DraftHeadModel]:
        """Returns a target and the head in its checkpoint."""
        settings = ModelSettings(str(folder(kind)), quant="none", dtype="float32", device="cpu")
        resolved = resolve(find_files(settings), settings, "target")
        target = load(resolved, NUM_TOKENS).model
        head = resolve_mtp(resolved, ModelSettings("mtp", quant="none", device="cpu"))
        draft = load(head, NUM_TOKENS, SILENT, target=target).model
        assert isinstance(target, TransformersModel)
        assert isinstance(draft, DraftHeadModel)
        return target, draft

    return opened


@cache
def slow(kind: str) -> SlowMtp:
    return SlowMtp(kind, NUM_TOKENS)


@pytest.mark.parametrize("kind", referenced(KINDS))
@pytest.mark.fast("Mellum", "DeepseekV3")
def test_logits_equal_the_reference_at_each_depth(kind: str, open_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cached_model, "PREFILL_CHUNK", 3)
    monkeypatch.setattr(draft_head, "PREFILL_CHUNK", 4)
    target, draft = open_pair(kind)
    target.feed(TEXT[:-1])

    for depth in range(len(TAIL)):
        logits = draft.logits(TEXT, 1, torch.tensor(TAIL[:depth], dtype=torch.int64))
        assert_close(logits, slow(kind).logits(TEXT, TAIL[:depth]))


class MtpMachine(DraftMachine):
    """Runs rounds, single steps, new turns and rewinds in any order, as `DraftMachine`, on a target with states.

    A recurrent target returns to a copy from before the draft; the head then reads features that it kept.
    """

    kind = "Qwen3_5"
    opened: Any

    def __init__(self) -> None:
        super(DraftMachine, self).__init__()
        self.target, self.draft = type(self).opened(self.kind)
        self.slow = slow(self.kind)  # type: ignore[assignment]
        self.ids = []

    @rule(tail=st.lists(st.integers(0, 95), max_size=5), data=st.data())
    def round(self, tail: list[int], data: st.DataObject) -> None:
        features = self.target.target_features
        assert features is not None
        if features.end < len(self.ids) - 1:
            self.target.feed(self.ids[:-1])  # a prompt; after a round the target reads accepted tokens in its next pass
        for length in range(len(tail) + 1):
            logits = self.draft.logits(self.ids, 1, torch.tensor(tail[:length], dtype=torch.int64))
            assert_close(logits, self.slow.logits(self.ids, tail[:length]))
        self.target.logits(self.ids, len(tail) + 1, torch.tensor(tail, dtype=torch.int64))
        self.ids += [*tail[: data.draw(st.integers(0, len(tail)))], data.draw(st.integers(0, 95))]
        self.rewind()


def run_machine(kind: str, opened: Any, num_steps: int = 12) -> None:
    class Machine(MtpMachine):
        pass

    Machine.kind, Machine.opened = kind, staticmethod(opened)
    examples = share_of_profile(0.1)
    run_state_machine_as_test(Machine, settings=settings(max_examples=examples, stateful_step_count=num_steps))


# A recurrence, a plain cache, and a window that is full soon, after which a rewind empties the target's cache.
@pytest.mark.parametrize("kind", referenced(("Qwen3_5", "Glm4Moe", "Mellum")))
@pytest.mark.fast("Mellum")
def test_any_order_of_rounds_and_rewinds_equals_a_pass_over_the_whole_text(kind: str, open_pair: Any) -> None:
    run_machine(kind, open_pair)


def test_a_head_added_late_starts_where_features_are_known(open_pair: Any) -> None:
    target, draft = open_pair("Qwen3_5")
    target.feed(TEXT[:5])
    target.target_features.rewind(0)
    target.target_features.first = target.target_features.end = 5  # as if recording had begun now
    target.feed(TEXT[:-1])

    logits = draft.logits(TEXT, 1, torch.tensor(TAIL[:2]))

    assert draft.start == 6
    assert_close(logits, slow("Qwen3_5").logits(TEXT, TAIL[:2], start=6))


# --- Bugs that must be caught -----------------------------------------------------------------------------------------


def norms_as_stored(monkeypatch: pytest.MonkeyPatch) -> None:
    read = mtp_weights._Reader.tensor

    def wrong(self: Any, *names: str) -> torch.Tensor:
        found = read(self, *names)
        return found - 1 if found.ndim == 1 else found

    monkeypatch.setattr(mtp_weights._Reader, "tensor", wrong)


def features_before_the_last_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    def wrong(self: TransformersModel, _module: Any, _inputs: Any, output: Any) -> None:
        self._hidden = output.last_hidden_state[0] / (1 + self.model.model.norm.weight)

    monkeypatch.setattr(TransformersModel, "_keep_hidden", wrong)


def feature_first(monkeypatch: pytest.MonkeyPatch) -> None:
    right = FeatureJoin.forward
    monkeypatch.setattr(FeatureJoin, "forward", lambda self, embedded, features: right(self, features, embedded))


def features_of_another_position(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DraftHeadModel._known_features
    monkeypatch.setattr(DraftHeadModel, "_known_features", lambda self, first, last: right(self, first, last).flip(0))


def features_one_position_early(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DraftHeadModel._known_features
    monkeypatch.setattr(DraftHeadModel, "_known_features", lambda self, first, last: right(self, first - 1, last - 1))


def features_one_position_late(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DraftHeadModel._known_features

    def late(self: DraftHeadModel, first: int, last: int) -> torch.Tensor:
        rows = right(self, first, last)
        assert rows is not None
        return rows.roll(-1, 0)

    monkeypatch.setattr(DraftHeadModel, "_known_features", late)


def next_depth_reads_the_output_before_the_norm(monkeypatch: pytest.MonkeyPatch) -> None:
    logits = DraftHeadModel._logits

    def without_norm(self: DraftHeadModel, new: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        return self._layers.run(self._layer_inputs(new, features), self.length - self.start)[-1:]

    monkeypatch.setattr(DraftHeadModel, "_run", without_norm)
    monkeypatch.setattr(DraftHeadModel, "_logits", lambda self, outputs: logits(self, self._norm(outputs)))


def an_entry_for_the_first_token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DraftHeadModel, "_skip_unknown_features", lambda self, num_tokens: None)


def entries_of_drafted_tokens_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    right = DraftHeadModel.rewind

    def wrong(self: DraftHeadModel, length: int) -> None:
        self._num_true = self.length
        right(self, length)

    monkeypatch.setattr(DraftHeadModel, "rewind", wrong)


def layers_keep_what_was_rejected(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DynamicCache, "crop", lambda self, length: None)


def features_go_with_the_targets_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    right = CachedModel._rewind_features
    monkeypatch.setattr(CachedModel, "_rewind_features", lambda self, _length: right(self, self.length))


BUGS = (
    norms_as_stored,
    features_before_the_last_norm,
    feature_first,
    features_of_another_position,
    features_one_position_early,
    features_one_position_late,
    next_depth_reads_the_output_before_the_norm,
    an_entry_for_the_first_token,
    entries_of_drafted_tokens_stay,
    layers_keep_what_was_rejected,
    features_go_with_the_targets_cache,
)


@pytest.mark.parametrize("plant", BUGS, ids=lambda plant: plant.__name__)
@pytest.mark.fast("norms_as_stored", "feature_first", "*_one_position_late", "an_entry_for*")
def test_a_planted_bug_is_caught(plant: Any, open_pair: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    plant(monkeypatch)

    with pytest.raises((AssertionError, RuntimeError)):  # torch raises the latter where shapes don't match
        two_rounds(open_pair)


def test_the_rounds_that_catch_them_pass_without_one(open_pair: Any) -> None:
    two_rounds(open_pair)


def two_rounds(opened: Any) -> None:
    """Drafts four tokens, of which the first is accepted, and then two; compares all logits."""
    target, draft = opened("Qwen3_5")
    ids = list(TEXT)
    target.feed(ids[:-1])
    for tail, num_accepted in ((TAIL, 1), (TAIL[:2], 0)):
        for length in range(len(tail)):
            logits = draft.logits(ids, 1, torch.tensor(tail[:length], dtype=torch.int64))
            assert_close(logits, slow("Qwen3_5").logits(ids, tail[:length]))
        target.logits(ids, len(tail) + 1, torch.tensor(tail))
        ids += [*tail[:num_accepted], 33]
        for one in (target, draft):
            one.rewind(min(one.length, len(ids) - 1))


@pytest.mark.thorough
@pytest.mark.parametrize("kind", referenced(["Glm4Moe"]))
def test_a_head_of_a_recorded_target_runs_plainly_with_one_notice(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = ModelSettings(str(save_with_mtp(tmp_path, kind)), quant="none", dtype="float32", device="cpu")
    resolved = resolve(find_files(settings), settings, "target")
    plain = load(resolved, NUM_TOKENS)
    monkeypatch.setattr(weights, "recorder_for", lambda _: TraceRecorder())
    target = load(resolved, NUM_TOKENS)
    head = load(
        resolve_mtp(resolved, ModelSettings("mtp", quant="none", device="cpu")), NUM_TOKENS, SILENT, target=target.model
    )

    assert isinstance(target.model, StaticModel)
    assert (target.notices, type(head.model)) == (plain.notices, DraftHeadModel)
    (notice,) = head.notices
    assert "not recorded" in notice
    drafter = ModelDrafter(head.model, NUM_TOKENS, sampler())
    events = run_events(target.model, drafter, TEXT, max_new_tokens=30, num_draft_tokens=3)
    assert ids_of(events) == ids_of(run_events(plain.model, NoDrafter(), TEXT, max_new_tokens=30))
    assert any(key[0] == "verify" for key in target.model.replays.recorded_keys if isinstance(key, tuple))
