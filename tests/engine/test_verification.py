"""Tests the accept rule by algebra and at its edges."""

from __future__ import annotations

from unittest.mock import patch

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from specgen.engine import randomness
from specgen.engine.randomness import TorchRandomness, accepted, drawn
from specgen.engine.sampling import TokenDistributions
from specgen.engine.verification import Draft, acceptance_probabilities, residual_distribution, verify
from tests.fakes import CPU

NEARLY_ONE = 1 - 2**-53


def distribution(*weights: float) -> Tensor:
    probs = torch.tensor(weights, dtype=torch.float64)
    return probs / probs.sum()


def target(*rows: Tensor) -> TokenDistributions:
    probs = torch.stack(rows)
    return TokenDistributions(probs.argmax(-1), probs, torch.tensor(True))


def greedy_target(*ids: int) -> TokenDistributions:
    return TokenDistributions(torch.tensor(ids), None, torch.tensor(True))


class GivenUniforms:
    """Randomness from given uniforms; the last one is for the draw."""

    def __init__(self, *uniforms: float) -> None:
        self.uniforms = torch.tensor(uniforms, dtype=torch.float64)

    def accept(self, probabilities: Tensor) -> Tensor:
        return accepted(self.uniforms[: len(probabilities)], probabilities)

    def draw(self, probs: Tensor) -> Tensor:
        return drawn(self.uniforms[-1:], probs)


