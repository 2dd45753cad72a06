"""Runs `specgen chat`: a conversation at a terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING

from specgen.cli.chat.line_editor import LineEditor, argument_choices
from specgen.cli.chat.loop import ChatLoop
from specgen.cli.chat.options import ChatOptions
from specgen.cli.chat.served import open_served_conversation
from specgen.cli.chat.session import Autosave, resumed_models
from specgen.cli.chat.settings import ChatSettings
from specgen.cli.chat.state import ChatState, ChatTerminal
from specgen.cli.options.server import check_given, check_without_server
from specgen.cli.request import (
    check_stops,
    parse_draft_length,
    parse_template_variables,
    parse_tree,
    read_lookup_files,
    system_message,
    template_source,
)
from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.streams import Messages, ViewOptions, loading, require_stdout
from specgen.cli.terminal_mode import TerminalMode
from specgen.core.draft_name import DraftName
from specgen.core.errors import SettingsError
from specgen.core.settings import ModelSettings, PairSettings
from specgen.loading.libraries import gc_paused
from specgen.render.terminal import is_terminal
from specgen.storage.folders import state_folder
from specgen.storage.saved_chats import SessionFolder
from specgen.storage.transcript import Transcript
from specgen.text.chat_template import ChatTemplate

if TYPE_CHECKING:
    from specgen.runtime.chat_history import ChatHistory


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a chat starts with; a draft model is loaded `like` these settings say, apart from its name."""

    settings: ChatSettings
    system: str | None
    template: ChatTemplate
    target: ModelSettings
    draft: DraftName
    like: ModelSettings


def run(options: ChatOptions) -> int:
    """Chats until the user leaves, and returns the exit code.

    Raises:
        SpecgenError: stdin is not a terminal, an option is wrong, or a model can't be loaded.
    """
    require_stdout("the replies")
    if not is_terminal(sys.stdin):
        raise SettingsError(
            "chat needs a terminal, but stdin is not one", 'for one answer use: specgen generate "your question"'
        )
    output, drafting = options.output, options.drafting
    if options.server.server:
        check_given(ChatOptions, options.given, options.models.draft)
    else:
        check_without_server(ChatOptions, options.given)
    messages = Messages(output.color, options.verbosity.quiet)
    inputs = _read_inputs(options)
    autosave = Autosave(SessionFolder(), is_on=options.session.save, warn=messages.warning)
    with StopSignals() as signals, TerminalMode() as mode, closing(autosave):
        try:
            resumed = None if options.session.resume is None else autosave.resume(options.session.resume)
            if resumed is not None:
                inputs = _with_saved(inputs, options.given, resumed)
            conversation, load = _open(options, inputs, messages)
            state = ChatState(
                conversation,
                ChatTerminal(messages, signals, mode),
                autosave,
                inputs.settings,
                ViewOptions(output.view, output.color, output.sanitize, default="live"),
                load,
                output.stats,
                drafting.calibrate,
            )
            history = state_folder() / "history" if options.session.history else None
            loop = ChatLoop(state, LineEditor(history, argument_choices(autosave.folder)))
            loop.print_banner(resumed, inputs.system)
            exit_code = loop.run()
            conversation.finish()
            return exit_code
        except Stopped as stopped:
            return stopped.exit_code


def _open(options: ChatOptions, inputs: _Inputs, messages: Messages) -> tuple[ChatHistory, Callable[[str], list[str]]]:
    """Connects to the server, or loads the models; returns the conversation, and what replaces its drafter."""
    if options.server.server:
        return open_served_conversation(options, inputs.settings), _refuse_draft
    lookup_texts = read_lookup_files(options.drafting.lookup_files, [inputs.draft])
    alone = PairSettings(inputs.target, "none", lookup_texts=lookup_texts)
    pair = alone.with_draft(inputs.draft, inputs.like)
    with loading(messages, options.verbosity) as progress, gc_paused():
        from specgen.cli.chat import local  # torch, which must be prepared first and takes seconds

        conversation = local.open_conversation(pair, inputs.settings, inputs.template, progress)
    return conversation, partial(local.replace_draft, conversation, inputs.like, messages)


def _refuse_draft(name: str) -> list[str]:
    raise SettingsError(f"{name} can't be loaded: the server's drafts were set when it started")


def _read_inputs(options: ChatOptions) -> _Inputs:
    options.sampling.resolve(None)  # checks the ranges
    parse_draft_length(options.drafting.draft_tokens)
    parse_tree(options.drafting.tree)
    check_stops(options.reply.stops)
    settings = ChatSettings(
        options.sampling,
        options.reply.max_new_tokens,
        options.drafting.draft_tokens,
        options.drafting.tree,
        stops=options.reply.stops,
        strict=options.drafting.strict,
        show_special_tokens=options.output.show_special_tokens,
    )
    prompt, backend = options.prompt, options.backend.settings()
    if prompt.chat_template == "none":
        raise SettingsError(
            "invalid --chat-template 'none': a chat needs one",
            "for raw completion: specgen generate --chat-template none",
        )
    template = ChatTemplate(
        template_source(prompt.chat_template), parse_template_variables(prompt.chat_template_variables)
    )
    target = options.load.target_settings(options.models.target, backend)
    like = options.load.draft_settings(backend)
    return _Inputs(settings, system_message(prompt.system), template, target, options.models.draft, like)


def _with_saved(inputs: _Inputs, given: frozenset[str], saved: Transcript) -> _Inputs:
    """Replaces what the user did not give with the values of the saved session."""
    target, draft, like = resumed_models(given, saved, inputs.target, inputs.draft, inputs.like)
    settings = inputs.settings.with_saved(saved.settings, keep_draft_tokens="draft_tokens" in given)
    return replace(inputs, settings=settings, target=target, draft=draft, like=like)
