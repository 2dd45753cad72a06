"""Decides how a draft model's vocabulary is used: the same as the target's, the shared tokens of both, or text."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from specgen.core.cost_model import PassCosts, best_draft_length
from specgen.core.errors import PairError
from specgen.core.settings import DraftVocab
from specgen.text.token_table import TokenTable, cached_table
from specgen.text.translation import shared_ids
from specgen.text.vocabulary import Pairing, compare_tokenizers

SAMPLE = """The harbour was quiet when the first boats returned. "How many are missing?" she asked, and wrote 17 into
her notebook. It's not that simple: the storm moved 40 km north-east between 3:15 and 6:00, so nobody could say.

```python
def moving_average(values: list[float], width: int = 5) -> list[float]:
    # Ignore the ends, which have fewer neighbours.
    return [sum(values[i : i + width]) / width for i in range(len(values) - width + 1)]


class Recorder:
    def __init__(self, path: Path) -> None:
        self._path, self._entries = path, []

    def append(self, entry: dict[str, Any]) -> None:
        if entry.get("level", 0) >= WARNING:
            self._entries.append(json.dumps(entry))
        else:
            raise ValueError(f"unknown level: {entry!r}")
```

1. **Check** the input; 2. compute the result; 3. explain why `None` is returned for an empty list.
"""
"""A text to estimate with how often the tokens of two vocabularies agree: prose, numbers, code and a list."""

ASSUMED_ALPHA = 0.7
"""Agreement per token of a draft of another family, if their vocabularies were the same."""
ASSUMED_SLOPE = 0.1
"""Cost of a further token in a pass of the target, as a share of a pass over one. CPUs: 0.11 to 0.15 with int8."""
LONGEST_ASSUMED = 8
UNKNOWN_COST = 0.25
"""Cost of a draft token as a share of the target's, if a size is unknown."""


@dataclass(frozen=True, slots=True)
class Overlap:
    """How often the tokens of two vocabularies agree in a sample of text.

    Args:
        target_share: Share of the target's tokens in it that the draft has.
        draft_share: Share of the draft's tokens in it that the target has.
        draft_per_target: Draft tokens for each token of the target.
        written_share: Share of its bytes that the draft's tokens can write at all.
    """

    target_share: float
    draft_share: float
    draft_per_target: float
    written_share: float = 1.0


@dataclass(frozen=True, slots=True)
class TranslatedPairing(Pairing):
    """How a draft with another vocabulary is used.

    Args:
        overlap: How often the tokens agree in a sample of text.
        tables: The tokens of target and draft.
        pairs: Ids of shared tokens, `(target id, draft id)`.
    """

    overlap: Overlap = field(default_factory=lambda: Overlap(0.0, 0.0, 1.0))
    tables: tuple[TokenTable, TokenTable] | None = field(default=None, compare=False, repr=False)
    pairs: tuple[tuple[int, int], ...] = field(default=(), compare=False, repr=False)

    @property
    def remark(self) -> str:
        """Describes it in a few words, for the banner."""
        num_target, special = (0, {}) if self.tables is None else (len(self.tables[0].by_bytes), self.tables[0].special)
        num_shared = sum(target_id not in special for target_id, _ in self.pairs)
        how = "drafts shared tokens:" if self.kind == "shared" else "drafts text; shared tokens:"
        return f"{how} {num_shared} of {num_target}, {100 * self.overlap.target_share:.0f} % of a sample"


