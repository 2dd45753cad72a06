"""Tests predicted speedups against simulated pairs on a clock that only their passes advance."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgen.bench.figures import figures_by_setting
from specgen.bench.results import BenchSettings
from specgen.core.cost_model import PassCosts, expected_speedup, forecast, predicted_speedup
from specgen.core.draft_tree import ROOT, DraftTree
from specgen.core.events import DraftSource, Round
from specgen.core.metrics import Counts
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.fixed import FixedLength
from tests.bench.virtual import VirtualClock, benchmark, finished
from tests.engine.test_draft_length import FLAT, STEEP, STEPPED, Costs, Machine, auto
from tests.toys import save_toy

DRAFT = 0.1


def counted(rounds: list[Round]) -> tuple[Counts, float]:
    """Counts of a run, and its speedup over a target that takes 1 a token."""
    counts = Counts()
    for round_ in rounds:
        counts.observe(round_)
    return counts, counts.num_emitted / counts.decode_seconds


def costs_of(verify_cost: Costs) -> PassCosts:
    return PassCosts({n: verify_cost(n) for n in (*range(1, 10), 13, 17)}, DRAFT)


@pytest.mark.parametrize("policy", [auto, FixedLength], ids=["auto", "fixed"])
@pytest.mark.parametrize("quality", [0.5, 0.8])
@pytest.mark.parametrize("verify_cost", [FLAT, STEEP, STEPPED], ids=["flat", "steep", "stepped"])
@pytest.mark.fast(without=("*-0.5-auto",))
def test_the_speedup_of_a_run_is_predicted(verify_cost: Costs, quality: float, policy: type[LengthPolicy]) -> None:
    limit = 16 if policy is auto else 5
    counts, measured = counted(Machine(verify_cost, DRAFT, quality).run(policy(), limit))

    assert predicted_speedup(counts, costs_of(verify_cost)) == pytest.approx(measured, rel=0.03)


@pytest.mark.thorough
@pytest.mark.parametrize("verify_cost", [FLAT, STEEP, STEPPED], ids=["flat", "steep", "stepped"])
def test_one_run_with_a_fixed_length_predicts_shorter_ones(verify_cost: Costs) -> None:
    machine = (verify_cost, DRAFT, 0.8)
    counts, _ = counted(Machine(*machine).run(FixedLength(), 6, num_tokens=1900))

    by_length = forecast(counts, costs_of(verify_cost)).by_length

    assert list(by_length) == [1, 2, 3, 4, 5, 6]
    for length, predicted in by_length.items():
        _, measured = counted(Machine(*machine).run(FixedLength(), length, num_tokens=1900))
        assert predicted == pytest.approx(measured, rel=0.03)


@pytest.mark.parametrize(("alpha", "length", "tokens"), [(0.6, 2, 1.96), (0.7, 3, 2.533), (0.8, 5, 3.689), (1.0, 4, 5)])
def test_where_drafts_cost_nothing_the_speedup_is_the_block_efficiency_of_the_paper(
    alpha: float, length: int, tokens: float
) -> None:
    free = PassCosts({1: 1.0, 9: 1.0}, 0.0)

    assert expected_speedup([alpha] * length, free) == pytest.approx(tokens, abs=1e-3)


def test_time_around_the_passes_counts_on_both_sides() -> None:
    counts = Counts()
    for index in range(10):
        counts.observe(Round(index, (1, 2), 1, 3, 0, 0.2, 1.2, 0.5))
    costs = PassCosts({1: 1.0, 3: 1.2}, 0.1, round_seconds=0.5, plain_round_seconds=0.25)

    # Two tokens a round, at 1.25 each alone; a round takes 0.2 + 1.2 + 0.5.
    assert predicted_speedup(counts, costs) == pytest.approx(2 * 1.25 / 1.9)


def test_reading_what_was_missed_while_nothing_was_drafted_counts() -> None:
    counts = Counts()
    for index in range(4):
        counts.observe(Round(2 * index, (), 0, 3, 0, 0.0, 1.0, 0.0))
        counts.observe(Round(2 * index + 1, (1,), 1, 3, 0, 0.6, 1.0, 0.0))

    # The draft's token is 0.1; four times it took 0.6, since there was a text to read first.
    assert predicted_speedup(counts, PassCosts({1: 1.0, 2: 1.0}, 0.1)) == pytest.approx(12 / (8 + 4 * 0.6))


@pytest.mark.parametrize("source", ["model", "lookup"])
def test_a_prediction_covers_the_rounds_that_the_measured_speed_covers(source: DraftSource) -> None:
    """Rounds of warm-up draft, feed and yield something else than the others, also after a plain round."""
    is_lookup = source == "lookup"
    costs = PassCosts({n: 0.9 + n / 10 for n in range(1, 10)}, 0.1, is_lookup, catch_up_seconds=0.2, round_seconds=0.5)

    def made(num_drafted: int, num_accepted: int, draft_seconds: float, *, is_warmup: bool = False) -> Round:
        times = (0.1 if is_lookup else draft_seconds, 50.0 if is_warmup else 1 + num_drafted / 10, 0.5)
        return Round(0, tuple(range(num_drafted)), num_accepted, 1, 0, *times, source, is_warmup)

    plain, whole, rejected, resumed = made(0, 0, 0.0), made(4, 4, 0.4), made(4, 2, 0.6), made(4, 4, 0.7)
    long, short, alone = (made(n, kept, 50.0, is_warmup=True) for n, kept in ((8, 0), (2, 2), (0, 0)))
    warm = [whole, rejected, plain, resumed]
    for rounds in (warm, [long, short, alone, resumed, long, rejected, plain, short, whole], [long, *warm]):
        counts, _ = counted(rounds)
        assert predicted_speedup(counts, costs) == pytest.approx(counts.tokens_per_second)


def test_nothing_is_predicted_for_rounds_of_warm_up_only() -> None:
    counts, _ = counted([Round(0, (1, 2), 1, 3, 0, 0.2, 1.2, 0.5, is_warmup=True)])

    assert predicted_speedup(counts, PassCosts({1: 1.0, 3: 1.2}, DRAFT, round_seconds=0.5)) is None


def test_what_was_not_measured_is_not_predicted() -> None:
    counts, _ = counted(Machine(FLAT, DRAFT, 0.8).run(FixedLength(), 4))

    assert predicted_speedup(counts, PassCosts({1: 1.0, 2: 1.0}, DRAFT)) is None
    assert predicted_speedup(counts, PassCosts({5: 1.0}, DRAFT)) is None
    assert predicted_speedup(Counts(), costs_of(FLAT)) is None
    assert 5 not in forecast(counts, costs_of(FLAT)).by_length


def expensive_catching_up(clock: VirtualClock, is_target: bool, num_tokens: int) -> float:
    """As in float32: two tokens cost the draft twice one, and the target has steps."""
    return STEPPED(num_tokens) if is_target else 0.2 * num_tokens


@pytest.mark.parametrize("k", [1, 2, 4, 7])
@pytest.mark.fast("2")
def test_the_benchmarks_prediction_holds_where_the_draft_catches_up_at_a_price(
    k: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = VirtualClock(expensive_catching_up)
    clock.install(monkeypatch)
    target, wrong = save_toy(tmp_path / "target"), save_toy(tmp_path / "wrong", fox=" quick")
    config = BenchSettings(num_tokens=80, num_repeats=1, num_warmups=0)

    report = finished(benchmark(clock, target, {"wrong": wrong}, (k,), config, num_prompts=1))

    drafted = figures_by_setting(report)[1]
    assert report.costs is not None
    assert report.costs.catch_up_seconds == pytest.approx({drafted.setting.label: 0.2})
    assert drafted.predicted_speedup == pytest.approx(drafted.speedup, rel=0.03)


def test_a_draft_of_text_is_priced_by_its_passes() -> None:
    """Three passes for two tokens, and v(3) = 1.2: a round of three tokens takes 1.5 steps."""
    counts = Counts()
    for index in range(5):
        counts.observe(Round(index, (1, 2), 2, 3, 0, 0.3, 1.2, 0.0, "model", num_passes=3))
    costs = PassCosts({1: 1.0, 2: 1.1, 3: 1.2}, DRAFT)

    found = forecast(counts, costs)

    assert found.speedup == pytest.approx(2.0)
    assert found.by_length[2] == pytest.approx(2.0)
    assert found.by_length[1] == pytest.approx(2 / 1.3)


def test_a_draft_that_branches_is_priced_by_the_tokens_of_its_passes() -> None:
    """Passes of the draft over n tokens of a tree take 0.1 + 0.02 n, and each further token of the text takes 0.05."""
    by_rows = {n: 0.1 + 0.02 * n for n in (1, 2, 4)}
    counts = Counts()
    tree = DraftTree((1, 2, 3, 4), (ROOT, 0, ROOT, 2))
    for index, rows in enumerate([(1, 3), (3, 2), (2,), (1, 6, 1)]):
        # The clock of these rounds is wrong: the forecast does not read it.
        times = (7.0, 7.0, 0.0)
        counts.observe(Round(index, (1, 2), 2, 3, 0, *times, "model", tree=tree, num_passes=len(rows), pass_rows=rows))
    counts.observe(Round(4, (1, 2), 2, 3, 0, 50.0, 50.0, 0.0, "model", True, tree=tree, num_passes=1, pass_rows=(9,)))
    counts.observe(Round(5, (5, 6), 2, 3, 0, 7.0, 7.0, 0.0, "model"))
    costs = PassCosts({1: 1.0, 3: 1.2, 5: 1.3}, DRAFT, tree_pass_seconds=by_rows, reading_seconds={1: 0.0, 2: 0.05})

    in_trees = (0.12 + 0.16) + (0.12 + 2 * 0.05 + 0.14) + (0.12 + 0.05) + (0.12 + 0.22 + 0.12)
    in_chains = 2 * DRAFT
    assert predicted_speedup(counts, costs) == pytest.approx(15 / (in_trees + in_chains + 4 * 1.3 + 1.2))


def test_reading_the_text_before_a_draft_is_priced_by_its_tokens() -> None:
    """A draft after accepted tokens of lookup, or after its own last token, first reads them."""
    counts = Counts()
    for index, rows in enumerate([(1, 1), (6, 1), (2, 1), (1, 1)]):
        counts.observe(Round(index, (1, 2), 2, 3, 0, 7.0, 7.0, 0.0, "model", pass_rows=rows))
    costs = PassCosts({1: 1.0, 3: 1.2}, DRAFT, reading_seconds={1: 0.0, 2: 0.04, 4: 0.06})

    assert predicted_speedup(counts, costs) == pytest.approx(12 / (4 * 1.2 + 8 * DRAFT + (0.06 + 2 * 0.02) + 0.04))
