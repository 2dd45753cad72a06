"""Compares the vocabularies of target and draft, and finds the ids they share. Reads no weights.

A draft token is an id: it means the same to both models only if both vocabularies have the same string there. Equal
sizes prove nothing (llama.cpp#3812), and different sizes may be the same vocabulary with other padding (Qwen2.5).
Fine-tunes rename reserved tokens: the draft keeps its ids, and only the renamed ones are never drafted.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from specgen.core.errors import PairError
from specgen.core.settings import DraftVocab

FEW_MASKED, MASKED_SHARE = 8, 0.01
"""How many added tokens may differ, or which share of all ids if that is more: Llama 3 has 256 reserved ones."""
_FILLER = re.compile(r"\[PAD\d+\]")
"""What llama.cpp's converter writes into a GGUF for an id without a token."""


@dataclass(frozen=True, slots=True)
class Pairing:
    """The shared vocabulary of target and draft.

    Args:
        num_shared: Ids below this mean the same to both; both models' logits are cut to this width.
        notice: A harmless difference, in one line, or None.
        kind: How the draft's vocabulary is used.
        masked_ids: Ids below `num_shared` that differ, ascending. The draft reads them, but never proposes them.
    """

    num_shared: int
    notice: str | None = None
    kind: DraftVocab = "same"
    masked_ids: tuple[int, ...] = ()

    @property
    def remark(self) -> str:
        """Describes a vocabulary that is not the target's own in a few words; empty for the target's own."""
        return ""


def table_size(tokenizer: Any) -> int:
    """Returns the highest id of a tokenizer plus one. `len()` is smaller if the ids have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def compare_tokenizers(target_tokenizer: Any, draft_tokenizer: Any) -> Pairing:
    """Compares two vocabularies over the ids that both have. One of them may have more tokens at the end.

    A few added tokens may differ, such as a reserved one that was given a name: they are masked. A token that has moved
    to another id is a sign of another vocabulary.

    Raises:
        PairError: Ordinary tokens differ, or more than a few added ones, or one has moved.
    """
    target = {token_id: token for token, token_id in target_tokenizer.get_vocab().items()}
    draft = {token_id: token for token, token_id in draft_tokenizer.get_vocab().items()}
    num_target, num_draft = max(target, default=-1) + 1, max(draft, default=-1) + 1
    num_shared = min(num_target, num_draft)
    differing = [index for index in range(num_shared) if target.get(index) != draft.get(index)]
    shown = ", ".join(f"{index} is {_shown(target, index)} and {_shown(draft, index)}" for index in differing[:3])
    can_mask = len(differing) <= max(FEW_MASKED, MASKED_SHARE * num_shared)
    if differing and can_mask:
        spare = _spare_ids(target_tokenizer, target) & _spare_ids(draft_tokenizer, draft)
        moved = set(target.values()) & {draft[index] for index in differing if index in draft}
        can_mask = spare.issuperset(differing) and not moved
    if not num_shared or not can_mask:
        raise PairError(
            f"the draft's tokens differ from the target's in {len(differing)} of {num_shared} ids "
            f"({len(target)} and {len(draft)} tokens): {shown or 'a vocabulary is empty'}",
            "choose a draft of the same family, or --draft lookup, which needs no second model",
        )
    more = f" and {len(differing) - 3} more" if len(differing) > 3 else ""
    notices = [f"added tokens that differ are never drafted: {shown}{more}"] if differing else []
    notices += _notices(target_tokenizer, draft_tokenizer)
    return Pairing(num_shared, "; ".join(notices) or None, masked_ids=tuple(differing))


def _spare_ids(tokenizer: Any, table: Mapping[int, str]) -> set[int]:
    """Returns the ids without an ordinary token: added tokens, fillers and gaps."""
    added = tokenizer.added_tokens_decoder
    size = max(table, default=-1) + 1
    return {index for index in range(size) if index in added or _FILLER.fullmatch(table.get(index, "[PAD0]"))}


def _shown(table: dict[int, str], index: int) -> str:
    return repr(table[index][:40]) if index in table else "nothing"


def _notices(target: Any, draft: Any) -> list[str]:
    """Describes differing special tokens. The target's are used: the draft may be accepted a little less often."""
    parts = []
    for name in ("bos_token", "eos_token"):
        ours, theirs = getattr(target, f"{name}_id", None), getattr(draft, f"{name}_id", None)
        if ours != theirs:
            pair = f"{theirs} ({getattr(draft, name, None)!r}), the target's {ours} ({getattr(target, name, None)!r})"
            parts.append(f"the draft's {name.removesuffix('_token')} token is {pair}")
    return [*parts, "the target's are used"] if parts else []
