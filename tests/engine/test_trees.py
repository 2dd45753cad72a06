"""Tests drafts that branch: the target's distribution by enumeration, and the target's own greedy and tied texts."""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import permutations, product

import pytest
import torch
from torch import Tensor

from specgen.core.draft_tree import ROOT, DraftTree, depths_of
from specgen.core.events import Prefill, Round
from specgen.core.settings import SamplingSettings
from specgen.engine import target_pass, tree_verification
from specgen.engine.draft_length.acceptance import LookupMatch
from specgen.engine.draft_length.contract import LengthPolicy
from specgen.engine.draft_length.cost_table import CostTable
from specgen.engine.draft_length.draft_cost import DraftCost
from specgen.engine.draft_length.policy import CostAwareLength
from specgen.engine.draft_length.tree_length import TreeLength
from specgen.engine.draft_length.tree_plan import Branching, Step
from specgen.engine.drafters.base import Drafter, NoDrafter, empty_draft
from specgen.engine.drafters.combined import CombinedDrafter
from specgen.engine.drafters.lookup import LookupDrafter
from specgen.engine.drafters.tree import TreeDrafter
from specgen.engine.enumeration import ScriptedRandomness, TableModel, every_outcome
from specgen.engine.randomness import Randomness, TorchRandomness
from specgen.engine.sampling import Sampler, token_distributions
from specgen.engine.target_distributions import RowsOnDemand
from specgen.engine.verification import Draft
from tests.engine import test_forbidden_tokens, test_greedy_equality, test_same_text
from tests.engine.distributions import distributions_made_once
from tests.engine.test_enumeration import PROCESSORS, PROMPT, assert_same_distribution, table, target_distribution
from tests.fakes import CPU, ScriptedDrafter, assert_close, cached, ids_of, rounds_of, run_events, sampler, tiny_model
from tests.profiles import thorough_except

SHAPES = [
    (ROOT,),
    (ROOT, ROOT),
    (ROOT, 0, ROOT),
    (ROOT, 0, 0, ROOT),
    (ROOT, ROOT, 1, 1),
    (ROOT, 0, 0, ROOT, 3),
    (ROOT, 0, 0, ROOT, 3, 3),
]


def next_probs(logits: Tensor, text: Sequence[int], sampling: SamplingSettings) -> Tensor:
    """Returns the distribution after a text, `[1, vocab]`, without any draft."""
    seen = torch.zeros(1, logits.shape[1], dtype=torch.bool)
    seen[0, list(text)] = True
    made = token_distributions(logits[text[-1]].unsqueeze(0), sampling, seen)
    return torch.nn.functional.one_hot(made.ids, logits.shape[1]).double() if made.probs is None else made.probs


class ShapedDrafter(ScriptedDrafter):
    """Draws the tokens of a tree of given shape from a table, without replacement among tokens with one parent."""

    def __init__(self, shape: Sequence[int], vocab_size: int, sampling: SamplingSettings, source: Randomness) -> None:
        super().__init__(lambda ids, limit: [])
        self.shape, self.table, self.sampling, self.source = shape, table(vocab_size, 2), sampling, source

    def propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        paths: dict[int, list[int]] = {ROOT: []}
        taken: dict[int, list[int]] = defaultdict(list)
        parents, rows, places = [], [], {ROOT: ROOT}
        for node, parent in enumerate(self.shape):
            if parent not in places or len(paths[parent]) >= limit:
                continue
            row = next_probs(self.table, [*ids, *paths[parent]], self.sampling).clone()
            row[0, taken[parent]] = 0.0
            if row.sum() == 0:
                continue
            row /= row.sum()
            token = int(self.source.draw(row[0]))
            taken[parent].append(token)
            paths[node] = [*paths[parent], token]
            places[node] = len(parents)
            parents.append(places[parent])
            rows.append(row)
        if not rows:
            return empty_draft()
        tokens = [paths[node][-1] for node in places if node != ROOT]
        probs = None if self.sampling.is_greedy else torch.cat(rows)
        return Draft(torch.tensor(tokens), probs, parents=tuple(parents))


