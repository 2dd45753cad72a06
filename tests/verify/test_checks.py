"""The checks of `specgen verify` find planted errors, and compute the expected distribution independently."""

from __future__ import annotations

from typing import Any

import pytest

from specgen.core.results import LogitGap
from specgen.engine import target_pass
from specgen.engine.drafters import model as drafters
from specgen.engine.randomness import Randomness
from specgen.engine.sampling import TokenDistributions
from specgen.engine.verification import Draft, Rows
from specgen.verify import checks
from specgen.verify.checks import PROCESSORS
from specgen.verify.results import TextCheck


def test_the_decoding_loop_has_the_exact_distribution_of_the_target(distribution_errors: list[Any]) -> None:
    assert [error.processors for error in distribution_errors] == [*PROCESSORS, "shared tokens"]
    assert all(error.is_exact and error.num_outcomes > 3 for error in distribution_errors)


@pytest.mark.thorough
def test_a_wrong_residual_distribution_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    original = target_pass.verify_block_by_rows

    def wrong(target: Rows, draft: Draft, randomness: Randomness) -> tuple[int, int]:
        """Draws the token after a rejected one from the target's whole distribution."""
        num_accepted, target_id = original(target, draft, randomness)
        probs = target.row(num_accepted).probs
        assert probs is not None
        return num_accepted, int(randomness.draw(probs[0])) if num_accepted < len(draft.ids) else target_id

    monkeypatch.setattr(target_pass, "verify_block_by_rows", wrong)
    monkeypatch.setattr(checks, "PROCESSORS", {"plain": PROCESSORS["plain"]})

    assert any(not error.is_exact for error in checks.distribution_errors())


@pytest.mark.thorough
def test_the_distribution_of_the_draft_does_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    original = drafters.token_distributions

    def flipped(*arguments: Any) -> TokenDistributions:
        drawn = original(*arguments)
        return TokenDistributions(drawn.ids, None if drawn.probs is None else drawn.probs.flip(-1), drawn.is_finite)

    monkeypatch.setattr(drafters, "token_distributions", flipped)
    monkeypatch.setattr(checks, "PROCESSORS", {name: PROCESSORS[name] for name in ("plain", "top-p")})

    assert all(error.is_exact for error in checks.distribution_errors())


@pytest.mark.parametrize(
    ("gap", "verdict"),
    [(None, "same"), (LogitGap(0.5, 1.0), "near-tie"), (LogitGap(2.0, 1.0), "different")],
)
def test_the_verdict_follows_from_the_gap(gap: LogitGap | None, verdict: str) -> None:
    assert TextCheck("hello", 8, 4, 2, None if gap is None else 3, gap).verdict == verdict
