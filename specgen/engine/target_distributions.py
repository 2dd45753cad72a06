"""Computes the target's distributions at the positions of a draft: of all of them, or of those a path reaches."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from specgen.core.draft_tree import ROOT, depths_of, path_to
from specgen.engine.forbidden_tokens import ForbiddenTokens
from specgen.engine.inference_mode import in_inference_mode
from specgen.engine.randomness import PositionNoise
from specgen.engine.sampling import Sampler, TokenDistributions, token_distributions
from specgen.engine.seen_tokens import seen_tokens
from specgen.engine.transfer import ids_on
from specgen.engine.verification import Draft


class TargetDistributions:
    """Turns the target's logits into distributions, with the processors and rules of a run.

    Args:
        sampler: The run's.
        num_prompt: Tokens of the prompt.
        vocab_size: Width of the logits.
        device: Where they are.
    """

    def __init__(self, sampler: Sampler, num_prompt: int, vocab_size: int, device: torch.device) -> None:
        settings, rules = sampler.settings, sampler.rules
        self._settings, self._noise = settings, sampler.noise
        self._forbidden = ForbiddenTokens(rules, num_prompt) if rules.has_effect else None
        self._seen = seen_tokens(settings, vocab_size, device)
        self.is_argmax = settings.is_greedy and settings.repetition_penalty == 1.0 and self._forbidden is None
        """Whether the target's token is that of the largest logit."""

    @in_inference_mode
    def of_all(self, logits: Tensor, ids: Sequence[int], draft: Draft) -> TokenDistributions:
        """Computes all rows, without a host read.

        Args:
            logits: `[drafted + 1, vocab]`: row 0 after the text, row i + 1 after token i of the draft.
            ids: The text. From call to call it only grows.
            draft: On the same device.
        """
        logits = self._permitted(logits, ids, draft)
        seen = None
        if self._seen is not None:
            parents = draft.parents
            seen = self._seen.rows(draft.ids) if parents is None else self._seen.tree_rows(draft.ids, parents)
        noise = None if self._noise is None else noise_rows(self._noise, len(ids), draft)
        return token_distributions(logits, self._settings, seen, noise)

    def on_demand(self, logits: Tensor, ids: Sequence[int], draft: Draft) -> RowsOnDemand:
        """Prepares rows in host memory, with the arguments of `of_all`."""
        return RowsOnDemand(self, self._permitted(logits, ids, draft), len(ids), draft)

    def of_one(self, logits: Tensor, num_before: int, path: Tensor) -> TokenDistributions:
        """Computes one row.

        Args:
            logits: `[1, vocab]`, with the rules applied.
            num_before: Tokens of the text.
            path: Those of the draft before the row, `[drafted]`.
        """
        seen = None if self._seen is None else self._seen.row(path)
        noise = None if self._noise is None else self._noise.rows(num_before + path.shape[0], 1)
        return token_distributions(logits, self._settings, seen, noise)

    def _permitted(self, logits: Tensor, ids: Sequence[int], draft: Draft) -> Tensor:
        """Applies the rules, and notes the new tokens of the text."""
        if self._seen is not None:
            self._seen.update(ids)
        if self._forbidden is None:
            return logits
        return self._forbidden.remove(logits, ids, draft.ids.tolist(), draft.parents)


class RowsOnDemand:
    """The target's distributions, each computed when it is asked for: a path reaches few rows of a tree.

    Logits of other rows are not looked at, even if they are not finite: the target alone would not compute them.
    """

    def __init__(self, target: TargetDistributions, logits: Tensor, num_before: int, draft: Draft) -> None:
        self._target, self._logits, self._num_before, self._ids = target, logits, num_before, draft.ids
        self._parents = chain_parents(draft.ids.shape[0]) if draft.parents is None else draft.parents
        self.is_finite = True
        """Whether the logits of all rows so far were."""

    def row(self, index: int) -> TokenDistributions:
        """Computes a row, as in `TokenDistributions.row`."""
        path = self._ids[path_to(self._parents, index - 1)]
        found = self._target.of_one(self._logits[index : index + 1], self._num_before, path)
        self.is_finite = self.is_finite and bool(found.is_finite)
        return found


def chain_parents(num_drafted: int) -> tuple[int, ...]:
    """Returns the parents of a draft that does not branch."""
    return tuple(range(ROOT, num_drafted + ROOT))


def noise_rows(noise: PositionNoise, length: int, draft: Draft) -> Tensor:
    """Returns the noise at each position of a draft after `length` tokens, `[drafted + 1, vocab_size]`."""
    if draft.parents is None:
        return noise.rows(length, draft.ids.shape[0] + 1)
    depths = [0, *(depth + 1 for depth in depths_of(draft.parents))]
    rows = noise.rows(length, max(depths) + 1)
    return rows.index_select(0, ids_on(rows.device, depths))
