"""Loads the models of an answer and encodes its prompt. Imports torch: import it once libraries are prepared."""

from __future__ import annotations

from specgen.cli.generate.inputs import Inputs, Prompt
from specgen.core.progress import ProgressListener
from specgen.core.settings import DEFAULT_MAX_NEW_TOKENS, DecodeSettings
from specgen.runtime import learned_costs
from specgen.runtime.generation import Generation, Request
from specgen.runtime.loaded_models import load_models
from specgen.runtime.pair import Pair, resolve_pair
from specgen.text.chat_template import Message, encode_text


def open_generation(inputs: Inputs, progress: ProgressListener) -> Generation:
    """Returns a generation that is ready to start.

    Raises:
        LoadError: A model is missing or damaged, or the chat template can't be used.
        PairError: Draft and target do not share a vocabulary.
        PromptError: The prompt is longer than the context window.
    """
    pair = resolve_pair(inputs.pair, progress)
    request = _request(pair, inputs)
    models = load_models(pair, progress)
    learned_costs.load(models)
    return Generation(models, request)


def save_costs(generation: Generation) -> None:
    """Saves the measured costs of passes for later runs."""
    learned_costs.save(generation.models)


def _request(pair: Pair, inputs: Inputs) -> Request:
    ids = _prompt_ids(pair, inputs.prompt)
    sampling, source = inputs.sampling.resolve(pair.sampling_defaults)
    max_new_tokens = pair.resolve_max_new_tokens(len(ids), inputs.max_new_tokens, DEFAULT_MAX_NEW_TOKENS)
    num_draft_tokens, schedule = inputs.draft_length
    end_ids = frozenset[int]() if inputs.ignores_eos else pair.end_ids
    settings = DecodeSettings(max_new_tokens, num_draft_tokens, schedule, end_ids, inputs.strict)
    return Request(ids, settings, sampling, source, inputs.stops, is_raw=inputs.prompt.template is None)


def _prompt_ids(pair: Pair, prompt: Prompt) -> list[int]:
    if prompt.template is None:
        return encode_text(pair.tokenizer, prompt.text)
    messages = [] if prompt.system is None else [Message("system", prompt.system)]
    return prompt.template.encode(pair.tokenizer, [*messages, Message("user", prompt.text)])
