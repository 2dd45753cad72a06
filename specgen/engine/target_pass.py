"""Runs the target over a draft and applies the accept rule, with a single host read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch

from specgen.core.draft_tree import ROOT, DraftTree
from specgen.core.errors import DraftError, NumericalError
from specgen.core.settings import Verification
from specgen.engine.clock import Stopwatch
from specgen.engine.contract import DRAFT_NOT_FINITE, GreedyVerifier, RecordingModel, TargetModel, TreeTarget
from specgen.engine.inference_mode import in_inference_mode
from specgen.engine.randomness import Randomness
from specgen.engine.sampling import Sampler, TokenDistributions, likeliest_on_host
from specgen.engine.target_distributions import TargetDistributions, chain_parents
from specgen.engine.transfer import ids_on, is_on_host, moved
from specgen.engine.tree_verification import matching_path, verify_tree
from specgen.engine.verification import Draft, verify, verify_block_by_rows


@dataclass(frozen=True, slots=True)
class Verified:
    """A verified draft.

    Args:
        draft_ids: The draft; of a tree, the accepted path and the best tokens after it.
        num_accepted: How many of its tokens are accepted.
        target_id: The target's own token after them.
        is_warmup: The pass took longer than later ones of its size: it was recorded, or ran for the first time.
        passed_at: Stopwatch mark at the end of the target's pass.
        tree: The whole draft, if it branches.
    """

    draft_ids: list[int]
    num_accepted: int
    target_id: int
    is_warmup: bool
    passed_at: Any
    tree: DraftTree | None = None


class TargetPass:
    """Verifies drafts with a target.

    Args:
        target: The target.
        sampler: The run's.
        rule: Verification of sampled drafts.
        stopwatch: Marks the end of each pass.
        num_prompt: Tokens of the prompt.
    """

    def __init__(
        self, target: TargetModel, sampler: Sampler, rule: Verification, stopwatch: Stopwatch, num_prompt: int
    ) -> None:
        self._target, self._sampler, self._rule, self._stopwatch = target, sampler, rule, stopwatch
        self._distributions = TargetDistributions(sampler, num_prompt, target.vocab_size, target.device)
        self._is_argmax = self._distributions.is_argmax
        self._draws = not sampler.settings.is_greedy and sampler.noise is None
        self._on_device = target if self._is_argmax and isinstance(target, GreedyVerifier) else None
        self._recording = target if isinstance(target, RecordingModel) else None
        self._trees = target if isinstance(target, TreeTarget) else None

    @in_inference_mode
    def verify(self, ids: list[int], draft: Draft) -> Verified:
        """Verifies a draft after `ids`.

        Raises:
            NumericalError: The target's logits contain NaN or infinity.
            DraftError: The draft model's logits did.
        """
        if draft.parents is not None:
            return self._verify_tree(ids, draft, draft.parents)
        num_warmups = self._num_warmups()
        read = None if self._on_device is None else self._on_device.verify_greedy(ids, draft.ids, draft.is_finite)
        if read is not None:
            # Before the read: the time until the host wakes up is not the pass's.
            passed_at = self._stopwatch.mark()
            numbers = read()
        else:
            logits = self._target.logits(ids, draft.ids.shape[0] + 1, tail=draft.ids)
            passed_at = self._stopwatch.mark()
            numbers = self._verify_logits(logits, ids, draft)
        num_accepted, target_id, is_finite, *draft_ids = numbers
        if not is_finite:
            raise self._not_finite()
        return Verified(draft_ids, num_accepted, target_id, self._num_warmups() > num_warmups, passed_at)

    def _verify_tree(self, ids: list[int], draft: Draft, parents: tuple[int, ...]) -> Verified:
        """Verifies a draft that branches. Row 0 of the pass is the last token of `ids`."""
        target, num_warmups = self._trees, self._num_warmups()
        assert target is not None, "the target computes no trees"
        if target.length < len(ids) - 1:
            target.feed(ids[:-1])
        draft = _on_device(draft, target.device)
        tokens = torch.cat([ids_on(target.device, ids[-1:]), draft.ids])
        logits = target.tree_logits(tokens, [ROOT, *(parent + 1 for parent in parents)])
        passed_at = self._stopwatch.mark()
        top = likeliest_on_host(logits) if self._is_argmax else None
        if top is not None:
            is_finite = all(map(isfinite, top[0]))
            tree = DraftTree(tuple(draft.ids.tolist()), parents)
            path, target_id = matching_path(tree, top[1])
        elif is_on_host(logits):
            tree = DraftTree(tuple(draft.ids.tolist()), parents)
            rows = self._distributions.on_demand(logits, ids, draft)
            path, target_id = verify_tree(rows, draft, tree, self._sampler.randomness)
            is_finite = rows.is_finite
        else:
            distributions = self._distributions.of_all(logits, ids, draft)
            read = torch.cat([distributions.is_finite.long().view(1), draft.ids, distributions.ids])
            is_finite, *numbers = read.tolist()
            tree = DraftTree(tuple(numbers[: len(parents)]), parents)
            if distributions.probs is None:
                path, target_id = matching_path(tree, numbers[len(parents) :])
            else:
                path, target_id = verify_tree(distributions, draft, tree, self._sampler.randomness)
        if not is_finite:
            raise self._not_finite()
        target.keep_rows([0, *(index + 1 for index in path)])
        branch = [tree.ids[index] for index in tree.branch(path)]
        return Verified(branch, len(path), target_id, self._num_warmups() > num_warmups, passed_at, tree)

    def _not_finite(self) -> NumericalError:
        """Returns the error of a target whose logits are not finite. Clears a recorded cache, which may hold NaN."""
        if self._recording is not None:
            self._recording.forget()
        hint = "try --dtype float32 or another --quant; the file may be damaged"
        return NumericalError("the target's logits contain NaN or infinity", hint)

    def _num_warmups(self) -> int:
        return 0 if self._recording is None else self._recording.num_warmups

    def _verify_logits(self, logits: torch.Tensor, ids: list[int], draft: Draft) -> list[int]:
        """Returns what `verify_on_device` does."""
        top = likeliest_on_host(logits) if self._is_argmax else None
        if top is not None:
            return verify_greedy(*top, draft)
        draft = _on_device(draft, logits.device)
        randomness = self._sampler.randomness
        # Whether a draft from a device is sound is read with the verdict.
        if not is_on_host(logits) or draft.is_finite is not None:
            return verify_on_device(self._distributions.of_all(logits, ids, draft), draft, randomness, self._rule)
        rows, draft_ids = self._distributions.on_demand(logits, ids, draft), draft.ids.tolist()
        if self._rule == "block" and draft.probs is not None and self._draws:
            num_accepted, target_id = verify_block_by_rows(rows, draft, randomness)
        else:
            chain = DraftTree(tuple(draft_ids), chain_parents(len(draft_ids)))
            path, target_id = verify_tree(rows, draft, chain, randomness)
            num_accepted = len(path)
        return [num_accepted, target_id, rows.is_finite, *draft_ids]


def verify_greedy(top_logits: list[float], top_ids: list[int], draft: Draft) -> list[int]:
    """Does what `verify_on_device` does, for a greedy target in host memory.

    The twenty small torch operations it replaces took as long as a hundredth of a pass: each starts with a cache full
    of weights.
    """
    draft_ids = draft.ids.tolist()
    num_accepted = next((i for i, token in enumerate(draft_ids) if token != top_ids[i]), len(draft_ids))
    return [num_accepted, top_ids[num_accepted], all(map(isfinite, top_logits)), *draft_ids]


def _on_device(draft: Draft, device: torch.device) -> Draft:
    return replace(
        draft,
        ids=moved(draft.ids, device),
        probs=None if draft.probs is None else moved(draft.probs, device),
        is_finite=None if draft.is_finite is None else moved(draft.is_finite, device),
    )


@in_inference_mode
def verify_on_device(target: TokenDistributions, draft: Draft, randomness: Randomness, rule: Verification) -> list[int]:
    """Verifies a draft with a single host read.

    Args:
        target: The target's distributions at each position of the draft and after it.
        draft: On the same device.
        randomness: The run's.
        rule: Verification of sampled drafts.

    Returns:
        The number of accepted tokens, the target's own token, 1 if all logits are finite, and the draft's ids.

    Raises:
        DraftError: The draft's logits were not finite, and this was not checked before.
    """
    verdict = verify(target, draft, randomness, rule)
    is_draft_finite = target.is_finite if draft.is_finite is None else draft.is_finite
    decided = torch.stack(
        [verdict.num_accepted, verdict.target_id, target.is_finite.long(), is_draft_finite.view(()).long()]
    )
    num_accepted, target_id, is_finite, is_sound, *draft_ids = torch.cat([decided, draft.ids]).tolist()
    if is_finite and not is_sound:
        raise DraftError(DRAFT_NOT_FINITE) from NumericalError(DRAFT_NOT_FINITE)
    return [num_accepted, target_id, is_finite, *draft_ids]
