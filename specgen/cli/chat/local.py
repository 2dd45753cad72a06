"""Loads the models of `specgen chat`. Imports torch."""

from __future__ import annotations

import os
from dataclasses import replace

from specgen.cli.chat.settings import ChatSettings
from specgen.cli.streams import Messages
from specgen.core.progress import ProgressListener
from specgen.core.settings import ModelSettings
from specgen.loading.libraries import gc_paused
from specgen.render.progress import LoadProgress
from specgen.runtime import learned_costs
from specgen.runtime.conversation import Conversation
from specgen.runtime.loaded_models import load_models
from specgen.runtime.pair import PairSettings, pair_settings, resolve_pair
from specgen.text.chat_template import ChatTemplate


def open_conversation(
    models: PairSettings, settings: ChatSettings, template: ChatTemplate, progress: ProgressListener
) -> Conversation:
    """Loads the models of a chat and their learned costs.

    Raises:
        LoadError: A model is missing or damaged, or the chat template can't be used.
        PairError: Draft and target do not share a vocabulary, and `--draft-vocab same` insists.
    """
    pair = resolve_pair(models, progress)
    template.check(pair.tokenizer, pair.target.name)
    loaded = load_models(pair, progress)
    learned_costs.load(loaded)
    return Conversation(loaded, settings.for_reply(pair.defaults.sampling), template)


def replace_draft(conversation: Conversation, first: ModelSettings, messages: Messages, name: str) -> list[str]:
    """Replaces the drafter, whose name is a value of `--draft`; the messages and the cache of the target stay.

    The new drafter gets the weight format and the device of `first`, the one at the start of the chat.

    Returns:
        Notices of the loader.
    """
    models = conversation.models
    requested = pair_settings(models.pair.settings.target, replace(first, name=os.path.expanduser(name), revision=None))
    with LoadProgress(messages.console, quiet=messages.quiet) as progress, gc_paused():
        pair = models.pair.with_draft(requested.drafter, requested.draft, progress)
        conversation.finish()
        notices = models.replace_draft(pair, progress)
    learned_costs.load_draft_costs(models)
    return notices
