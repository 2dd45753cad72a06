"""A suite that has never failed proves nothing: each classic bug is planted, and an oracle of ours must catch it.

The mutation run as one command: `python -m pytest tests/engine/test_planted_bugs.py -v`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import pytest
import torch

from specgen.engine import decoding, drafters, randomness, verification
from specgen.engine.lengths import LengthPolicy
from specgen.engine.model import CachedModel
from specgen.engine.sampling import Laws
from specgen.engine.verification import Draft, Verdict
from specgen.settings import SamplingSettings, Verification
from tests.engine import (
    test_decoding,
    test_enumeration,
    test_greedy_equality,
    test_model,
    test_statistics,
    test_verification,
)
from tests.engine.test_enumeration import CASES, PROCESSORS, assert_same_law, speculative_law, table, target_law

Plant = pytest.MonkeyPatch
OTHER_LAW = next(case for case in CASES if case.name == "other law")
GREEDY_DRAFT = next(case for case in CASES if case.name == "greedy draft")


def check_law(case: test_enumeration.Case = OTHER_LAW, processors: str = "plain") -> None:
    sampling = PROCESSORS[processors]
    for rule in ("block", "token"):
        assert_same_law(speculative_law(case, 3, 2, sampling, verification=rule), target_law(table(3, 1), sampling))


def check_statistics(num_draft_tokens: int = 2) -> None:
    test_statistics.test_s2_three_tokens_have_the_targets_joint_law(num_draft_tokens, "token", test_statistics.FEW)


def check_greedy(kind: str = "llama", name: str = "oracle") -> None:
    test_greedy_equality.test_greedy_text_equals_transformers_generate(kind, name, 3)


def soft_law_for_a_greedy_draft(plant: Plant) -> None:
    original = drafters.laws

    def soft(logits: torch.Tensor, settings: SamplingSettings, *rest: torch.Tensor | None) -> Laws:
        law = original(logits, settings, *rest)
        return Laws(law.ids, logits.softmax(-1), law.is_finite)

    plant.setattr(drafters, "laws", soft)
    plant.setattr(test_enumeration.WalkedChance, "draw", lambda self, probs: probs.argmax())


def residual_is_the_target_law(plant: Plant) -> None:
    plant.setattr(verification, "residual_distribution", lambda target_probs, draft_probs: target_probs)


def residual_is_the_absolute_difference(plant: Plant) -> None:
    def absolute(target_probs: torch.Tensor, draft_probs: torch.Tensor) -> torch.Tensor:
        rest = (target_probs - draft_probs).abs()
        return rest / rest.sum()

    plant.setattr(verification, "residual_distribution", absolute)


def ratio_upside_down(plant: Plant) -> None:
    def inverted(target_probs: torch.Tensor, draft: Draft) -> torch.Tensor:
        assert draft.probs is not None
        columns = draft.ids.unsqueeze(-1)
        return (draft.probs.gather(-1, columns) / target_probs.gather(-1, columns)).clamp(max=1).squeeze(-1)

    plant.setattr(verification, "acceptance_probabilities", inverted)


def at_most_instead_of_below(plant: Plant) -> None:
    plant.setattr(test_verification, "accepted", lambda uniforms, probabilities: uniforms <= probabilities)


def dropped_sampled_token(plant: Plant) -> None:
    original = drafters.ModelDrafter._propose

    def unsure(self: drafters.ModelDrafter, ids: Sequence[int], limit: int, lengths: LengthPolicy) -> Draft:
        draft = original(self, ids, limit, lengths)
        assert draft.probs is not None
        keep = draft.probs.gather(-1, draft.ids.unsqueeze(-1)).squeeze(-1) > 0.4
        length = int(keep.long().cumprod(0).sum())
        return Draft(draft.ids[:length], draft.probs[:length])

    plant.setattr(drafters.ModelDrafter, "_propose", unsure)


def bonus_row_off_by_one(plant: Plant) -> None:
    original = decoding.verify

    def shifted(target: Laws, draft: Draft, chance: randomness.Randomness, rule: Verification) -> Verdict:
        verdict = original(target, draft, chance, rule)
        row = (verdict.num_accepted - 1).clamp(min=0)
        return Verdict(verdict.num_accepted, target.ids[row])

    match = decoding._match

    def shifted_on_the_host(top_logits: list[float], top_ids: list[int], draft: Draft) -> list[int]:
        num_accepted, _, *rest = match(top_logits, top_ids, draft)
        return [num_accepted, top_ids[max(num_accepted - 1, 0)], *rest]

    plant.setattr(decoding, "verify", shifted)
    plant.setattr(decoding, "_match", shifted_on_the_host)


def target_rows_off_by_one(plant: Plant) -> None:
    original = verification.likelihood_ratios

    def rolled(target_probs: torch.Tensor, draft: Draft) -> torch.Tensor:
        return original(target_probs.roll(1, dims=0), draft)

    plant.setattr(verification, "likelihood_ratios", rolled)


def stale_cache_after_rewind(plant: Plant) -> None:
    def forgetful(self: CachedModel, length: int) -> None:
        self.length = length

    plant.setattr(CachedModel, "rewind", forgetful)


def window_rewound_too_deep(plant: Plant) -> None:
    def reckless(self: CachedModel, length: int) -> None:
        if self.length:
            self._cache.crop(length - self.length)
        self.length = length

    plant.setattr(CachedModel, "rewind", reckless)


def no_cut_at_the_end_token(plant: Plant) -> None:
    original = decoding._cut
    plant.setattr(decoding, "_cut", lambda tokens, ends, stop: (len(tokens), original(tokens, ends, stop)[1]))


def temperature_on_the_target_only(plant: Plant) -> None:
    original = drafters.laws

    def half(logits: torch.Tensor, settings: SamplingSettings, *rest: torch.Tensor | None) -> Laws:
        law = original(logits, settings, *rest)
        return Laws(law.ids, logits.softmax(-1), law.is_finite)

    def draw_from_the_true_law(self: object, probs: torch.Tensor) -> torch.Tensor:
        sharpened = probs.pow(1 / 0.6)
        return torch.tensor(self._choose((sharpened / sharpened.sum()).tolist()))  # type: ignore[attr-defined]

    original_draw = test_enumeration.WalkedChance.draw
    plant.setattr(drafters, "laws", half)
    plant.setattr(
        drafters.ModelDrafter,
        "_propose",
        _with_draw(drafters.ModelDrafter._propose, plant, draw_from_the_true_law, original_draw),
    )


def _with_draw(propose: Callable[..., Draft], plant: Plant, inside: object, outside: object) -> Callable[..., Draft]:
    def wrapped(self: drafters.ModelDrafter, ids: Sequence[int], limit: int, lengths: LengthPolicy) -> Draft:
        plant.setattr(test_enumeration.WalkedChance, "draw", inside)
        try:
            return propose(self, ids, limit, lengths)
        finally:
            plant.setattr(test_enumeration.WalkedChance, "draw", outside)

    return wrapped


def draft_law_reported_before_its_processors(plant: Plant) -> None:
    """Drawn from the two likeliest tokens, reported as the law of all."""
    original = drafters.laws

    def unprocessed(logits: torch.Tensor, settings: SamplingSettings, *rest: torch.Tensor | None) -> Laws:
        return original(logits, SamplingSettings(temperature=settings.temperature), *rest)

    def draw_from_the_processed_law(self: object, probs: torch.Tensor) -> torch.Tensor:
        return torch.tensor(self._choose(probs.where(probs >= probs.topk(2).values[-1], 0.0).tolist()))  # type: ignore[attr-defined]

    original_draw = test_enumeration.WalkedChance.draw
    plant.setattr(drafters, "laws", unprocessed)
    plant.setattr(
        drafters.ModelDrafter,
        "_propose",
        _with_draw(drafters.ModelDrafter._propose, plant, draw_from_the_processed_law, original_draw),
    )


def one_uniform_for_all_choices(plant: Plant) -> None:
    """Of the real generator, which no walked outcome can see."""
    original = randomness.TorchRandomness._uniforms

    def reused(self: randomness.TorchRandomness, count: int) -> torch.Tensor:
        return original(self, 1).expand(count)

    plant.setattr(randomness.TorchRandomness, "_uniforms", reused)


def bonus_from_the_row_before(plant: Plant) -> None:
    original = verification.verify

    def late(target: Laws, draft: Draft, chance: randomness.Randomness, rule: Verification) -> Verdict:
        if target.probs is None or not len(draft.ids):
            return original(target, draft, chance, rule)
        probs = torch.cat([target.probs[:-1], target.probs[-2:-1]])
        return original(Laws(target.ids, probs, target.is_finite), draft, chance, rule)

    plant.setattr(decoding, "verify", late)


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
    original = decoding.seen_rows

    def frozen(ids: Sequence[int], draft_ids: torch.Tensor, *rest: object) -> torch.Tensor | None:
        seen = original(ids, draft_ids, *rest)  # type: ignore[arg-type]
        return None if seen is None else seen[:1].repeat(len(draft_ids) + 1, 1)

    plant.setattr(decoding, "seen_rows", frozen)


def one_decision_for_all_positions(plant: Plant) -> None:
    original = test_enumeration.WalkedChance.accept

    def once(self: test_enumeration.WalkedChance, probabilities: torch.Tensor) -> torch.Tensor:
        return original(self, probabilities[:1]).repeat(len(probabilities))

    plant.setattr(test_enumeration.WalkedChance, "accept", once)


BUGS: list[tuple[Callable[[Plant], None], Callable[[], None]]] = [
    (soft_law_for_a_greedy_draft, lambda: check_law(GREEDY_DRAFT)),
    (residual_is_the_target_law, check_law),
    (residual_is_the_absolute_difference, check_law),
    (ratio_upside_down, check_law),
    (at_most_instead_of_below, test_verification.test_probability_zero_is_refused_even_by_a_uniform_of_zero),
    (dropped_sampled_token, check_law),
    (bonus_row_off_by_one, check_greedy),
    (target_rows_off_by_one, check_law),
    (stale_cache_after_rewind, lambda: check_greedy(name="random")),
    (window_rewound_too_deep, lambda: test_model.check_rollback("mistral", [(20, 0), (3, 9), (2, 1)], 0)),
    (no_cut_at_the_end_token, test_decoding.test_a_round_is_cut_at_the_first_end_token),
    (temperature_on_the_target_only, lambda: check_law(processors="temperature")),
    (penalty_not_advanced_inside_the_draft, lambda: check_law(processors="penalty")),
    (one_decision_for_all_positions, check_law),
    (draft_law_reported_before_its_processors, lambda: check_law(processors="top-k")),
    (one_uniform_for_all_choices, lambda: check_statistics(3)),
    (bonus_from_the_row_before, check_law),
    (token_outside_the_shared_vocabulary, test_model.test_logits_are_cut_to_the_shared_vocabulary),
]
STATISTICS_SEE = (
    residual_is_the_target_law,
    residual_is_the_absolute_difference,
    ratio_upside_down,
    target_rows_off_by_one,
    bonus_from_the_row_before,
)
"""Bugs that the χ² suite must see as well, on the real generator."""


CRASHING = (window_rewound_too_deep, stale_cache_after_rewind)


@pytest.mark.parametrize(("bug", "oracle"), BUGS, ids=[bug.__name__ for bug, _ in BUGS])
def test_a_planted_bug_is_caught(
    bug: Callable[[Plant], None], oracle: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    oracle()
    bug(monkeypatch)

    # A cache that is out of step shows as a shape that doesn't fit; every other bug must fail an assertion.
    with pytest.raises((AssertionError, RuntimeError) if bug in CRASHING else AssertionError):
        oracle()


@pytest.mark.parametrize("bug", STATISTICS_SEE, ids=lambda bug: bug.__name__)
def test_a_planted_bug_is_seen_by_chi_square_too(bug: Callable[[Plant], None], monkeypatch: pytest.MonkeyPatch) -> None:
    bug(monkeypatch)

    with pytest.raises(AssertionError):
        check_statistics()
