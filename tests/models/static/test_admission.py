"""Drafts on recorded passes are admitted only if they draft what plain passes do; else there is one notice."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from specgen.core.events import Notice
from specgen.engine.drafters.model import ModelDrafter
from specgen.models.cuda import recorded
from specgen.models.draft_head import DraftHeadModel
from specgen.models.static.draft_head import StaticDraftHead
from specgen.models.static.inputs import DraftedTokens, PassInputs
from specgen.models.static.model import StaticModel
from tests.decoders import decoder_model
from tests.draft_heads import load_draft, tiny_draft
from tests.fakes import ids_of, run_events, sampler
from tests.models.static import test_planted_bugs as bugs
from tests.models.static.builders import static_model
from tests.models.static.recorder import TraceRecorder
from tests.models.static.test_static_model import NUM_TOKENS, PROMPT, greedy_text, model_of

Plant = pytest.MonkeyPatch


def token_not_fed_back(plant: Plant) -> None:
    def silent(self: PassInputs, token: torch.Tensor) -> None:
        self.position += self.count
        self.count.fill_(1)

    plant.setattr(PassInputs, "feed_back", silent)


def second_likeliest_token(plant: Plant) -> None:
    original = DraftedTokens.append

    def second(self: DraftedTokens, logits: torch.Tensor) -> torch.Tensor:
        return original(self, logits.scatter(1, logits.argmax(-1, keepdim=True), -1e4))

    plant.setattr(DraftedTokens, "append", second)


STEP_BUGS = [
    bugs.feedback_at_the_same_position,
    bugs.feedback_before_the_token_is_written,
    bugs.first_token_from_the_padding,
    token_not_fed_back,
    second_likeliest_token,
]


@pytest.mark.parametrize("plant_bug", STEP_BUGS)
def test_a_draft_model_whose_own_step_is_wrong_runs_plainly(
    plant_bug: Callable[[Plant], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = decoder_model(model_of("llama"), 96)
    plant_bug(monkeypatch)

    found, reason = recorded(plain, TraceRecorder())

    assert found is plain
    assert "in drafted token" in str(reason)
    assert plain.length == 0


def head_norm_forgotten(plant: Plant) -> None:
    def bare(self: StaticDraftHead, rows: int, bucket: int) -> None:
        ids, positions = self._inputs.ids[:rows], self._inputs.positions(rows)
        rotations = self._tensor_slots.begin(positions, bucket)
        given = None if self._join is None else self._given[:rows]
        hidden = self._own_layers.run_on(self._tensor_slots, self._layer_inputs(ids, given), rotations)
        self._output[:] = hidden.index_select(0, self._inputs.count - 1)

    plant.setattr(StaticDraftHead, "_write_output", bare)


HEAD_BUGS = [
    bugs.head_without_its_own_output,
    bugs.feedback_at_the_same_position,
    bugs.mask_off_by_one,
    head_norm_forgotten,
    token_not_fed_back,
    second_likeliest_token,
]


@pytest.mark.parametrize("plant_bug", HEAD_BUGS)
def test_a_draft_head_whose_recorded_passes_are_wrong_runs_plainly(
    plant_bug: Callable[[Plant], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tiny_draft("head features", model_of("llama"), "static-llama")
    target = static_model(model_of("llama"))
    with monkeypatch.context() as planted:
        plant_bug(planted)
        loaded = load_draft(folder, target)

    assert type(loaded.model) is DraftHeadModel
    (notice,) = loaded.notices
    assert "are not recorded, so it is slower" in notice
    assert "in drafted token" in notice or "recording failed" in notice
    assert drafted_text(target, loaded.model) == list(greedy_text("llama"))


@pytest.mark.parametrize("name", ["head features", "head subset"])
def test_a_draft_head_is_admitted_if_it_drafts_the_same(name: str) -> None:
    target = static_model(model_of("llama"))

    loaded = load_draft(tiny_draft(name, model_of("llama"), "static-llama"), target)

    assert (type(loaded.model), loaded.notices) == (StaticDraftHead, ())
    assert loaded.model.length == 0


def test_a_draft_head_that_cannot_be_recorded_runs_plainly_with_one_notice() -> None:
    class Failing:
        def record(self, work: Callable[[], None]) -> Callable[[], None]:
            raise RuntimeError("no graphs today\nsecond line")

    target = StaticModel(static_model(model_of("llama")).static_pass, 96, Failing())

    loaded = load_draft(tiny_draft("head features", model_of("llama"), "static-llama"), target)

    assert type(loaded.model) is DraftHeadModel
    (notice,) = loaded.notices
    assert notice.endswith("no graphs today")


def test_the_probe_of_a_draft_head_leaves_the_targets_text_alone() -> None:
    """As in a chat that takes another draft."""
    target = static_model(model_of("llama"))
    target.record_target_features()
    target.feed(PROMPT)
    before = target.static_pass.features.buffer[: len(PROMPT)].clone()  # type: ignore[union-attr]

    load_draft(tiny_draft("head features", model_of("llama"), "static-llama"), target)

    assert target.length == len(PROMPT)
    assert torch.equal(target.static_pass.features.buffer[: len(PROMPT)], before)  # type: ignore[union-attr]


def drafted_text(target: StaticModel, head: Any) -> list[int]:
    target.rewind(0)
    drafter = ModelDrafter(head, 96, sampler(), columns=head.columns)
    events = run_events(target, drafter, PROMPT, max_new_tokens=NUM_TOKENS)
    assert not any(isinstance(event, Notice) for event in events)
    return ids_of(events)
