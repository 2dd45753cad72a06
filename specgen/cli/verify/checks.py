"""Loads the pair of `specgen verify` and runs its checks. Imports torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from specgen.cli.prompt_input import as_utf8
from specgen.cli.request import parse_template_variables
from specgen.cli.verify.options import VerifyOptions
from specgen.core.progress import ProgressListener
from specgen.core.settings import BackendSettings, DecodeSettings, PairSettings, SamplingSettings
from specgen.runtime.generation import Request, run_info
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import Pair, resolve_pair
from specgen.text.chat_template import ChatTemplate, Message, encode_text
from specgen.verify.checks import EncodedPrompt, compare_texts, compare_with_reference, distribution_errors
from specgen.verify.results import ReferenceCheck, VerifyReport

PROMPTS = (
    "Explain how a binary search works, with a short example.",
    "Write a Python function that reverses a linked list.",
    "List the planets of the solar system and one fact about each.",
    "Repeat this line three times: the quick brown fox jumps over the lazy dog.",
)


def run_checks(options: VerifyOptions, limits: DecodeSettings, progress: ProgressListener) -> VerifyReport:
    """Checks the sampler, the passes of the target, and greedy answers with the draft and without.

    Raises:
        SpecgenError: A model can't be loaded, a prompt is too long, or the draft fails.
    """
    settings = options.load.pair_settings(options.models.target, options.models.draft, options.backend.settings())
    template = ChatTemplate(options=parse_template_variables(options.chat_template_variables))
    texts = [as_utf8(text, "the prompt") for text in options.prompts or PROMPTS]
    pair = resolve_pair(settings, progress)
    limits = replace(limits, end_ids=pair.end_ids)
    prompts = [EncodedPrompt(text, _encode(pair, text, template)) for text in texts]
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
    report = VerifyReport(info, distributions, batch_invariance, tuple(checks), notices=models.notices)
    if options.against == "none":
        return report
    answers = [(prompt, check.num_tokens) for prompt, check in zip(prompts, checks, strict=True)]
    return replace(report, references=_compare_with_transformers(models, settings, answers, progress))


def _encode(pair: Pair, text: str, template: ChatTemplate) -> list[int]:
    if pair.tokenizer.chat_template:
        return template.encode(pair.tokenizer, [Message("user", text)])
    return encode_text(pair.tokenizer, text)


def _compare_with_transformers(
    models: LoadedModels,
    settings: PairSettings,
    answers: Sequence[tuple[EncodedPrompt, int]],
    progress: ProgressListener,
) -> tuple[ReferenceCheck, ...]:
    """Compares the target alone with transformers' own code, on answers of these lengths."""
    progress.stage("loading the target with transformers' own code")
    target = replace(settings.target, backend=BackendSettings("transformers"))
    reference = load_models(resolve_pair(PairSettings(target, "none"), progress), progress)
    checks = []
    for number, (prompt, num_tokens) in enumerate(answers, 1):
        progress.stage(f"answering prompt {number} of {len(answers)} with transformers' own code")
        checks.append(compare_with_reference(models, reference, prompt, num_tokens))
    return tuple(checks)
