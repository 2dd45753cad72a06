"""Runs the checks of `specgen verify`. Imports torch: import it once libraries are prepared."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specgen.core.progress import ProgressListener
from specgen.core.settings import BackendSettings, DecodeSettings, SamplingSettings
from specgen.runtime.generation import Request, run_info
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import Pair, PairSettings, resolve_pair
from specgen.text.chat_template import ChatTemplate, Message, encode_text
from specgen.verify.checks import EncodedPrompt, compare_texts, compare_with_reference, distribution_errors
from specgen.verify.results import ReferenceCheck, VerifyReport


def run_checks(
    settings: PairSettings, texts: Sequence[str], limits: DecodeSettings, against: str, progress: ProgressListener
) -> VerifyReport:
    """Checks the sampler, the passes of the target, and greedy answers with the draft and without.

    Args:
        settings: The models.
        texts: Prompts to answer.
        limits: Of an answer.
        against: `transformers` also compares the target alone with transformers' own code; `none` does not.
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
    report = VerifyReport(info, distributions, batch_invariance, tuple(checks))
    if against == "none":
        return report
    num_tokens = [check.num_tokens for check in checks]
    references = _compare_with_transformers(models, settings, list(zip(prompts, num_tokens, strict=True)), progress)
    return replace(report, references=references)


def _compare_with_transformers(
    models: LoadedModels,
    settings: PairSettings,
    answers: Sequence[tuple[EncodedPrompt, int]],
    progress: ProgressListener,
) -> tuple[ReferenceCheck, ...]:
    progress.stage("loading the target with transformers' own code")
    target = replace(settings.target, backend=BackendSettings("transformers"))
    reference = load_models(resolve_pair(PairSettings(target, "none"), progress), progress)
    checks = []
    for number, (prompt, num_tokens) in enumerate(answers, 1):
        progress.stage(f"answering prompt {number} of {len(answers)} with transformers' own code")
        checks.append(compare_with_reference(models, reference, prompt, num_tokens))
    return tuple(checks)


def _encode(pair: Pair, text: str) -> EncodedPrompt:
    if pair.tokenizer.chat_template:
        return EncodedPrompt(text, ChatTemplate().encode(pair.tokenizer, [Message("user", text)]))
    return EncodedPrompt(text, encode_text(pair.tokenizer, text))