Make = Callable[[int, SamplingSettings, Randomness], tuple[Drafter, LengthPolicy | None]]


def shaped(shape: Sequence[int]) -> Make:
    return lambda size, sampling, source: (ShapedDrafter(shape, size, sampling, source), None)


def grown(num_nodes: int, seed: int = 2, inner: Callable[[], CostAwareLength | None] = lambda: None) -> Make:
    def make(size: int, sampling: SamplingSettings, source: Randomness) -> tuple[Drafter, LengthPolicy]:
        drafter = TreeDrafter(TableModel(table(size, seed)), size, Sampler(sampling, source))
        return drafter, TreeLength(num_nodes, inner(), is_fixed=False)

    return make


def round_distribution(
    make: Make, size: int, sampling: SamplingSettings, num_tokens: int
) -> dict[tuple[int, ...], float]:
    """Enumerates the outcomes of one round, and completes each text with the target alone."""
    logits = table(size, 1)

    def run(source: ScriptedRandomness) -> tuple[int, ...]:
        drafter, draft_length = make(size, sampling, source)
        options = {"sampling": sampling, "randomness": source, "draft_length": draft_length, "num_events": 2}
        events = run_events(TableModel(logits), drafter, PROMPT, max_new_tokens=num_tokens, **options)
        return tuple(ids_of(events))

    found: dict[tuple[int, ...], float] = defaultdict(float)

    def complete(text: tuple[int, ...], weight: float) -> None:
        if len(text) == num_tokens:
            found[text] += weight
            return
        for token, probability in enumerate(next_probs(logits, [*PROMPT, *text], sampling)[0].tolist()):
            if probability > 0:
                complete((*text, token), weight * probability)

    with distributions_made_once():
        for probability, text in every_outcome(run):
            complete(text, probability)
    return found


def check_round(make: Make, size: int = 3, processors: str = "plain", num_tokens: int = 3) -> None:
    sampling = PROCESSORS[processors]

    found = round_distribution(make, size, sampling, num_tokens)

    assert_same_distribution(found, target_distribution(table(size, 1), sampling, num_tokens=num_tokens))


@pytest.mark.parametrize(
    ("shape", "processors"),
    thorough_except(
        [*((SHAPES[1], name) for name in PROCESSORS), *((shape, "all") for shape in SHAPES)],
        [*((shape, name) for shape in SHAPES[1:4] for name in PROCESSORS), *((shape, "all") for shape in SHAPES)],
    ),
    ids=str,
)
@pytest.mark.fast(without=("(-1, 0, 0, -1, 3*",))
def test_every_shape_keeps_the_distribution_with_every_processor(shape: tuple[int, ...], processors: str) -> None:
    check_round(shaped(shape), processors=processors)


