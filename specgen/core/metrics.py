"""Computes the figures of a run from its rounds. Each figure is defined here once for the whole program."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field, fields
from enum import IntEnum

from specgen.core.events import Prefill, Round
from specgen.core.timed_rounds import TimedRounds


def _ratio(numerator: float, denominator: float) -> float | None:
    return numerator / denominator if denominator else None


class Detail(IntEnum):
    """How much is known about the drafts of a run: everything for a local run, for a server what it reports."""

    NOTHING = 0
    TOTALS = 1
    """Drafted and accepted tokens."""
    ROUNDS = 2
    """The rounds that drafted, too."""
    ALL = 3
    """Rejected tokens, too."""


@dataclass(slots=True)
class Counts:
    """Sums over the rounds of a generation, and figures derived from them.

    Rates are fractions (0 to 1), None if the divisor is 0.
    """

    num_rounds: int = 0
    num_drafted: int = 0
    num_accepted: int = 0
    num_rejected: int = 0
    num_lookup_drafted: int = 0
    num_lookup_accepted: int = 0
    """The part of the drafted and of the accepted tokens that lookup proposed."""
    num_emitted: int = 0
    draft_seconds: float = 0.0
    verify_seconds: float = 0.0
    other_seconds: float = 0.0
    """Parts of the rounds without warm-up."""
    num_whole_drafts: int = 0
    num_draft_passes: int = 0
    fed_histogram: list[int] = field(default_factory=list)
    """In these rounds: drafts without a rejected token that don't report what their passes read; passes of the draft
    model; `[n]`: rounds whose target pass fed exactly n tokens, see `Round.num_fed`."""
    num_cold_drafts: int = 0
    """Drafts that began with one of these passes after a pass of the target: the first one of a text follows the draft
    model's own prefill."""
    tree_pass_histogram: list[int] = field(default_factory=list)
    reading_histogram: list[int] = field(default_factory=list)
    """Of `num_draft_passes`, `[n]`: in drafts that branched, passes over n tokens, each first one as if over one; and
    first passes that read n tokens of the text."""
    resumed_seconds: float = 0.0
    """Time of drafts after a round without one, where the drafter first reads the tokens it missed. Their passes are
    not in `num_draft_passes`."""
    num_warmup_rounds: int = 0
    num_warmup_tokens: int = 0
    warmup_seconds: float = 0.0
    """Rounds that recorded a pass or ran one for the first time, on CUDA: in no speed, neither tokens nor time."""
    prefill_seconds: float = 0.0
    first_round_seconds: float = 0.0
    num_plain_rounds: int = 0
    num_timed_plain_rounds: int = 0
    plain_seconds: float = 0.0
    """Time of rounds without a draft, except warm-up and replays: steps of plain decoding in the middle of the run."""
    num_untimed: int = 0
    """Tokens of a served answer that came with the prompt's pass: `decode_seconds` does not contain their time."""
    detail: Detail = Detail.ALL
    is_served: bool = False
    """A server generated it: its rounds are those that drafted, and their parts are not timed."""
    num_tree_rounds: int = 0
    num_tree_nodes: int = 0
    """Rounds whose draft branched, and the tokens of all their branches."""
    num_extra_passes: int = 0
    """Passes of the draft model, less the tokens that it drafted, in rounds that branched or drafted text."""
    was_plain: bool = False
    """Whether the last round drafted nothing."""
    num_prompt_tokens: int = 0
    num_reused_tokens: int = 0
    accepted_histogram: list[int] = field(default_factory=list)
    """`[j]`: rounds that accepted exactly j draft tokens."""
    drafted_by_position: list[int] = field(default_factory=list)
    tested_by_position: list[int] = field(default_factory=list)
    accepted_by_position: list[int] = field(default_factory=list)

    def observe_prefill(self, prefill: Prefill) -> None:
        """Adds the prefill of a prompt."""
        self.prefill_seconds += prefill.seconds
        self.num_prompt_tokens += prefill.num_prompt_tokens
        self.num_reused_tokens += prefill.num_reused_tokens

    def observe(self, round_: Round) -> None:
        """Adds one round."""
        if self.num_rounds == 0:
            self.first_round_seconds = round_.seconds
        num_drafted = len(round_.draft_ids)
        is_plain = num_drafted + round_.num_cut == 0
        if is_plain:
            self.num_plain_rounds += 1
            if not round_.is_warmup and not round_.num_replayed:
                self.num_timed_plain_rounds += 1
                # A drafter may have worked and found nothing to propose.
                self.plain_seconds += round_.seconds - round_.draft_seconds
        is_resumed, self.was_plain = self.was_plain and not is_plain, is_plain
        self.num_rounds += 1
        self.num_drafted += num_drafted
        self.num_accepted += round_.num_accepted
        self.num_rejected += round_.num_rejected
        if round_.tree is not None:
            self.num_tree_rounds += 1
            self.num_tree_nodes += round_.num_nodes
        if round_.num_passes is not None:
            self.num_extra_passes += round_.num_passes - num_drafted - round_.num_cut
        if round_.source == "lookup":
            self.num_lookup_drafted += num_drafted
            self.num_lookup_accepted += round_.num_accepted
        self.num_emitted += len(round_.token_ids)
        if round_.is_warmup:
            self.num_warmup_rounds += 1
            self.num_warmup_tokens += len(round_.token_ids)
            self.warmup_seconds += round_.seconds
        else:
            self.draft_seconds += round_.draft_seconds
            self.verify_seconds += round_.verify_seconds
            self.other_seconds += round_.other_seconds
            self.num_whole_drafts += not (is_plain or round_.num_rejected or round_.pass_rows)
            if is_resumed:
                self.resumed_seconds += round_.draft_seconds
            elif round_.source != "lookup":
                self.num_draft_passes += round_.num_draft_passes
                self.num_cold_drafts += self.num_rounds > 1 and round_.num_draft_passes > 0
                self._observe_draft_passes(round_)
            _count(self.fed_histogram, round_.num_fed)
        self.observe_positions(num_drafted, round_.num_accepted)

    def _observe_draft_passes(self, round_: Round) -> None:
        for num_read in round_.pass_rows[:1]:
            _count(self.reading_histogram, num_read)
        for num_rows in round_.tree_pass_rows:
            _count(self.tree_pass_histogram, num_rows)

    def observe_positions(self, num_drafted: int, num_accepted: int) -> None:
        """Adds a round to the histogram of accepted tokens and to the sums by position only."""
        _grow(self.accepted_histogram, num_drafted + 1)
        _count(self.accepted_histogram, num_accepted)
        for by_position in (self.drafted_by_position, self.tested_by_position, self.accepted_by_position):
            _grow(by_position, num_drafted)
        for position in range(num_drafted):
            self.drafted_by_position[position] += 1
            self.tested_by_position[position] += position <= num_accepted
            self.accepted_by_position[position] += position < num_accepted

    def include(self, other: Counts) -> None:
        """Adds the sums of another generation. `ttft_seconds` is then a sum, too."""
        self.detail = min(self.detail, other.detail)
        self.is_served = self.is_served or other.is_served
        for item in fields(self):
            mine, theirs = getattr(self, item.name), getattr(other, item.name)
            if isinstance(mine, bool | Detail):
                continue
            if isinstance(mine, list):
                _grow(mine, len(theirs))
                for index, value in enumerate(theirs):
                    mine[index] += value
            else:
                setattr(self, item.name, mine + theirs)

    @property
    def num_discarded(self) -> int:
        """Draft tokens after a rejected one; they were never tested."""
        return self.num_drafted - self.num_accepted - self.num_rejected

    @property
    def num_tested(self) -> int:
        """Draft tokens that were accepted or rejected."""
        return self.num_accepted + self.num_rejected

    @property
    def acceptance_rate(self) -> float | None:
        """TAR: accepted / drafted. Falls with the draft length by construction; compare α instead."""
        return _ratio(self.num_accepted, self.num_drafted)

    @property
    def alpha(self) -> float | None:
        """α: accepted / tested, the estimator of Leviathan's α."""
        return _ratio(self.num_accepted, self.num_tested) if self.detail is Detail.ALL else None

    @property
    def mean_accepted_length(self) -> float | None:
        """Accepted draft tokens per round, without the target's token."""
        return _ratio(self.num_accepted, self.num_rounds)

    @property
    def nodes_per_tree(self) -> float | None:
        """Drafted tokens of a draft that branched, in all its branches."""
        return _ratio(self.num_tree_nodes, self.num_tree_rounds)

    @property
    def block_efficiency(self) -> float | None:
        """τ: tokens per round, the target's token included (vLLM: "mean acceptance length")."""
        if self.is_served:  # of the rounds that drafted, which are those that a server counts
            return None if not self.num_rounds else 1 + self.num_accepted / self.num_rounds
        return _ratio(self.num_emitted, self.num_rounds)

    @property
    def acceptance_by_position(self) -> list[float | None]:
        """`[i]`: accepted at position i / tested at position i."""
        return [_ratio(a, t) for a, t in zip(self.accepted_by_position, self.tested_by_position, strict=True)]

    @property
    def decode_seconds(self) -> float:
        """Time of all rounds, without prefill, display and text work."""
        return self.draft_seconds + self.verify_seconds + self.other_seconds + self.warmup_seconds

    @property
    def is_all_warmup(self) -> bool:
        """Whether there are rounds, and all of them are warm-up."""
        return 0 < self.num_warmup_rounds == self.num_rounds

    @property
    def timed(self) -> TimedRounds:
        """The rounds that speeds are made of."""
        num_tokens = self.num_emitted - self.num_untimed
        if self.is_all_warmup:
            return TimedRounds(self.num_rounds, num_tokens, self.warmup_seconds)
        seconds = self.draft_seconds + self.verify_seconds + self.other_seconds
        return TimedRounds(self.num_rounds - self.num_warmup_rounds, num_tokens - self.num_warmup_tokens, seconds)

    @property
    def draft_share(self) -> float | None:
        """Share of the time of rounds without warm-up that was spent in the drafter; None without such rounds."""
        return None if self.is_served else _ratio(self.draft_seconds, self.decode_seconds - self.warmup_seconds)

    @property
    def ttft_seconds(self) -> float | None:
        """Time to the first token: prefill and the first round."""
        return self.prefill_seconds + self.first_round_seconds if self.num_emitted else None

    @property
    def tpot_seconds(self) -> float | None:
        """Decoding time per token. Prefill emits nothing here, so there is no "minus one"; with a server, there is."""
        return _ratio(self.timed.seconds, self.timed.num_tokens)

    @property
    def tokens_per_second(self) -> float | None:
        """Tokens per second of decoding, without prefill."""
        return _ratio(self.timed.num_tokens, self.timed.seconds)


def sum_counts(counts: Iterable[Counts]) -> Counts:
    """Returns the sums over generations; see `Counts.include`."""
    found = Counts()
    for one in counts:
        found.include(one)
    return found


def _count(histogram: list[int], value: int) -> None:
    _grow(histogram, value + 1)
    histogram[value] += 1


def _grow(values: list[int], length: int) -> None:
    values.extend([0] * (length - len(values)))
