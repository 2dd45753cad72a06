"""Drafts on recorded passes are admitted only if they draft what plain passes do; else there is one notice."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
import torch

from specgen.core.events import Notice
from specgen.engine.drafters.model import ModelDrafter
from specgen.models.cuda import recorded
from specgen.models.draft_head import DraftHeadModel
from specgen.models.static.admission import NUM_DRAFTED, drafting_failure, not_recorded
from specgen.models.static.draft_head import StaticDraftHead
from specgen.models.static.inputs import DraftedTokens, PassInputs
from specgen.models.static.model import StaticModel
from specgen.models.static.rounding import Rounding
from tests.decoders import decoder_model
from tests.draft_heads import load_draft, tiny_draft
from tests.fakes import ids_of, run_events, sampler
from tests.models.static import test_planted_bugs as bugs
from tests.models.static import test_trees as trees
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


def names_drafted_token(reason: str) -> bool:
    """Whether a reason ends with the number of a token of the probed draft."""
    return re.search(rf" [1-{NUM_DRAFTED}]$", reason) is not None


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

    found = recorded(plain, TraceRecorder(), is_draft=True)

    assert found.model is plain
    assert names_drafted_token(str(found.reason))
    assert plain.length == 0


TARGET_BUGS = [
    *((bugs.padding_accepted, "verdict"), (bugs.own_token_from_the_next_row, "verdict")),
    *((bugs.rewound_on_the_host_only, "over 5 rows"), (bugs.position_recorded_as_a_number, "in a tree")),
    *((trees.every_row_of_the_tree_is_seen, "in a tree"), (trees.rows_rotated_by_their_place, "in a tree")),
    *((trees.tree_begins_one_position_late, "in a tree"), (trees.path_not_moved, "in a tree")),
    (trees.path_of_the_tree_before, "in a tree"),
]


@pytest.mark.parametrize(("plant_bug", "where"), TARGET_BUGS)
def test_a_target_whose_recorded_verdicts_or_trees_are_wrong_runs_plainly(
    plant_bug: Callable[[Plant], None], where: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = decoder_model(model_of("llama"), 96)
    plant_bug(monkeypatch)

    found = recorded(plain, TraceRecorder())

    assert found.model is plain
    assert where in str(found.reason)
    assert plain.length == 0


@pytest.mark.parametrize(
    ("is_draft", "names"), [(True, {"draft", "step"}), (False, {"verify", "tree", "keep"})], ids=["draft", "target"]
)
def test_admission_records_only_what_the_role_uses(is_draft: bool, names: set[str]) -> None:
    found = recorded(decoder_model(model_of("llama"), 96), TraceRecorder(), is_draft=is_draft)

    assert isinstance(found.model, StaticModel)
    assert {key if isinstance(key, str) else key[0] for key in found.model.replays.recorded_keys} == names  # type: ignore[index]


class Scripted:
    """A model of ten ids whose likeliest token follows from the last one, except for two after the text.

    Args:
        first: The token after the text, by run.
    """

    def __init__(self, *first: int) -> None:
        self.first = iter(first)

    def rewind(self, length: int) -> None:
        self.drafted: list[int] = []

    def feed(self, ids: Any) -> None:
        """Reads the text."""

    def rows(self, drafted: list[int], first: int) -> torch.Tensor:
        logits = torch.zeros(1, 10)
        if drafted:
            logits[0, (3 * drafted[-1] + 1) % 10] = 15.5
        else:
            logits[0, [2, 7]] = 15.5
            logits[0, first] += 2**-4  # one unit in the last place of bfloat16
        return logits

    def draft_token(self, ids: Any, index: int) -> None:
        self.found = self.rows(self.drafted, next(self.first) if index == 0 else 0)
        self.drafted.append(int(self.found.argmax()))

    def drafted_ids(self, count: int) -> torch.Tensor:
        return torch.tensor(self.drafted[:count])

    def drafted_logits(self) -> torch.Tensor:
        return self.found

    def likeliest(self, logits: torch.Tensor) -> int:
        return int(logits.argmax())

    def logits(self, ids: Any, num_last: int, tail: torch.Tensor) -> torch.Tensor:
        return self.rows(tail.tolist(), 2)


@pytest.mark.parametrize("first", [(7, 7, 7), (2, 7, 2), (2, 2, 7)])
def test_a_near_tie_may_be_drafted_otherwise_by_the_replay(first: tuple[int, ...]) -> None:
    static: Any = Scripted(*first)
    plain: Any = Scripted()

    assert drafting_failure(static, plain, list(range(5)), Rounding(torch.bfloat16, 2)) is None


def head_norm_forgotten(plant: Plant) -> None:
    def bare(self: StaticDraftHead, rows: int, bucket: int) -> None:
        ids, positions = self._inputs.ids[:rows], self._inputs.positions(rows)
        given = None if self._join is None else self._given[:rows]
        hidden = self._static_layers.run(self._layer_inputs(ids, given), positions, bucket)
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
@pytest.mark.fast("feedback*", "mask*")
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
    assert notice.startswith(not_recorded(folder.name, ""))
    assert names_drafted_token(notice) or "failed" in notice
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
