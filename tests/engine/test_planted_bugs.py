"""Plants classic bugs, one at a time, and checks that a test catches each of them.

A bug is planted in the product, never in the tests' stand-ins, and in a single place. Where the oracle is the
distribution of the text, only another distribution counts: any test would catch a crash or lost probability.

The mutation run as one command: `python -m pytest tests/engine/test_planted_bugs.py -v`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache, partial

import pytest
import torch

from specgen.core.settings import SamplingSettings, Verification
from specgen.engine import decoding, randomness, target_pass, tree_verification, verification
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.drafters import model as drafters
from specgen.engine.sampling import TokenDistributions
from specgen.engine.seen_tokens import SeenTokens
from specgen.engine.target_distributions import RowsOnDemand, TargetDistributions
from specgen.engine.verification import Draft, Verdict
from specgen.models.cached_model import CachedModel
from specgen.models.kv_slots import SliceSlots
from specgen.models.stored_slots import Rotations
from specgen.models.transformers_model import TransformersModel
from tests.engine import test_decoding, test_enumeration, test_greedy_equality, test_statistics
from tests.engine.test_enumeration import (
    CASES,
    PROCESSORS,
    assert_same_distribution,
    speculative_distribution,
    table,
    target_distribution,
)
from tests.fakes import CPU
from tests.models import test_transformers_model as test_model

Plant = pytest.MonkeyPatch
OTHER_MODEL = next(case for case in CASES if case.name == "other model")
GREEDY_DRAFT = next(case for case in CASES if case.name == "greedy draft")


def check_distribution(case: test_enumeration.Case = OTHER_MODEL, processors: str = "plain") -> None:
    sampling = PROCESSORS[processors]
    for rule in ("block", "token"):
        try:
            found = speculative_distribution(case, 3, 2, sampling, verification=rule)
        except AssertionError as error:
            raise RuntimeError("the run broke off, so no distribution can be compared") from error
        if abs(sum(found.values()) - 1) > 1e-12:
            raise RuntimeError("the outcomes do not add up to 1, so no distribution can be compared")
        assert_same_distribution(found, target_distribution(table(3, 1), sampling))


s2 = test_statistics.test_s2_three_tokens_have_the_targets_joint_distribution
s2_of_one, s2_of_two, s2_of_three = (partial(s2, number, "token", None) for number in (1, 2, 3))
s6 = partial(
    test_statistics.test_s6_with_all_processors_on_both_sides_the_text_has_the_processed_distribution,
    test_statistics.FEW_STEPS,
)


@cache
def check_without_a_bug(oracle: Callable[[], None]) -> None:
    """Checks that an oracle passes without a bug, once for all bugs that share it."""
    oracle()


def check_uniform_of_zero() -> None:
    """Like a test in `test_verification`, but here the product's generator gives the zero."""

    class Zero(randomness.TorchRandomness):
        def _uniforms(self, count: int) -> torch.Tensor:
            return torch.zeros(count, dtype=torch.float64)

    distribution = torch.tensor([[1.0, 0.0], [0.5, 0.5]], dtype=torch.float64)
    target = TokenDistributions(distribution.argmax(-1), distribution, torch.tensor(True))
    assert int(verification.verify(target, Draft(torch.tensor([1])), Zero(0, CPU)).num_accepted) == 0


def check_greedy(kind: str = "llama", name: str = "oracle") -> None:
    test_greedy_equality.test_greedy_text_equals_transformers_generate(kind, name, 3)