def pair_vocabularies(
    target_tokenizer: Any,
    draft_tokenizer: Any,
    wanted: DraftVocab = "auto",
    draft_cost: Callable[[], float | None] | None = None,
) -> Pairing:
    """Compares two vocabularies, and chooses how the draft is used.

    Args:
        target_tokenizer: The target's tokenizer.
        draft_tokenizer: The draft's.
        wanted: `auto` takes the way with the largest predicted throughput; the others insist.
        draft_cost: Estimates the cost of a draft token as a share of the target's; None if it is unknown. Called
            only if `auto` must choose.

    Raises:
        PairError: `same` is wanted, and an id means different strings.
    """
    if wanted in ("auto", "same"):
        try:
            return compare_tokenizers(target_tokenizer, draft_tokenizer)
        except PairError as error:
            if wanted == "same":
                hint = "omit --draft-vocab: a draft with other tokens is then translated"
                raise PairError(error.message, hint) from error
    target, draft = cached_table(target_tokenizer), TokenTable(draft_tokenizer)
    pairs = shared_ids(target, draft)
    has_shared = any(target_id not in target.special for target_id, _ in pairs)
    overlap = measure_overlap(target, draft, pairs)
    kind, notice = wanted, None
    if wanted == "auto":
        cost = None if draft_cost is None else draft_cost()
        kinds: tuple[DraftVocab, ...] = ("shared", "text")
        kind = max(kinds, key=lambda one: predict_speedup(one, overlap, cost))
    if not has_shared:
        kind, notice = "text", "target and draft share no token of text, so the draft writes text"
    return TranslatedPairing(len(pairs), notice, kind, overlap=overlap, tables=(target, draft), pairs=tuple(pairs))


def measure_overlap(target: TokenTable, draft: TokenTable, pairs: list[tuple[int, int]], text: str = SAMPLE) -> Overlap:
    """Compares the tokens of a text in two vocabularies."""
    data = text.encode()
    of_target, of_draft = target.extend([], data), draft.extend([], data)
    # A tokenizer with word marks may put one in front.
    num_written = min(sum(len(draft.bytes[id_]) for id_ in of_draft), len(data))
    known_target, known_draft = ({ids[side] for ids in pairs} for side in (0, 1))
    return Overlap(
        sum(id_ in known_target for id_ in of_target) / max(len(of_target), 1),
        sum(id_ in known_draft for id_ in of_draft) / max(len(of_draft), 1),
        len(of_draft) / max(len(of_target), 1),
        num_written / len(data),
    )


def translated_costs(
    kind: DraftVocab, overlap: Overlap, alpha: float, draft_seconds: float, verify: Mapping[int, float] | None = None
) -> tuple[float, PassCosts]:
    """Estimates acceptance and costs of a draft from those that it would have with the target's vocabulary.

    A shared token is accepted only if the target's own token is shared, and it is drafted only if the draft's own is.
    A token of a text draft needs all of the draft's tokens for it.

    Args:
        kind: `same`, `shared` or `text`.
        overlap: Of the vocabularies; without effect for `same`.
        alpha: Acceptance of a draft token.
        draft_seconds: Cost of one of the draft's own tokens, in the unit of `verify`.
        verify: v(n) of the target; None: in units of v(1), with `ASSUMED_SLOPE`.

    Returns:
        The acceptance of each of the target's tokens, and the costs for `best_draft_length`.
    """
    verify = verify or {n: 1 + ASSUMED_SLOPE * (n - 1) for n in range(1, LONGEST_ASSUMED + 2)}
    if kind == "shared":
        alpha *= overlap.target_share * overlap.draft_share
    elif kind == "text":
        alpha = overlap.written_share * alpha**overlap.draft_per_target
        draft_seconds *= overlap.draft_per_target
    return alpha, PassCosts(verify, draft_seconds)


def predict_speedup(kind: DraftVocab, overlap: Overlap, draft_cost: float | None) -> float:
    """Predicts the speedup of the best draft length, at `ASSUMED_ALPHA`. An estimate: costs follow from sizes.

    Args:
        kind: As in `translated_costs`, like `overlap`.
        draft_cost: Of a draft token, as a share of the target's; None: unknown.
    """
    cost = UNKNOWN_COST if draft_cost is None else draft_cost
    return best_draft_length(*translated_costs(kind, overlap, ASSUMED_ALPHA, cost))[1]