@pytest.mark.parametrize("processors", ["plain", "all", "greedy"])
@pytest.mark.parametrize("shape", SHAPES[2:4], ids=str)
def test_rows_computed_at_once_keep_the_distribution(
    shape: tuple[int, ...], processors: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on devices, where a read waits."""
    monkeypatch.setattr(target_pass, "is_on_host", lambda tensor: False)

    check_round(shaped(shape), processors=processors)


@pytest.mark.thorough
@pytest.mark.parametrize(("size", "shape"), [(4, SHAPES[2]), (5, (ROOT, ROOT, ROOT, ROOT))])
def test_larger_vocabularies_keep_the_distribution(size: int, shape: tuple[int, ...]) -> None:
    check_round(shaped(shape), size)


@pytest.mark.parametrize("processors", PROCESSORS)
@pytest.mark.parametrize("num_nodes", [1, 3])
@pytest.mark.fast(without=("3-temperature", "3-penalty"))
def test_grown_trees_keep_the_distribution_with_every_processor(num_nodes: int, processors: str) -> None:
    check_round(grown(num_nodes), processors=processors)


@pytest.mark.thorough
@pytest.mark.parametrize(("size", "num_nodes", "seed"), [(3, 6, 2), (4, 2, 1)])
def test_larger_grown_trees_keep_the_distribution(size: int, num_nodes: int, seed: int) -> None:
    check_round(grown(num_nodes, seed), size)


def test_trees_sized_by_cost_keep_the_distribution() -> None:
    def prices() -> CostAwareLength:
        costs = CostTable({1: 1.0, 2: 1.01, 3: 1.02, 5: 1.3})
        return CostAwareLength(costs, DraftCost(0.05, costs))

    check_round(grown(5, inner=prices))


def test_several_rounds_of_trees_keep_the_distribution() -> None:
    sampling, logits = PROCESSORS["all"], table(3, 1)
    found: dict[tuple[int, ...], float] = defaultdict(float)

    def run(source: ScriptedRandomness) -> tuple[int, ...]:
        drafter, policy = grown(2)(3, sampling, source)
        options = {"sampling": sampling, "randomness": source, "draft_length": policy}
        return tuple(ids_of(run_events(TableModel(logits), drafter, PROMPT, max_new_tokens=3, **options)))

    for probability, text in every_outcome(run):
        found[text] += probability

    assert_same_distribution(found, target_distribution(logits, sampling))


def random_trees(seed: int, vocab_size: int = 96) -> ScriptedDrafter:
    """Proposes random tokens in trees of random shape, up to 8 of them."""
    chosen = random.Random(seed)

    class Random(ScriptedDrafter):
        def propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
            parents: list[int] = []
            path: list[int] = []
            tokens: list[int] = []
            for node in range(chosen.randint(0, 8)):
                path = path[: chosen.randint(0, min(len(path), limit - 1))]
                parents.append(path[-1] if path else ROOT)
                path.append(node)
                # Often a token of the prompt, which the models like to repeat; never one that a sibling has.
                token = chosen.choice([*test_greedy_equality.PROMPT, chosen.randrange(vocab_size)])
                while token in [t for t, parent in zip(tokens, parents, strict=False) if parent == parents[-1]]:
                    token = chosen.randrange(vocab_size)
                tokens.append(token)
            return Draft(torch.tensor(tokens), parents=tuple(parents)) if tokens else empty_draft()

    return Random(lambda ids, limit: [])


def oracle_tree(answer: Sequence[int], num_prompt: int) -> ScriptedDrafter:
    """Proposes the target's tokens as the last branch of a tree."""

    class Oracle(ScriptedDrafter):
        def propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
            right = list(answer[len(ids) - num_prompt :])[: min(limit, 3)]
            wrong = [(token + 1) % 96 for token in right]
            tokens: list[int] = []
            parents: list[int] = []
            parent = ROOT
            for bad, good in zip(wrong, right, strict=True):
                tokens += [bad, good]
                parents += [parent, parent]
                parent = len(tokens) - 1
            return Draft(torch.tensor(tokens), parents=tuple(parents))

    return Oracle(lambda ids, limit: [])


def tree_drafter(seed: int, kind: str = "llama", **changes: object) -> TreeDrafter:
    return TreeDrafter(cached(tiny_model(kind, seed)), 96, changes.pop("sampler", None) or sampler())


def greedy(kind: str, drafter: Drafter, **options: object) -> list:
    prompt = test_greedy_equality.PROMPT
    return run_events(
        cached(tiny_model(kind)), drafter, prompt, max_new_tokens=test_greedy_equality.NUM_TOKENS, **options
    )


@pytest.mark.parametrize("kind", test_greedy_equality.KINDS)
def test_greedy_text_with_random_trees_equals_transformers_generate(kind: str) -> None:
    reference = test_greedy_equality.reference(kind)

    for seed in range(3):
        assert tuple(ids_of(greedy(kind, random_trees(seed)))) == reference
    assert tuple(ids_of(greedy(kind, oracle_tree(reference, len(test_greedy_equality.PROMPT))))) == reference


@pytest.mark.parametrize("num_nodes", thorough_except([3, 16], [1, 3, 8, 16]))
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("kind", test_greedy_equality.KINDS)
@pytest.mark.fast(without=("*-1-16",))
def test_greedy_text_with_grown_trees_equals_transformers_generate(kind: str, seed: int, num_nodes: int) -> None:
    events = greedy(kind, tree_drafter(seed, kind), draft_length=TreeLength(num_nodes))

    assert tuple(ids_of(events)) == test_greedy_equality.reference(kind)
    assert all(len(r.tree) == num_nodes for r in rounds_of(events)[:-2] if r.tree)


@pytest.mark.parametrize("name", thorough_except(("bad_words_ids", "all"), test_forbidden_tokens.RULES))
@pytest.mark.fast("all")
def test_forbidden_tokens_are_those_of_the_path_to_each_token(name: str) -> None:
    values = test_forbidden_tokens.RULES[name]
    ends = test_forbidden_tokens.ends_of(values)
    expected = test_forbidden_tokens.generated(values, sorted(ends))
    rules, prompt = test_forbidden_tokens.rules_of(values, ends), test_forbidden_tokens.PROMPT

    for drafter in (random_trees(1), oracle_tree([*expected, *[0] * 40], len(prompt)), tree_drafter(1)):
        policy = TreeLength(6)
        options = {"max_new_tokens": 40, "end_ids": ends, "rules": rules, "draft_length": policy}
        assert ids_of(run_events(cached(tiny_model()), drafter, prompt, **options)) == expected


def test_the_target_as_its_own_draft_has_its_tokens_in_the_first_branch() -> None:
    events = greedy("llama", tree_drafter(0), draft_length=TreeLength(6), num_draft_tokens=4)

    assert all(r.num_accepted == len(r.draft_ids) for r in rounds_of(events))
    assert max(r.num_accepted for r in rounds_of(events)) == 4


class Watched(TreeDrafter):
    """Notes of each draft the text before it and the tokens that the model read in its passes."""

    def __init__(self, *args: object) -> None:
        super().__init__(*args)  # type: ignore[arg-type]
        self.texts: list[list[int]] = []
        self.read: list[list[int]] = [[]]
        run, run_rows = self.model._run, self.model._run_rows

        def watched(new: Tensor, num_last: int) -> Tensor:
            self.read[-1].append(len(new))
            return run(new, num_last)

        def watched_rows(new: Tensor, parents: Sequence[int]) -> Tensor:
            self.read[-1].append(len(new))
            return run_rows(new, parents)

        self.model._run, self.model._run_rows = watched, watched_rows

    def propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        self.texts.append(list(ids))
        self.read.append([])
        return super().propose(ids, limit, draft_length)


SAMPLED = SamplingSettings(temperature=1.0)


@pytest.mark.parametrize("sampling", [SamplingSettings(temperature=0.0), SAMPLED], ids=["greedy", "sampled"])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.fast("0-*")
def test_accepted_tokens_that_the_draft_has_read_are_not_read_again(seed: int, sampling: SamplingSettings) -> None:
    made = Sampler(sampling, TorchRandomness(seed, CPU))
    drafter = Watched(cached(tiny_model("llama", seed)), 96, made)
    options = {"sampling": sampling, "draft_length": TreeLength(6), "num_draft_tokens": 4}

    rounds = rounds_of(
        run_events(cached(tiny_model()), drafter, test_greedy_equality.PROMPT, max_new_tokens=60, **options)
    )

    drafted = [round_ for round_ in rounds if round_.num_nodes]
    assert [list(round_.pass_rows) for round_ in drafted] == [read for read in drafter.read[1:] if read]
    # A path ends with a token that the draft has not read; the target's own token follows.
    assert all(round_.pass_rows[0] <= 2 for round_ in drafted)
    assert seed or max(round_.num_accepted for round_ in rounds) == 4
    # What the cache holds now is what a model that reads the text holds.
    text = drafter.texts[-1]
    drafter.rewind(len(text) - 1)
    fresh = cached(tiny_model("llama", seed))
    assert_close(drafter.model.logits([*text, 5], 1), fresh.logits([*text, 5], 1))


@pytest.mark.parametrize("num_nodes", [1, 4, 12])
@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.fast("0-1", "1-12")
def test_one_seed_gives_one_text_with_any_tree(seed: int, num_nodes: int) -> None:
    tied = Sampler(test_same_text.SAMPLING, TorchRandomness(0, CPU), test_same_text.noise())
    drafter = tree_drafter(seed, sampler=tied)

    text = test_same_text.sampled(drafter, draft_length=TreeLength(num_nodes))

    assert text == test_same_text.plain_text()


class ScriptedNoise:
    """Noise of a position: a scripted order of the same few values."""

    def __init__(self, orders: Sequence[Sequence[float]]) -> None:
        self.orders = orders

    def rows(self, first: int, count: int) -> Tensor:
        rows = [self.orders[(position - len(PROMPT)) % len(self.orders)] for position in range(first, first + count)]
        return torch.tensor(rows, dtype=torch.float64)


def tied_texts(make: Callable[[Sampler], tuple[Drafter, LengthPolicy | None]], size: int, processors: str) -> None:
    """Checks that every order of noise gives the text that it gives the target alone."""
    sampling, logits = replace(PROCESSORS[processors], same_text=True), table(size, 1)
    values = [0.08, 0.6, 1.1, 2.0, 3.1][:size]
    found: dict[tuple[int, ...], int] = defaultdict(int)
    for orders in product(permutations(values), repeat=2):
        tied = ScriptedNoise(orders)
        drafter, policy = make(Sampler(sampling, TorchRandomness(0, CPU), tied))
        options = {"sampling": sampling, "noise": tied, "max_new_tokens": 4}
        text = ids_of(run_events(TableModel(logits), drafter, PROMPT, draft_length=policy, **options))
        assert text == ids_of(run_events(TableModel(logits), NoDrafter(), PROMPT, **options))
        found[tuple(text)] += 1
    assert len(found) > 1


@pytest.mark.parametrize("processors", [name for name in PROCESSORS if name != "greedy"])
@pytest.mark.parametrize("num_nodes", thorough_except([6], [3, 6]))
@pytest.mark.fast("6-all")
def test_every_noise_gives_the_targets_text_with_grown_trees(num_nodes: int, processors: str) -> None:
    tied_texts(lambda made: (TreeDrafter(TableModel(table(3, 2)), 3, made), TreeLength(num_nodes)), 3, processors)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.fast("(-1, 0, 0, -1)")
def test_every_noise_gives_the_targets_text_with_every_shape(shape: tuple[int, ...]) -> None:
    sampling = replace(PROCESSORS["all"], temperature=0.0)
    tied_texts(lambda made: (ShapedDrafter(shape, 3, sampling, TorchRandomness(0, CPU)), None), 3, "all")


@pytest.mark.thorough
@pytest.mark.parametrize("shape", SHAPES[-1:], ids=str)
def test_every_noise_over_four_tokens_gives_the_targets_text(shape: tuple[int, ...]) -> None:
    tied_texts(lambda made: (ShapedDrafter(shape, 4, PROCESSORS["greedy"], TorchRandomness(0, CPU)), None), 4, "plain")


def test_the_target_as_its_own_draft_finds_the_tied_draws() -> None:
    tied = Sampler(test_same_text.SAMPLING, TorchRandomness(0, CPU), test_same_text.noise())
    settings = {"sampling": test_same_text.SAMPLING, "noise": test_same_text.noise(), "num_draft_tokens": 3}
    policy = TreeLength(5)
    events = run_events(
        cached(tiny_model()), tree_drafter(0, sampler=tied), test_same_text.PROMPT, draft_length=policy, **settings
    )

    assert all(r.num_accepted == len(r.draft_ids) for r in rounds_of(events))


def test_rounds_report_the_tree_and_the_followed_branch() -> None:
    tree = Draft(torch.tensor([5, 6, 7, 8, 9]), parents=(ROOT, 0, ROOT, 2, 2))
    logits = torch.full((16, 16), -1.0)
    for last, following in {1: 7, 7: 9, 9: 4}.items():
        logits[last, following] = 1.0

    class Fixed(ScriptedDrafter):
        def propose(self, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
            return tree

    first = rounds_of(run_events(TableModel(logits), Fixed(lambda ids, limit: []), [3, 1], num_events=2))[0]

    assert first.tree == DraftTree((5, 6, 7, 8, 9), tree.parents)
    assert (first.draft_ids, first.num_accepted, first.target_id) == ((7, 9), 2, 4)
    assert (first.num_fed, first.num_nodes, first.num_rejected) == (6, 5, 0)
    assert first.tree.num_leaves == 3


def test_a_rejected_tree_reports_its_best_branch() -> None:
    tree = DraftTree((5, 6, 7, 8), (ROOT, 0, ROOT, 2))

    assert tree.branch() == [0, 1]
    assert tree.branch([2]) == [2, 3]
    assert tree.depths == depths_of(tree.parents) == (0, 1, 0, 1)


def test_a_tree_is_cut_at_an_end_token() -> None:
    events = greedy("llama", oracle_tree(test_greedy_equality.reference("llama"), 8), end_ids=[])
    text = ids_of(events)
    cut = greedy("llama", oracle_tree(test_greedy_equality.reference("llama"), 8), end_ids=[text[4]])

    assert ids_of(cut) == text[: text.index(text[4]) + 1]


def test_a_tree_grows_where_its_tokens_are_likely() -> None:
    policy = TreeLength(4)
    sure, unsure = Branching(ROOT, 0, 1.0, [0.9, 0.05, 0.04]), Branching(ROOT, 0, 1.0, [0.3, 0.28, 0.27, 0.1])

    assert policy.next_tokens([sure], 0, depth=8) == Step([0], is_fed=True)
    assert TreeLength(3).next_tokens([unsure], 0, depth=8) == Step([0, 0, 0], is_fed=False)
    assert policy.next_tokens([unsure], 0, depth=1) == Step([0, 0, 0, 0], is_fed=False)


def test_a_tree_by_cost_ends_where_rows_become_expensive() -> None:
    costs = CostTable({1: 1.0, 2: 1.0, 3: 1.0, 4: 3.0, 9: 9.0})
    policy = TreeLength(8, CostAwareLength(costs, DraftCost(10.0, costs)), is_fixed=False)

    step = policy.next_tokens([Branching(ROOT, 0, 1.0, [0.4, 0.2, 0.1, 0.1, 0.1])], 0, depth=8)

    assert step == Step([0, 0], is_fed=False)


@pytest.mark.parametrize(("draft_seconds", "is_fed"), [(0.1, True), (0.4, False)])
def test_a_pass_of_the_draft_must_yield_more_than_the_rows_that_it_takes(draft_seconds: float, is_fed: bool) -> None:
    costs = CostTable({1: 1.0, 2: 1.0, 3: 1.0, 4: 3.0, 9: 9.0})
    policy = TreeLength(8, CostAwareLength(costs, DraftCost(draft_seconds, costs)), is_fixed=False)
    mean = policy.acceptance.mean
    branching = Branching(ROOT, 0, 1.0, [0.9, 0.9 * mean - 0.2])

    step = policy.next_tokens([branching], 0, depth=8)

    assert 0.9 * mean > 0.4, "the pass would pay if a second token were worth nothing"
    assert step == Step([0] if is_fed else [0, 0], is_fed=is_fed)


def test_a_draft_token_costs_a_pass_however_many_branches_it_continues() -> None:
    prices = CostAwareLength(CostTable({1: 1.0}), DraftCost())
    policy = TreeLength(6, prices)
    policy.start_round()
    for _ in range(2):
        policy.on_token(0.5)
    tree = DraftTree((5, 6, 7, 8, 9, 4), (ROOT, 0, 1, ROOT, 3, ROOT))

    policy.observe(Round(0, (5, 6, 7), 1, 2, 0, 0.5, 1.1, 0.0, "model", tree=tree))

    assert prices.draft_cost.seconds == 0.25
    assert prices.costs.known[7] == 1.1


def test_tokens_of_a_tree_that_the_target_did_not_test_are_not_rejected() -> None:
    """The second of the first tokens is the target's, and the draft has only continued the best one."""
    prices = CostAwareLength(CostTable({1: 1.0}), DraftCost(), acceptance=0.6)
    policy = TreeLength(6, prices)
    policy.start_text(Prefill(2, 0, 0.1, 0.1))
    policy.start_round()
    for _ in range(3):
        policy.on_token(0.9)
    before = prices._model._acceptance.mean.value
    tree = DraftTree((5, 6, 7, 8), (ROOT, 0, 1, ROOT))

    policy.observe(Round(1, (8,), 1, 2, 0, 0.5, 1.1, 0.0, "model", tree=tree))

    assert prices._model._acceptance.mean.value > before


def test_rows_of_the_drafts_passes_count_towards_what_a_tree_may_lose() -> None:
    costs = CostTable(dict.fromkeys(range(1, 10), 1.0))
    prices = CostAwareLength(costs, DraftCost(0.1, costs), acceptance=0.8)
    prices.draft_cost.rows.share, prices.draft_cost.rows.is_measured = 0.5, True
    policy = TreeLength(8, prices, is_fixed=False)
    policy.start_text(Prefill(2, 0, 0.1, 0.1))
    policy.start_round()
    assert policy.should_draft()
    risked = prices.risked_seconds

    step = policy.next_tokens([Branching(ROOT, 0, 1.0, [0.5, 0.45])], 0, depth=8)
    policy.on_token(0.9)

    assert step == Step([0, 0], is_fed=True)
    assert prices.risked_seconds == pytest.approx(risked - 0.15)


def with_lookup(num_nodes: int, texts: Sequence[Sequence[int]]) -> Make:
    def make(size: int, sampling: SamplingSettings, source: Randomness) -> tuple[Drafter, LengthPolicy]:
        drafter, policy = grown(num_nodes)(size, sampling, source)
        return CombinedDrafter(LookupDrafter(texts), drafter), policy

    return make


@pytest.mark.parametrize("processors", ["plain", "all", "greedy"])
@pytest.mark.parametrize("texts", [[[0, 1, 2, 0]], [[0, 1, 1, 1]]], ids=str)
def test_branches_of_matches_keep_the_distribution(texts: list[list[int]], processors: str) -> None:
    check_round(with_lookup(4, texts), processors=processors)


@pytest.mark.parametrize("is_drawn", [True, False])
def test_accepted_tokens_of_matches_are_no_gain_of_the_model(is_drawn: bool) -> None:
    costs = CostTable(dict.fromkeys(range(1, 10), 1.0))
    policy = TreeLength(8, CostAwareLength(costs, DraftCost(0.1, costs)), is_fixed=False)
    for index in range(6):
        policy.start_round()
        policy.should_draft()
        policy.on_token(0.5)
        policy.on_tree([0.5 if is_drawn else None] * 4)
        tree = DraftTree((5, 6, 7, 8), (ROOT, 0, 1, 2))
        policy.observe(Round(index, tree.ids, 4, 2, 0, 0.1, 1.0, 0.0, "model", tree=tree, num_passes=1))
    policy.start_round()

    taken = policy.tokens_to_take(LookupMatch([5, 6, 7], 20), has_draft_model=True)

    assert (taken == 0) == is_drawn


def test_matches_are_merged_with_the_tree_by_common_prefixes() -> None:
    lookup = LookupDrafter([[9, 8, 7, 5, 6, 4], [9, 8, 7, 5, 3, 3]])
    logits = torch.zeros(16, 16)
    for last, following in {7: 5, 5: 11, 11: 12}.items():
        logits[last, following] = 9.0
    drafter = CombinedDrafter(lookup, TreeDrafter(TableModel(logits), 16, sampler()))
    policy = TreeLength(6)
    policy.start_round()

    draft = drafter.propose([1, 8, 7], 3, policy)

    assert draft.parents is not None
    tree = DraftTree(tuple(draft.ids.tolist()), draft.parents)
    assert tree.followed([5, 11])[0] == tree.followed([5, 3])[0]
    assert len(tree.followed([5, 3, 3])) == len(tree.followed([5, 11, 12])) == 3
    for parent in {ROOT, *tree.parents}:
        children = [tree.ids[child] for child in tree.children(parent)]
        assert len(children) == len(set(children))


def test_both_the_text_and_given_texts_are_matched() -> None:
    lookup = LookupDrafter([[3, 4, 5, 6]])

    found = lookup.matches([4, 7, 3, 4], 2)

    assert [(list(match.ids), match.num_matched) for match in found] == [([5, 6], 2), ([7, 3], 1)]
    assert lookup.match([4, 7, 3, 4], 2) == found[0]


@pytest.mark.parametrize("kind", test_greedy_equality.KINDS)
def test_greedy_text_with_trees_and_lookup_equals_transformers_generate(kind: str) -> None:
    drafter = CombinedDrafter(LookupDrafter([test_greedy_equality.reference(kind)[5:20]]), tree_drafter(1, kind))

    events = greedy(kind, drafter, draft_length=TreeLength(8))

    assert tuple(ids_of(events)) == test_greedy_equality.reference(kind)


def probability_of_the_first_sibling_kept(plant: pytest.MonkeyPatch) -> None:
    """Each sibling is compared with the target's whole distribution."""
    plant.setattr(tree_verification, "residual_distribution", lambda target_probs, _: target_probs)


def sibling_not_removed_from_the_reported_distribution(plant: pytest.MonkeyPatch) -> None:
    original = TreeDrafter._take

    def forgetful(self: TreeDrafter, growth: object, number: int) -> int:
        index = original(self, growth, number)
        first = next(i for i, parent in enumerate(growth.parents) if parent == growth.parents[index])
        growth.rows[index] = growth.rows[first]
        return index

    plant.setattr(TreeDrafter, "_take", forgetful)


def siblings_tried_best_first_by_the_target(plant: pytest.MonkeyPatch) -> None:
    original = tree_verification._accepted_child

    def greedy_order(probs: Tensor, draft: Draft, children: list[int], randomness: Randomness) -> object:
        order = sorted(children, key=lambda child: -float(probs[draft.ids[child]]))
        return original(probs, draft, order, randomness)

    plant.setattr(tree_verification, "_accepted_child", greedy_order)


def row_of_the_previous_node(plant: pytest.MonkeyPatch) -> None:
    original = RowsOnDemand.row
    plant.setattr(RowsOnDemand, "row", lambda self, index: original(self, max(index - 1, 0)))


def unlikely_token_dropped_after_it_was_drawn(plant: pytest.MonkeyPatch) -> None:
    original = TreeDrafter._propose

    def choosy(self: TreeDrafter, ids: Sequence[int], limit: int, draft_length: LengthPolicy) -> Draft:
        draft = original(self, ids, limit, draft_length)
        if draft.probs is None or float(draft.probs[0, draft.ids[0]]) > 0.4:
            return draft
        return empty_draft()

    plant.setattr(TreeDrafter, "_propose", choosy)


@pytest.mark.parametrize(
    "bug",
    [
        probability_of_the_first_sibling_kept,
        sibling_not_removed_from_the_reported_distribution,
        siblings_tried_best_first_by_the_target,
        row_of_the_previous_node,
        unlikely_token_dropped_after_it_was_drawn,
    ],
    ids=lambda bug: bug.__name__,
)
@pytest.mark.fast("sibling_not*", "row_of*")
def test_a_planted_bug_in_the_law_is_caught(
    bug: Callable[[pytest.MonkeyPatch], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    bug(monkeypatch)

    with pytest.raises(AssertionError):
        check_round(grown(3))
