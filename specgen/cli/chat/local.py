"""Loads the models of `specgen chat`. Imports torch."""

from __future__ import annotations

import os
from dataclasses import replace

from specgen.cli.chat.settings import ChatSettings
from specgen.cli.streams import Messages
from specgen.core.draft_name import DraftName
from specgen.core.progress import ProgressListener
from specgen.core.settings import ModelSettings, PairSettings
from specgen.loading.libraries import gc_paused
from specgen.render.progress import LoadProgress
from specgen.runtime import learned_costs
from specgen.runtime.conversation import Conversation
from specgen.runtime.loaded_models import load_models
from specgen.runtime.pair import resolve_pair
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


def replace_draft(conversation: Conversation, like: ModelSettings, messages: Messages, name: str) -> list[str]:
    """Replaces the drafter, whose name is a value of `--draft`; the messages and the cache of the target stay.

    The new drafter gets the weight format and the device of the one at the start of the chat, `like`.

    Returns:
        Notices of the loader.
    """
    models = conversation.models
    draft = DraftName(os.path.expanduser(name))
    with LoadProgress(messages.console, quiet=messages.quiet) as progress, gc_paused():
        pair = models.pair.with_draft(draft, replace(like, revision=None), progress)
        conversation.finish()
        notices = models.replace_draft(pair, progress)
    learned_costs.load_draft_costs(models)
    return notices
