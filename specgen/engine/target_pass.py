"""Runs the target over a draft and applies the accept rule, with a single host read."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import isfinite
from typing import Any

import torch

from specgen.core.errors import DraftError, NumericalError
from specgen.core.settings import Verification
from specgen.engine.clock import Stopwatch
from specgen.engine.contract import DRAFT_NOT_FINITE, GreedyVerifier, RecordingModel, TargetModel
from specgen.engine.forbidden_tokens import ForbiddenTokens
from specgen.engine.randomness import Randomness
from specgen.engine.sampling import Sampler, TokenDistributions, likeliest_on_host, token_distributions
from specgen.engine.seen_tokens import seen_tokens
from specgen.engine.transfer import moved
from specgen.engine.verification import Draft, verify


@dataclass(frozen=True, slots=True)
class Verified:
    """A verified draft.

    Args:
        draft_ids: The draft.
        num_accepted: How many of its tokens are accepted.
        target_id: The target's own token after them.
        is_warmup: The pass took longer than later ones of its size: it was recorded, or ran for the first time.
        passed_at: Stopwatch mark at the end of the target's pass.
    """

    draft_ids: list[int]
    num_accepted: int
    target_id: int
    is_warmup: bool
    passed_at: Any


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
        settings = sampler.settings
        rules = sampler.rules
        self._forbidden = ForbiddenTokens(rules, num_prompt) if rules.has_effect else None
        self._is_argmax = settings.is_greedy and settings.repetition_penalty == 1.0 and self._forbidden is None
        self._on_device = target if self._is_argmax and isinstance(target, GreedyVerifier) else None
        self._recording = target if isinstance(target, RecordingModel) else None
        self._seen = seen_tokens(settings, target.vocab_size, target.device)

    def verify(self, ids: list[int], draft: Draft) -> Verified:
        """Verifies a draft after `ids`.

        Raises:
            NumericalError: The target's logits contain NaN or infinity.
            DraftError: The draft model's logits did.
        """
        num_warmups = self._num_warmups()
        numbers = None if self._on_device is None else self._on_device.verify_greedy(ids, draft.ids, draft.is_finite)
        if numbers is not None:
            passed_at = self._stopwatch.mark()
        else:
            logits = self._target.logits(ids, draft.ids.shape[0] + 1, tail=draft.ids)
            passed_at = self._stopwatch.mark()
            numbers = self._verify_logits(logits, ids, draft)
        num_accepted, target_id, is_finite, *draft_ids = numbers
        if not is_finite:
            if self._recording is not None:
                self._recording.forget()
            raise NumericalError(
                "the target's logits contain NaN or infinity",
                "try --dtype float32 or another --quant; the file may be damaged",
            )
        return Verified(draft_ids, num_accepted, target_id, self._num_warmups() > num_warmups, passed_at)

    def _num_warmups(self) -> int:
        return 0 if self._recording is None else self._recording.num_warmups

    def _verify_logits(self, logits: torch.Tensor, ids: list[int], draft: Draft) -> list[int]:
        """Returns what `verify_on_device` does."""
        top = likeliest_on_host(logits) if self._is_argmax else None
        if top is not None:
            return verify_greedy(*top, draft)
        draft = _on_device(draft, logits.device)
        return verify_on_device(self._distributions(logits, ids, draft), draft, self._sampler.randomness, self._rule)

    @torch.inference_mode()
    def _distributions(self, logits: torch.Tensor, ids: list[int], draft: Draft) -> TokenDistributions:
        """Computes the target's distributions at each position of a draft after `ids`."""
        settings, noise = self._sampler.settings, self._sampler.noise
        if self._forbidden is not None:
            logits = self._forbidden.remove(logits, ids, draft.ids.tolist())
        if self._seen is not None:
            self._seen.update(ids)
        seen = None if self._seen is None else self._seen.rows(draft.ids)
        rows = None if noise is None else noise.rows(len(ids), logits.shape[0])
        return token_distributions(logits, settings, seen, rows)


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


@torch.inference_mode()
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
