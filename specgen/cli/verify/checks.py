"""Runs the checks of `specgen verify`. Imports torch: import it once libraries are prepared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specgen.core.progress import ProgressListener
from specgen.core.settings import DecodeSettings, SamplingSettings
from specgen.runtime.generation import Request, run_info
from specgen.runtime.loaded_models import load_models
from specgen.runtime.pair import Pair, PairSettings, resolve_pair
from specgen.text.chat_template import ChatTemplate, Message, encode_text
from specgen.verify.checks import EncodedPrompt, compare_texts, distribution_errors
from specgen.verify.results import VerifyReport


def run_checks(
    settings: PairSettings, texts: Sequence[str], limits: DecodeSettings, progress: ProgressListener
) -> VerifyReport:
    """Checks the sampler, the passes of the target, and greedy answers with the draft and without.

    Args:
        settings: The models.
        texts: Prompts to answer.
        limits: Of an answer.
        progress: Receives the stage.

    Raises:
        SpecgenError: A model can't be loaded, a prompt is too long, or the draft fails.
    """
    pair = resolve_pair(settings, progress)
    limits = replace(limits, end_ids=pair.end_ids)
    prompts = [_encode(pair, text) for text in texts]
    # All prompts must fit the context window before weights are read.
    max_new_tokens = [
        pair.resolve_max_new_tokens(len(prompt.ids), limits.max_new_tokens, limits.max_new_tokens) for prompt in prompts
    ]
    progress.stage("checking the sampler exactly on toy models")
    distributions = tuple(distribution_errors())
    models = load_models(pair, progress)
    progress.stage("checking whether logits depend on later tokens in the same pass")
    batch_invariance = models.check_batch_invariance()
    checks = []
    for number, (prompt, longest) in enumerate(zip(prompts, max_new_tokens, strict=True), 1):
        progress.stage(f"answering prompt {number} of {len(prompts)} with the draft and without")
        checks.append(compare_texts(models, prompt, replace(limits, max_new_tokens=longest)))
    info = run_info(models, Request((), limits, SamplingSettings()))
    return VerifyReport(info, distributions, batch_invariance, tuple(checks))


def _encode(pair: Pair, text: str) -> EncodedPrompt:
    if pair.tokenizer.chat_template:
        return EncodedPrompt(text, ChatTemplate().encode(pair.tokenizer, [Message("user", text)]))
    return EncodedPrompt(text, encode_text(pair.tokenizer, text))
