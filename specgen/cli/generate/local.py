"""Loads the models of `specgen generate`. Imports torch."""

from __future__ import annotations

from dataclasses import replace

from specgen.cli.generate.inputs import Inputs
from specgen.core.progress import ProgressListener
from specgen.core.settings import DEFAULT_MAX_NEW_TOKENS, DecodeSettings
from specgen.runtime import learned_costs
from specgen.runtime.generation import Generation, Request
from specgen.runtime.loaded_models import load_models
from specgen.runtime.pair import resolve_pair
from specgen.text.chat_template import FOLDED, encode_text


def open_generation(inputs: Inputs, progress: ProgressListener) -> Generation:
    """Loads the models and returns a generation that is ready to start. Call it once libraries are prepared.

    Raises:
        LoadError: A model is missing or damaged, or the chat template can't be used.
        PairError: Draft and target do not share a vocabulary, and `--draft-vocab same` insists.
        PromptError: The prompt is longer than the context window.
    """
    options, answer, template = inputs.options, inputs.options.answer, inputs.template
    pair = resolve_pair(inputs.pair, progress)
    if template is None:
        ids = encode_text(pair.tokenizer, inputs.messages[-1].content)
    else:
        ids = template.encode(pair.tokenizer, inputs.messages)
        if template.folds_system(pair.tokenizer, inputs.messages):
            pair = replace(pair, notices=(*pair.notices, FOLDED))
    sampling, source = options.sampling.resolve(pair.defaults.sampling)
    max_new_tokens = pair.resolve_max_new_tokens(len(ids), answer.max_new_tokens, DEFAULT_MAX_NEW_TOKENS)
    end_ids = frozenset[int]() if answer.ignore_eos else pair.end_ids
    num_nodes, tree_schedule = inputs.tree
    settings = DecodeSettings(
        max_new_tokens,
        *inputs.draft_length,
        end_ids,
        options.drafting.strict,
        num_tree_nodes=num_nodes,
        tree_schedule=tree_schedule,
    )
    request = Request(
        ids,
        settings,
        sampling,
        source,
        answer.stops,
        is_raw=template is None,
        show_special_tokens=options.output.show_special_tokens,
    )
    models = load_models(pair, progress)
    learned_costs.load(models)
    return Generation(models, request)
