"""Tests the price of a draft's passes over several tokens, on models whose passes take a + b n on a virtual clock."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import chain

import pytest
import torch
from torch import Tensor

from specgen.core.draft_tree import ROOT, depths_of
from specgen.core.events import Round
from specgen.core.settings import DecodeSettings
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.fixed import FixedLength
from specgen.engine.draft_length.policy import CostAwareLength
from specgen.engine.draft_length.row_cost import RowCost
from specgen.engine.draft_length.tree_length import AcceptanceByShare, TreeLength
from specgen.engine.draft_length.tree_plan import Branching, Step
from specgen.engine.drafters.tree import TreeDrafter
from specgen.engine.enumeration import TableModel
from tests.fakes import rounds_of, sampler

VOCAB_SIZE, NUM_PLACES = 24, 997

Price = Callable[[int], float]


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


class TimedTable(TableModel):
    """A table by the last token and its position; a pass over n tokens takes `price(n)`."""

    def __init__(self, table: Tensor, clock: Clock, price: Price) -> None:
        super().__init__(torch.zeros(VOCAB_SIZE, VOCAB_SIZE))
        self._by_place, self._clock, self._price = table, clock, price
        self.pass_rows: list[int] = []
        """Tokens of each pass."""

    def _work(self, num_tokens: int) -> None:
        self.pass_rows.append(num_tokens)
        self._clock.now += self._price(num_tokens)

    def _rows(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        places = [(31 * token + 7 * at) % NUM_PLACES for token, at in zip(tokens, positions, strict=True)]
        return self._by_place[places].clone()

    def logits(self, ids: Sequence[int], num_last: int, tail: Tensor | None = None) -> Tensor:
        whole = [*ids, *([] if tail is None else tail.tolist())]
        self._work(len(whole) - self.length)
        super().logits(ids, num_last, tail)
        return self._rows(whole[-num_last:], range(len(whole) - num_last, len(whole)))

    def tree_logits(self, tokens: Tensor, parents: Sequence[int]) -> Tensor:
        self._work(len(tokens))
        super().tree_logits(tokens, parents)
        depths = depths_of([parent for _, parent in self._tree])[-len(tokens) :]
        return self._rows(tokens.tolist(), [self.length + depth for depth in depths])


@dataclass(frozen=True)
class Answer:
    """A run with 200 tokens: its rounds and seconds, and what was learned."""

    rounds: list[Round]
    seconds: float
    draft_cost: DraftCost

    @property
    def further_rows(self) -> list[int]:
        """Tokens of the passes over trees, without those of the first third, which teaches their cost."""
        late = self.rounds[len(self.rounds) // 3 :]
        return [*chain.from_iterable(round_.pass_rows[1:] for round_ in late)]


def answer(draft_price: Price, target_price: Price, *, has_trees: bool = True) -> Answer:
    """Runs `-k auto`, with `--tree auto` or without, and a draft that is unsure of most tokens."""
    chosen = torch.Generator().manual_seed(3)
    target = torch.randn(NUM_PLACES, VOCAB_SIZE, generator=chosen)
    draft = target + 0.4 * torch.randn(NUM_PLACES, VOCAB_SIZE, generator=chosen)
    clock, costs = Clock(), CostTable()
    prices = CostAwareLength(costs, DraftCost(None, costs))
    models = [TimedTable(3 * table, clock, price) for table, price in ((target, target_price), (draft, draft_price))]
    drafter = TreeDrafter(models[1], VOCAB_SIZE, sampler())
    policy = TreeLength(12, prices, is_fixed=False) if has_trees else prices
    options = DecodeOptions(DecodeSettings(200, 8), policy, clock=clock)
    rounds = rounds_of(list(decode(models[0], drafter, [1, 2], sampler(), options)))
    return Answer(rounds, clock.now, prices.draft_cost)


def flat(num_tokens: int) -> float:
    return 1 + 0.01 * (num_tokens - 1)


def test_a_further_token_costs_what_the_times_of_rounds_say() -> None:
    chosen, cost = random.Random(1), RowCost()
    for number in range(24):
        rows = [1 + chosen.randrange(3), *(1 + chosen.randrange(6) for _ in range(chosen.randint(0, 3)))]
        seconds = sum(0.010 + 0.003 * (n - 1) for n in rows) * chosen.uniform(0.97, 1.03)
        cost.observe(rows, seconds * (4 if number % 6 == 5 else 1))

    assert cost.share == pytest.approx(0.3, abs=0.05)
    assert cost.passes([1, 4]) == pytest.approx(2 + 3 * cost.share)


def test_rounds_of_chains_teach_no_cost_of_trees() -> None:
    cost = RowCost(0.2)
    for seconds in (0.1, 0.2, 0.1, 0.4) * 6:
        cost.observe((), seconds)
        cost.observe((1, 1), seconds)

    assert cost.share == 0.2
    assert not cost.is_measured


@pytest.mark.parametrize(("share", "num_fed"), [(0.0, 2), (0.55, 2), (0.65, 1), (1.0, 1)])
def test_a_token_is_fed_if_what_follows_it_is_worth_its_row(share: float, num_fed: int) -> None:
    """Time is worth a token a second. A row of the draft costs 0.3 share; what follows the second token gains 0.18."""
    costs = CostTable(dict.fromkeys(range(1, 10), 1.0))
    draft_cost = DraftCost(0.3, costs)
    draft_cost.rows = RowCost(share)
    policy = TreeLength(8, CostAwareLength(costs, draft_cost), is_fixed=False)
    policy.acceptance.mean = 0.6

    step = policy.next_tokens([Branching(ROOT, 0, 1.0, [0.6, 0.3])], 0, depth=8)

    # The pass pays for the first token: what follows it gains 0.36.
    assert (0.3 * share < 0.3 * 0.6) == (num_fed == 2)
    assert step == Step([0] * num_fed, is_fed=True)


@pytest.mark.parametrize(("fourth", "is_fed"), [(1.2, True), (1.8, True), (None, False)])
def test_a_tree_is_continued_past_rows_that_cost_more_than_more_of_them(fourth: float | None, is_fed: bool) -> None:
    """Seen: passes over four rows, measured while the machine was slow, ended all trees at three for minutes."""
    steps = {1: 1.0, 2: 1.03, 3: 1.1, 4: fourth or 1.8, 5: 1.2 if fourth else 1.9, 17: 2.5}
    policy = TreeLength(8, CostAwareLength(costs := CostTable(steps), DraftCost(0.2, costs)), is_fixed=False)
    policy.acceptance.mean = 0.8

    step = policy.next_tokens([Branching(0, 1, 0.92, [0.95])], 1, depth=8)

    assert step.is_fed == is_fed


class EverySecondRound(FixedLength):
    """Drafts in every second round, so that there is text to read before."""

    def __init__(self) -> None:
        super().__init__()
        self.num_rounds = 0

    def start_round(self, num_replayed: int = 0) -> None:
        super().start_round(num_replayed)
        self.num_rounds += 1

    def should_draft(self) -> bool:
        return self.num_rounds % 2 == 0


@pytest.mark.parametrize(
    ("policy", "largest"),
    [(FixedLength(), 2), (EverySecondRound(), 3), (TreeLength(6), 2)],
    ids=["chain", "rare", "tree"],
)
def test_rounds_report_the_tokens_of_each_pass_of_the_draft(policy: LengthPolicy, largest: int) -> None:
    chosen = torch.Generator().manual_seed(3)
    target = torch.randn(NUM_PLACES, VOCAB_SIZE, generator=chosen)
    draft = target + 0.4 * torch.randn(NUM_PLACES, VOCAB_SIZE, generator=chosen)
    models = [TimedTable(table, Clock(), flat) for table in (target, draft)]
    drafter = TreeDrafter(models[1], VOCAB_SIZE, sampler())

    events = decode(models[0], drafter, [1, 2], sampler(), DecodeOptions(DecodeSettings(60, 4), policy))
    rounds = rounds_of(list(events))

    assert [*chain.from_iterable(round_.pass_rows for round_ in rounds)] == models[1].pass_rows
    assert max(round_.pass_rows[0] for round_ in rounds if round_.pass_rows) == largest


@pytest.mark.parametrize("is_measured", [False, True])
def test_passes_have_different_sizes_until_the_cost_of_a_row_is_measured(is_measured: bool) -> None:
    """Rounds that are all alike would not show it."""
    draft_cost = DraftCost(0.3, costs := CostTable(dict.fromkeys(range(1, 10), 1.0)))
    policy = TreeLength(8, CostAwareLength(costs, draft_cost), is_fixed=False)
    draft_cost.rows.is_measured = is_measured
    sizes = set()
    for _ in range(4):
        policy.start_round()
        sizes.add(len(policy.next_tokens([Branching(ROOT, 0, 1.0, [0.6, 0.3])], 0, depth=8).branchings))

    assert sizes == ({2} if is_measured else {1, 2})


@pytest.mark.parametrize(("row", "share"), [(0.0, 0.0), (0.06, 0.3), (0.2, 1.0)])
def test_the_price_of_rows_is_learned_from_the_rounds(row: float, share: float) -> None:
    made = answer(lambda n: 0.2 + row * (n - 1), flat)

    assert made.draft_cost.rows.is_measured
    assert made.draft_cost.rows.share == pytest.approx(share, abs=0.02)
    # Whatever the shape of its trees, the cost of a pass over one token is found.
    assert made.draft_cost.typical_seconds == pytest.approx(0.2, rel=0.05)


def test_a_draft_whose_rows_cost_whole_passes_continues_one_branch_at_a_time() -> None:
    cheap, steep = answer(lambda n: 0.2, flat), answer(lambda n: 0.2 * n, flat)

    assert max(cheap.further_rows) > 2
    assert len(steep.further_rows) > 20
    assert sum(n > 1 for n in steep.further_rows) <= 0.05 * len(steep.further_rows)


@pytest.mark.parametrize(
    ("draft_price", "target_price"),
    [(lambda n: 0.2, flat), (lambda n: 0.2 * n, flat), (lambda n: 0.1 * n, lambda n: 0.85 + 0.15 * n)],
    ids=["cheap", "steep", "steep-both"],
)
@pytest.mark.fast("cheap")
def test_trees_by_cost_are_not_slower_than_chains(draft_price: Price, target_price: Price) -> None:
    trees, chains = (answer(draft_price, target_price, has_trees=has) for has in (True, False))

    assert trees.seconds <= 1.02 * chains.seconds


class BeginsBadly(TimedTable):
    """A draft that is sure of wrong tokens at the first places."""

    def _rows(self, tokens: Sequence[int], positions: Sequence[int]) -> Tensor:
        rows = super()._rows(tokens, positions)
        return torch.stack([row.roll(1) if at < 12 else row for row, at in zip(rows, positions, strict=True)])


@pytest.mark.parametrize("has_trees", [False, True])
def test_a_first_draft_that_is_rejected_does_not_end_drafting(has_trees: bool) -> None:
    """A tree of ten passes would take as long as two tokens: more than the text may lose."""
    table = 8 * torch.randn(NUM_PLACES, VOCAB_SIZE, generator=torch.Generator().manual_seed(3))
    clock, costs = Clock(), CostTable({n: flat(n) for n in range(1, 18)})
    prices = CostAwareLength(costs, DraftCost(0.17, costs), acceptance=0.9)
    shares = AcceptanceByShare()
    shares.mean = 0.9
    policy = TreeLength(16, prices, is_fixed=False, acceptance=shares) if has_trees else prices
    models = [TimedTable(table, clock, flat), BeginsBadly(table, clock, lambda n: 0.17)]
    drafter = TreeDrafter(models[1], VOCAB_SIZE, sampler())

    events = decode(models[0], drafter, [1, 2], sampler(), DecodeOptions(DecodeSettings(64, 16), policy, clock=clock))
    rounds = rounds_of(list(events))

    assert rounds[1].num_accepted == 0, "the first draft is rejected"
    assert clock.now < 40
