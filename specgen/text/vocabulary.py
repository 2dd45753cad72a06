"""Compares the vocabularies of target and draft, and finds the ids they share. Reads no weights.

A draft token is an id: it means the same to both models only if both vocabularies have the same string there. Equal
sizes prove nothing (llama.cpp#3812), and different sizes may be the same vocabulary with other padding (Qwen2.5).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from specgen.core.errors import PairError
from specgen.core.settings import DraftVocab


@dataclass(frozen=True, slots=True)
class Pairing:
    """The shared vocabulary of target and draft.

    Args:
        num_shared: Ids below this mean the same to both; both models' logits are cut to this width.
        notice: A harmless difference, in one line, or None.
        kind: How the draft's vocabulary is used.
    """

    num_shared: int
    notice: str | None = None
    kind: DraftVocab = "same"

    @property
    def remark(self) -> str:
        """Describes a vocabulary that is not the target's own in a few words; empty for the target's own."""
        return ""


def table_size(tokenizer: Any) -> int:
    """Returns the highest id of a tokenizer plus one. `len()` is smaller if the ids have gaps."""
    return max(tokenizer.get_vocab().values(), default=-1) + 1


def compare_tokenizers(target_tokenizer: Any, draft_tokenizer: Any) -> Pairing:
    """Compares two vocabularies over the ids that both have. One of them may have more tokens at the end.

    Raises:
        PairError: An id means different strings.
    """
    target = {token_id: token for token, token_id in target_tokenizer.get_vocab().items()}
    draft = {token_id: token for token, token_id in draft_tokenizer.get_vocab().items()}
    num_target, num_draft = max(target, default=-1) + 1, max(draft, default=-1) + 1
    num_shared = min(num_target, num_draft)
    differing = [index for index in range(num_shared) if target.get(index) != draft.get(index)]
    if differing or not num_shared:
        pairs = (f"{index} is {_shown(target, index)} and {_shown(draft, index)}" for index in differing[:3])
        raise PairError(
            f"the draft's tokens differ from the target's in {len(differing)} of {num_shared} ids "
            f"({len(target)} and {len(draft)} tokens): {', '.join(pairs) or 'a vocabulary is empty'}",
            "choose a draft of the same family, or --draft lookup, which needs no second model",
        )
    return Pairing(num_shared, _notice(target_tokenizer, draft_tokenizer))


def _shown(table: dict[int, str], index: int) -> str:
    return repr(table[index][:40]) if index in table else "nothing"


def _notice(target: Any, draft: Any) -> str | None:
    """Describes differing special tokens. The target's are used: the draft may be accepted a little less often."""
    parts = []
    for name in ("bos_token", "eos_token"):
        ours, theirs = getattr(target, f"{name}_id", None), getattr(draft, f"{name}_id", None)
        if ours != theirs:
            pair = f"{theirs} ({getattr(draft, name, None)!r}), the target's {ours} ({getattr(target, name, None)!r})"
            parts.append(f"the draft's {name.removesuffix('_token')} token is {pair}")
    return "; ".join(parts) + "; the target's are used" if parts else None