def soft_distribution_for_a_greedy_draft(plant: Plant) -> None:
    """Reports the likeliest token as if it had been drawn from the draft's distribution."""
    make, propose = drafters.token_distributions, drafters.ModelDrafter._propose
    rows: list[torch.Tensor] = []

    def remembering(logits: torch.Tensor, settings: SamplingSettings, *rest: torch.Tensor | None) -> TokenDistributions:
        rows.append(logits.softmax(-1))
        return make(logits, settings, *rest)

    def soft(self: drafters.ModelDrafter, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        rows.clear()
        draft = propose(self, ids, limit, draft_length)
        return Draft(draft.ids, self._over_target_vocab(torch.cat(rows)))

    plant.setattr(drafters, "token_distributions", remembering)
    plant.setattr(drafters.ModelDrafter, "_propose", soft)


def _in_both(plant: Plant, name: str, wrong: Callable[..., torch.Tensor]) -> None:
    """Plants a bug in a function that both accept rules call: of whole drafts, and of one token after another."""
    plant.setattr(verification, name, wrong)
    plant.setattr(tree_verification, name, wrong)


def residual_is_the_target_distribution(plant: Plant) -> None:
    # Block verification passes a part of the target's mass.
    _in_both(plant, "residual_distribution", lambda target_probs, _: target_probs / target_probs.sum())


def residual_is_the_absolute_difference(plant: Plant) -> None:
    def absolute(target_probs: torch.Tensor, draft_probs: torch.Tensor) -> torch.Tensor:
        rest = (target_probs - draft_probs).abs()
        return rest / rest.sum()

    _in_both(plant, "residual_distribution", absolute)


def ratio_upside_down(plant: Plant) -> None:
    original = verification.acceptance_probabilities

    def inverted(target_probs: torch.Tensor, draft: Draft) -> torch.Tensor:
        if draft.probs is None:  # the last round of a budget drafts nothing
            return original(target_probs, draft)
        columns = draft.ids.unsqueeze(-1)
        return (draft.probs.gather(-1, columns) / target_probs.gather(-1, columns)).clamp(max=1).squeeze(-1)

    _in_both(plant, "acceptance_probabilities", inverted)


def at_most_instead_of_below(plant: Plant) -> None:
    plant.setattr(randomness, "accepted", lambda uniforms, probabilities: uniforms <= probabilities)


def dropped_sampled_token(plant: Plant) -> None:
    original = drafters.ModelDrafter._propose

    def unsure(self: drafters.ModelDrafter, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        draft = original(self, ids, limit, draft_length)
        assert draft.probs is not None
        keep = draft.probs.gather(-1, draft.ids.unsqueeze(-1)).squeeze(-1) > 0.4
        length = int(keep.long().cumprod(0).sum())
        return Draft(draft.ids[:length], draft.probs[:length])

    plant.setattr(drafters.ModelDrafter, "_propose", unsure)


def bonus_row_off_by_one(plant: Plant) -> None:
    original = target_pass.verify

    def shifted(target: TokenDistributions, draft: Draft, source: randomness.Randomness, rule: Verification) -> Verdict:
        verdict = original(target, draft, source, rule)
        row = (verdict.num_accepted - 1).clamp(min=0)
        return Verdict(verdict.num_accepted, target.ids[row])

    match = target_pass.verify_greedy

    def shifted_on_the_host(top_logits: list[float], top_ids: list[int], draft: Draft) -> list[int]:
        num_accepted, _, *rest = match(top_logits, top_ids, draft)
        return [num_accepted, top_ids[max(num_accepted - 1, 0)], *rest]

    plant.setattr(target_pass, "verify", shifted)
    plant.setattr(target_pass, "verify_greedy", shifted_on_the_host)


def target_rows_off_by_one(plant: Plant) -> None:
    original = verification.likelihood_ratios

    def rolled(target_probs: torch.Tensor, draft: Draft) -> torch.Tensor:
        return original(target_probs.roll(1, dims=0), draft)

    plant.setattr(verification, "likelihood_ratios", rolled)
    row = RowsOnDemand.row
    plant.setattr(RowsOnDemand, "row", lambda self, index: row(self, max(index - 1, 0)))


def stale_cache_after_rewind(plant: Plant) -> None:
    """The next pass appends to all that was ever stored."""
    original = SliceSlots.begin

    def appending(self: SliceSlots, first: int, num_new: int) -> Rotations:
        return original(self, max(first, self._last), num_new)

    plant.setattr(SliceSlots, "begin", appending)


def stale_library_cache_after_rewind(plant: Plant) -> None:
    def forgetful(self: TransformersModel, length: int) -> None:
        self.length = length

    plant.setattr(TransformersModel, "rewind", forgetful)


def drafted_tokens_see_beyond_the_window(plant: Plant) -> None:
    original = SliceSlots._mask
    plant.setattr(SliceSlots, "_mask", lambda self, window, start: original(self, None, start))


def window_rewound_too_deep(plant: Plant) -> None:
    def reckless(self: TransformersModel, length: int) -> None:
        if self.length:
            self._cache.crop(length - self.length)
        self.length = length

    plant.setattr(TransformersModel, "rewind", reckless)


def no_cut_at_the_end_token(plant: Plant) -> None:
    original = decoding._cut
    plant.setattr(decoding, "_cut", lambda tokens, ends, stop: (len(tokens), original(tokens, ends, stop)[1]))


def temperature_on_the_target_only(plant: Plant) -> None:
    """The draft draws at the temperature, and reports its distribution without one."""
    original = drafters.ModelDrafter._over_target_vocab

    def without(self: drafters.ModelDrafter, probs: torch.Tensor) -> torch.Tensor:
        flat = probs.pow(self._sampler.settings.temperature)
        return original(self, flat / flat.sum(dim=-1, keepdim=True))

    plant.setattr(drafters.ModelDrafter, "_over_target_vocab", without)


def draft_distribution_reported_before_its_processors(plant: Plant) -> None:
    """Draws from the two likeliest tokens, and reports the distribution of all."""
    make, whole = drafters.token_distributions, drafters.ModelDrafter._over_target_vocab
    before: list[torch.Tensor] = []

    def remembering(logits: torch.Tensor, settings: SamplingSettings, *rest: torch.Tensor | None) -> TokenDistributions:
        before[:] = [(logits / settings.temperature).softmax(-1)]
        return make(logits, settings, *rest)

    plant.setattr(drafters, "token_distributions", remembering)
    plant.setattr(drafters.ModelDrafter, "_over_target_vocab", lambda self, probs: whole(self, before[0]))


def one_uniform_for_two_choices(plant: Plant) -> None:
    """In the real generator, which enumeration does not use."""
    original = randomness.TorchRandomness._uniforms
    used_once: list[torch.Tensor] = []

    def reused(self: randomness.TorchRandomness, count: int) -> torch.Tensor:
        if used_once:
            return used_once.pop().expand(count)
        used_once.append(original(self, 1))
        return used_once[0].expand(count)

    plant.setattr(randomness.TorchRandomness, "_uniforms", reused)


def bonus_from_the_row_before(plant: Plant) -> None:
    original = verification.verify

    def late(target: TokenDistributions, draft: Draft, source: randomness.Randomness, rule: Verification) -> Verdict:
        if target.probs is None or not len(draft.ids):
            return original(target, draft, source, rule)
        probs = torch.cat([target.probs[:-1], target.probs[-2:-1]])
        return original(TokenDistributions(target.ids, probs, target.is_finite), draft, source, rule)

    plant.setattr(target_pass, "verify", late)
    row = RowsOnDemand.row
    plant.setattr(RowsOnDemand, "row", lambda self, index: row(self, index - (0 < index == len(self._parents))))


def token_outside_the_shared_vocabulary(plant: Plant) -> None:
    original = CachedModel.logits

    def uncut(self: CachedModel, ids: Sequence[int], num_last: int, tail: torch.Tensor | None = None) -> torch.Tensor:
        self.vocab_size, width = self.num_embeddings, self.vocab_size
        try:
            return original(self, ids, num_last, tail)
        finally:
            self.vocab_size = width

    plant.setattr(CachedModel, "logits", uncut)


def penalty_not_advanced_inside_the_draft(plant: Plant) -> None:
    original = TargetDistributions.of_one

    def frozen(self: TargetDistributions, logits: torch.Tensor, num_before: int, path: torch.Tensor) -> object:
        return original(self, logits, num_before, path[:0])

    plant.setattr(TargetDistributions, "of_one", frozen)


def new_tokens_not_marked_as_seen(plant: Plant) -> None:
    original = SeenTokens.update

    def once(self: SeenTokens, ids: Sequence[int]) -> None:
        if not self._ids:
            original(self, ids)

    plant.setattr(SeenTokens, "update", once)


def one_decision_for_all_positions(plant: Plant) -> None:
    class Once:
        def __init__(self, source: randomness.Randomness) -> None:
            self.source, self.decisions = source, list[torch.Tensor]()

        def accept(self, probabilities: torch.Tensor) -> torch.Tensor:
            if not self.decisions:
                self.decisions.append(self.source.accept(probabilities))
            return self.decisions[0]

        def draw(self, probs: torch.Tensor) -> torch.Tensor:
            return self.source.draw(probs)

    for name in ("verify_tree", "verify_block_by_rows"):
        original = getattr(target_pass, name)
        plant.setattr(target_pass, name, lambda *rest, original=original: original(*rest[:-1], Once(rest[-1])))


BUGS: list[tuple[Callable[[Plant], None], Callable[[], None]]] = [
    (soft_distribution_for_a_greedy_draft, lambda: check_distribution(GREEDY_DRAFT)),
    (residual_is_the_target_distribution, check_distribution),
    (residual_is_the_absolute_difference, check_distribution),
    (ratio_upside_down, check_distribution),
    (at_most_instead_of_below, check_uniform_of_zero),
    (dropped_sampled_token, check_distribution),
    (bonus_row_off_by_one, check_greedy),
    (target_rows_off_by_one, check_distribution),
    (stale_cache_after_rewind, lambda: check_greedy(name="random")),
    (
        stale_library_cache_after_rewind,
        lambda: test_model.check_rollback("transformers", "llama", [(9, 0), (3, 9), (2, 1)], 0),
    ),
    (drafted_tokens_see_beyond_the_window, lambda: check_greedy("mistral")),
    (
        window_rewound_too_deep,
        lambda: test_model.check_rollback("transformers", "mistral", [(20, 0), (3, 9), (2, 1)], 0),
    ),
    (no_cut_at_the_end_token, test_decoding.test_a_round_is_cut_at_the_first_end_token),
    (temperature_on_the_target_only, lambda: check_distribution(processors="temperature")),
    (penalty_not_advanced_inside_the_draft, lambda: check_distribution(processors="penalty")),
    (new_tokens_not_marked_as_seen, lambda: check_distribution(processors="penalty")),
    (one_decision_for_all_positions, check_distribution),
    (draft_distribution_reported_before_its_processors, lambda: check_distribution(processors="top-k")),
    (bonus_from_the_row_before, check_distribution),
    (token_outside_the_shared_vocabulary, partial(test_model.test_logits_are_cut_to_the_shared_vocabulary, "decoder")),
]
STATISTICS_SEE: list[tuple[Callable[[Plant], None], Callable[[], None]]] = [
    (residual_is_the_target_distribution, s2_of_two),
    (residual_is_the_absolute_difference, s2_of_two),
    (ratio_upside_down, s2_of_two),
    (target_rows_off_by_one, s2_of_two),
    (bonus_from_the_row_before, s2_of_one),
    (one_uniform_for_two_choices, s2_of_three),
    (temperature_on_the_target_only, s6),
]
"""Bugs that the χ² suite must see, on the real generator."""


CRASHING = (window_rewound_too_deep, stale_library_cache_after_rewind)


@pytest.mark.thorough
@pytest.mark.parametrize(("bug", "oracle"), BUGS, ids=[bug.__name__ for bug, _ in BUGS])
def test_a_planted_bug_is_caught(
    bug: Callable[[Plant], None], oracle: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    check_without_a_bug(oracle)
    bug(monkeypatch)

    # A cache that is out of step shows as a shape that doesn't fit; every other bug must fail an assertion.
    with pytest.raises((AssertionError, RuntimeError) if bug in CRASHING else AssertionError):
        oracle()


@pytest.mark.thorough
@pytest.mark.parametrize(("bug", "oracle"), STATISTICS_SEE, ids=[bug.__name__ for bug, _ in STATISTICS_SEE])
def test_a_planted_bug_is_seen_by_chi_square(
    bug: Callable[[Plant], None], oracle: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    # Each oracle is a test of `test_statistics`, which runs it without a bug.
    bug(monkeypatch)

    with pytest.raises(AssertionError):
        oracle()
