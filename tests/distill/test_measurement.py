"""Acceptance by replay equals counts by hand and actual drafting; the speedup follows the formula."""

from __future__ import annotations

import pytest
import torch

from specgen.core.cost_model import PassCosts
from specgen.distill.draft import SharedWeights, TrainableDraft
from specgen.distill.measurement import DraftAcceptance, measure_acceptance
from specgen.distill.target_texts import TargetText
from tests.decoders import decoder_of
from tests.distill.targets import make_target

MODEL = make_target()
EMBEDDING, HEAD = MODEL.get_input_embeddings().weight, MODEL.lm_head.weight


def greedy_text(prompt: list[int], length: int) -> TargetText:
    ids = MODEL.generate(torch.tensor([prompt]), max_new_tokens=length, do_sample=False, pad_token_id=0)[0]
    return TargetText(ids, len(prompt), MODEL.model(ids[None]).last_hidden_state[0, :-1])


class Scripted(TrainableDraft):
    """A draft whose outputs at a step are right at the given indices and wrong elsewhere."""

    def __init__(self, text: TargetText, right: list[set[int]]) -> None:
        super().__init__(decoder_of(MODEL), "features", [2])
        self._rows = text.ids
        self._right = right

    def unroll(self, embedded: torch.Tensor, features: torch.Tensor, num_steps: int) -> list[torch.Tensor]:
        outputs = []
        for right in self._right[:num_steps]:
            proposed = [
                int(self._rows[i + 1]) if i in right and i + 1 < len(self._rows) else 60 for i in range(len(self._rows))
            ]
            outputs.append(torch.eye(61)[proposed][None])
        return outputs


def test_rounds_are_counted_as_in_the_decoding_loop() -> None:
    text = TargetText(torch.arange(10), 3, torch.zeros(9, 61))
    # Index i predicts token i + 1. Drafts of 2 from index 2: 2 right, 3 (step 1) wrong -> 1 accepted of 2 tested.
    # The next starts at 4: wrong at once -> 0 of 1. At 5: both right -> 2 of 2. At 8: one token is left, which the
    # target writes itself: nothing is drafted.
    draft = Scripted(text, [{2, 5}, {6}])
    shared = SharedWeights(torch.eye(61), torch.eye(61), torch.arange(61))

    found = measure_acceptance(draft, [text], shared, 2)

    assert (found.num_accepted[1], found.num_tested[1], found.num_rounds[1]) == (3, 5, 4)
    assert found.alpha(2) == 3 / 5
    assert found.tokens_per_round(2) == 1 + 3 / 4
    # Drafts of 1: from 2 right (1 of 1), next at 4 wrong (0 of 1), at 5 right, at 7 wrong, at 8 nothing.
    assert (found.num_accepted[0], found.num_tested[0], found.num_rounds[0]) == (2, 4, 5)
    assert found.by_step == (2 / 7, 1 / 6)


def test_the_best_two_and_four_tokens_are_counted() -> None:
    text = TargetText(torch.tensor([1, 5, 6, 7, 8]), 1, torch.zeros(4, 61))
    draft = Scripted(text, [set()])
    # Scores of each token's successor by rank: 6 follows 5 as second, 7 follows 6 as fourth, 8 follows 7 as fifth.
    order = {0: [5, 1, 2, 3, 4], 1: [1, 6, 2, 3, 4], 2: [1, 2, 3, 7, 4], 3: [1, 2, 3, 4, 8]}
    scores = torch.zeros(1, 5, 61)
    for index, tokens in order.items():
        scores[0, index, tokens] = torch.arange(9.0, 4.0, -1)
    draft.unroll = lambda embedded, features, num_steps: [scores]  # type: ignore[method-assign]

    found = measure_acceptance(draft, [text], SharedWeights(torch.eye(61), torch.eye(61), torch.arange(61)), 1)

    assert found.by_width == {1: (1 / 4,), 2: (2 / 4,), 4: (3 / 4,)}
    assert found.by_step == found.by_width[1]


def test_replay_accepts_what_drafting_would() -> None:
    text = greedy_text([4, 9, 30], 24)
    draft = TrainableDraft(decoder_of(MODEL), "features", [2])
    ids = torch.arange(0, 61, 2)
    shared = SharedWeights(EMBEDDING, HEAD, ids)

    found = measure_acceptance(draft, [text], shared, 3)

    accepted, at, rounds = 0, text.num_prompt - 1, 0
    while at < len(text.ids) - 1:
        known, run = text.ids[: at + 1].tolist(), 0
        # The draft's own tokens are fed here, not the text's.
        while run < min(3, len(text.ids) - 2 - at):
            tokens = torch.tensor(known)
            features = torch.cat([text.features[:at], torch.zeros(len(known) - at, 32)])
            steps = draft.unroll(EMBEDDING[tokens][None], features[None], run + 1)
            token = int(ids[(HEAD[ids] @ steps[run][0, -1]).argmax()])
            if token != int(text.ids[at + 1 + run]):
                break
            known.append(token)
            run += 1
        accepted, at, rounds = accepted + run, at + run + 1, rounds + 1
    assert (found.num_accepted[2], found.num_rounds[2]) == (accepted, rounds)


def test_the_best_length_depends_on_the_costs() -> None:
    acceptance = DraftAcceptance((50, 90), (100, 140), (100, 90), (0.5, 0.5))
    expensive = PassCosts({1: 1.0, 2: 1.0, 3: 1.9}, draft_seconds=0.5)
    cheap = PassCosts({1: 1.0, 2: 1.0, 3: 1.0}, draft_seconds=0.0)

    assert acceptance.best_length(cheap) == (2, pytest.approx(2.0))
    assert acceptance.best_length(expensive) == (1, pytest.approx(1.5 / 1.5))
    assert acceptance.speedup(2, expensive) == pytest.approx(2.0 / 2.9)


def test_a_text_shorter_than_the_longest_draft_is_measured() -> None:
    text = greedy_text([5, 9], 1)
    shared = SharedWeights(EMBEDDING, HEAD, torch.arange(61))

    found = measure_acceptance(TrainableDraft(decoder_of(MODEL), "features", [2]), [text], shared, 6)

    assert found.num_rounds == (1,) * 6
