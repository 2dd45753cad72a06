"""Loads the models of a chat, replaces its drafter, and saves the costs measured on the way."""

from __future__ import annotations

import os
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from specgen.loading.libraries import gc_paused, prepare_libraries
from specgen.render.progress import LoadProgress
from specgen.runtime.pair import pair_settings

if TYPE_CHECKING:
    from specgen.cli.chat.settings import ChatSettings
    from specgen.cli.streams import Messages
    from specgen.core.settings import ModelSettings
    from specgen.runtime.conversation import Conversation
    from specgen.text.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True)
class ChatModels:
    """The models of a chat.

    Args:
        target: The target.
        draft: The draft, named as on the command line.
        lookup_texts: Texts that prompt lookup searches too.
    """

    target: ModelSettings
    draft: ModelSettings
    lookup_texts: tuple[str, ...] = ()


def load_conversation(
    chosen: ChatModels, template: ChatTemplate, settings: ChatSettings, messages: Messages, verbosity: int
) -> Conversation:
    """Loads the models and their learned costs; shows progress.

    Raises:
        LoadError: A model can't be loaded, or its chat template is invalid.
    """
    with LoadProgress(messages.console, quiet=messages.quiet, verbose=verbosity > 0) as progress, gc_paused():
        progress.stage("starting")
        prepare_libraries(verbosity > 1)
        # These import torch, which must be prepared first and takes seconds.
        from specgen.runtime import learned_costs
        from specgen.runtime.conversation import Conversation
        from specgen.runtime.loaded_models import load_models
        from specgen.runtime.pair import resolve_pair

        pair = resolve_pair(pair_settings(chosen.target, chosen.draft, chosen.lookup_texts), progress)
        template.check(pair.tokenizer, pair.target.name)
        models = load_models(pair, progress)
        learned_costs.load(models)
        return Conversation(models, settings.for_reply(pair.sampling_defaults), template)


def load_draft(conversation: Conversation, first: ModelSettings, messages: Messages, name: str) -> list[str]:
    """Replaces the drafter.

    Args:
        conversation: Keeps its messages and the cache of the target.
        first: The draft at the start of the chat: the new one gets its weight format and device.
        messages: Shows progress.
        name: The new drafter, named as on the command line.

    Returns:
        Notices of the loader.
    """
    from specgen.runtime import learned_costs

    models = conversation.models
    requested = pair_settings(models.pair.settings.target, replace(first, name=os.path.expanduser(name), revision=None))
    with LoadProgress(messages.console, quiet=messages.quiet) as progress, gc_paused():
        pair = models.pair.with_draft(requested.drafter, requested.draft, progress)
        save_costs(conversation)
        notices = models.replace_draft(pair, progress)
    learned_costs.load_draft(models)
    return notices


def save_costs(conversation: Conversation) -> None:
    """Saves the measured pass costs for later runs."""
    from specgen.runtime import learned_costs

    learned_costs.save(conversation.models)