@given(
    st.integers(1, 200), st.sampled_from([torch.float32, torch.float64]), st.floats(0, NEARLY_ONE), st.integers(0, 999)
)
def test_a_token_drawn_by_blocks_is_that_of_the_cumulative_distribution(
    width: int, dtype: torch.dtype, uniform: float, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    probs = torch.rand(width, generator=generator, dtype=dtype).pow(40)  # from 1 down to 0
    probs[torch.rand(width, generator=generator) < 0.4] = 0
    probs[int(torch.randint(width, (1,), generator=generator))] = 0.25
    at = torch.tensor([uniform], dtype=torch.float64)
    expected = int(drawn(at, probs))

    with patch.object(randomness, "WIDE_TOKENS", 0):
        found = int(drawn(at, probs))

    assert probs[found] > 0
    shares = probs.double().cumsum(0) / probs.double().sum()
    assert found == expected or abs(float(shares[min(found, expected)]) - uniform) < 1e-12


@pytest.mark.parametrize("uniform", [0.0, 0.5, NEARLY_ONE])
def test_a_block_of_tiny_probabilities_after_a_large_one_loses_no_token(uniform: float) -> None:
    probs = torch.zeros(192, dtype=torch.float64)
    probs[3], probs[70:120] = 1.0, 1e-17

    with patch.object(randomness, "WIDE_TOKENS", 0):
        assert probs[int(drawn(torch.tensor([uniform], dtype=torch.float64), probs))] > 0
        assert probs[int(drawn(torch.tensor([1.0], dtype=torch.float64), probs))] > 0


def test_a_token_is_drawn_from_a_wide_distribution_of_any_type() -> None:
    for dtype in (torch.bfloat16, torch.float16, torch.float32, torch.float64):
        probs = torch.zeros(20_000, dtype=dtype)
        probs[17_123] = 1

        assert int(TorchRandomness(1, CPU).draw(probs)) == 17_123


distributions_of_six = st.lists(st.sampled_from([0.0, 1e-12, 0.1, 0.5, 1.0, 7.0]), min_size=6, max_size=6).filter(
    lambda weights: sum(weights) > 0
)


@given(distributions_of_six, distributions_of_six)
def test_accepting_or_correcting_gives_the_target_distribution(
    target_weights: list[float], draft_weights: list[float]
) -> None:
    target_probs, draft_probs = distribution(*target_weights), distribution(*draft_weights)
    possible = draft_probs.nonzero().squeeze(-1)
    acceptance = torch.zeros(6, dtype=torch.float64)
    rows = draft_probs.repeat(len(possible), 1)
    acceptance[possible] = acceptance_probabilities(target_probs.repeat(len(possible), 1), Draft(possible, rows))

    kept = draft_probs * acceptance
    emitted = kept + (1 - kept.sum()) * residual_distribution(target_probs, draft_probs)

    assert torch.allclose(emitted, target_probs, atol=1e-12, rtol=0)
    assert abs(float(kept.sum()) - float(torch.minimum(target_probs, draft_probs).sum())) < 1e-12


def test_probability_zero_is_rejected_even_by_a_uniform_of_zero() -> None:
    verdict = verify(target(distribution(1, 0), distribution(1, 1)), Draft(torch.tensor([1])), GivenUniforms(0.0, 0.0))

    assert int(verdict.num_accepted) == 0
    assert int(verdict.target_id) == 0


def test_equal_distributions_accept_even_at_the_largest_uniform() -> None:
    probs = distribution(1, 3)

    draft = Draft(torch.tensor([1]), probs.unsqueeze(0))
    verdict = verify(target(probs, probs), draft, GivenUniforms(NEARLY_ONE, 0.9))

    assert int(verdict.num_accepted) == 1


def test_a_drafter_with_a_wrong_distribution_is_caught() -> None:
    draft = Draft(torch.tensor([0]), distribution(0, 1).unsqueeze(0))

    with pytest.raises(AssertionError, match="probability 0"):
        verify(target(distribution(1, 1), distribution(1, 1)), draft, GivenUniforms(0.5, 0.5))


@pytest.mark.fault("F44")
def test_an_empty_residual_falls_back_to_the_target_distribution() -> None:
    probs = distribution(1, 2, 3)

    assert torch.equal(residual_distribution(probs, probs), probs)


@pytest.mark.parametrize("uniform", [0.0, 0.3, NEARLY_ONE])
def test_a_token_of_probability_zero_is_never_drawn(uniform: float) -> None:
    for probs in (distribution(0, 1, 0), distribution(0, 1, 1, 0, 0), distribution(1, 0), distribution(0, 1)):
        token = int(drawn(torch.tensor([uniform], dtype=torch.float64), probs.float()))

        assert probs[token] > 0


def test_draws_follow_the_distribution() -> None:
    probs = distribution(1, 2, 3, 4)

    drawn_ids = [int(drawn(torch.tensor([u], dtype=torch.float64), probs)) for u in torch.linspace(0, 0.9999, 1000)]

    assert [drawn_ids.count(i) for i in range(4)] == pytest.approx([100, 200, 300, 400], abs=2)


@pytest.mark.parametrize(
    ("draft_ids", "num_accepted", "target_id"),
    [([], 0, 4), ([4, 5, 6], 3, 7), ([9, 5, 6], 0, 4), ([4, 9, 6], 1, 5), ([4, 5, 9], 2, 6), ([9, 9, 9], 0, 4)],
    ids=["empty", "all", "none", "first only", "two", "all wrong"],
)
def test_greedy_keeps_the_matching_prefix(draft_ids: list[int], num_accepted: int, target_id: int) -> None:
    rows = greedy_target(*[4, 5, 6, 7][: len(draft_ids) + 1])

    verdict = verify(rows, Draft(torch.tensor(draft_ids, dtype=torch.int64)), GivenUniforms(0.0))

    assert (int(verdict.num_accepted), int(verdict.target_id)) == (num_accepted, target_id)


def test_the_correction_uses_the_distribution_at_the_rejected_position() -> None:
    rows = target(distribution(1, 0, 0), distribution(0, 1, 0), distribution(0, 0, 1))
    draft = Draft(torch.tensor([0, 2]), torch.stack([distribution(1, 1, 1), distribution(1, 1, 1)]))

    verdict = verify(rows, draft, GivenUniforms(0.5, 0.5, 0.5))

    assert (int(verdict.num_accepted), int(verdict.target_id)) == (1, 1)


def test_the_same_seed_gives_the_same_choices() -> None:
    first, second = TorchRandomness(7, CPU), TorchRandomness(7, CPU)
    probs = distribution(*range(1, 40))

    assert [int(first.draw(probs)) for _ in range(20)] == [int(second.draw(probs)) for _ in range(20)]


def test_the_global_generator_is_not_used() -> None:
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)

    TorchRandomness(1, CPU).draw(distribution(1, 1))

    assert torch.equal(torch.rand(3), expected)
