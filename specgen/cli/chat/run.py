"""Runs `specgen chat`: a conversation at a terminal."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from functools import partial

from specgen.cli.chat.autosave import Autosave
from specgen.cli.chat.completion import argument_choices
from specgen.cli.chat.line_editor import LineEditor
from specgen.cli.chat.loading import ChatModels, load_conversation, load_draft, save_costs
from specgen.cli.chat.loop import ChatLoop
from specgen.cli.chat.options import ChatOptions, OutputOptions
from specgen.cli.chat.resume import ResumedSession, resume_session, resumed_models, resumed_settings
from specgen.cli.chat.settings import ChatSettings
from specgen.cli.chat.state import ChatState, ChatTerminal, DisplayOptions
from specgen.cli.request import (
    check_stops,
    parse_draft_length,
    parse_template_variables,
    read_lookup_files,
    system_message,
    template_source,
)
from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.stdout import require_stdout
from specgen.cli.streams import Messages
from specgen.cli.terminal_mode import TerminalMode
from specgen.cli.view_options import ViewOptions
from specgen.core.errors import SettingsError
from specgen.core.settings import ModelSettings
from specgen.render.terminal import is_terminal
from specgen.storage.paths import state_folder
from specgen.storage.saved_chats import SessionFolder
from specgen.text.chat_template import ChatTemplate


@dataclass(frozen=True, slots=True)
class _Inputs:
    """What a chat starts with, as far as the options decide it."""

    settings: ChatSettings
    system: str | None
    template: ChatTemplate
    models: tuple[ModelSettings, ModelSettings]


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
    messages = Messages(options.output.color, options.verbosity.quiet)
    inputs = _read_inputs(options)
    folder, resumed = SessionFolder(), ResumedSession()
    with StopSignals() as signals, TerminalMode() as terminal_mode:
        try:
            if options.session.resume is not None:
                resumed = resume_session(folder, options.session.resume, messages, keeps_file=options.session.save)
            inputs = _with_saved(inputs, options.given, resumed)
            target, draft = inputs.models
            models = ChatModels(target, draft, read_lookup_files(options.drafting.lookup_files, [draft.name]))
            conversation = load_conversation(
                models, inputs.template, inputs.settings, messages, options.verbosity.verbose
            )
            state = ChatState(
                conversation,
                ChatTerminal(messages, signals, terminal_mode),
                Autosave(folder, resumed.file, is_on=options.session.save, warn=messages.warning),
                inputs.settings,
                _display(options.output, options.drafting.calibrate),
                partial(load_draft, conversation, draft, messages),
            )
            history = state_folder() / "history" if options.session.history else None
            loop = ChatLoop(state, LineEditor(history, argument_choices(folder)))
            loop.print_banner(resumed.transcript, inputs.system)
            exit_code = loop.run()
            save_costs(conversation)
            return exit_code
        except Stopped as stopped:
            return stopped.exit_code
        finally:
            if resumed.file is not None:
                resumed.file.close()


def _read_inputs(options: ChatOptions) -> _Inputs:
    options.sampling.resolve(None)  # checks the ranges
    parse_draft_length(options.drafting.draft_tokens)
    check_stops(options.reply.stops)
    settings = ChatSettings(
        options.sampling,
        options.reply.max_new_tokens,
        options.drafting.draft_tokens,
        stops=options.reply.stops,
        strict=options.drafting.strict,
    )
    if options.prompt.chat_template == "none":
        raise SettingsError(
            "invalid --chat-template 'none': a chat needs one",
            "for raw completion: specgen generate --chat-template none",
        )
    template = ChatTemplate(
        template_source(options.prompt.chat_template),
        parse_template_variables(options.prompt.chat_template_variables),
    )
    backend = options.backend.settings()
    models = (
        options.load.target_settings(options.models.target, backend),
        options.load.draft_settings(options.models.draft, backend),
    )
    return _Inputs(settings, system_message(options.prompt.system), template, models)


def _with_saved(inputs: _Inputs, given: frozenset[str], resumed: ResumedSession) -> _Inputs:
    """Replaces what the user did not give with the values of the saved session."""
    models = resumed_models(given, resumed.transcript, *inputs.models)
    return replace(inputs, models=models, settings=resumed_settings(given, resumed.transcript, inputs.settings))


def _display(options: OutputOptions, calibrates: bool) -> DisplayOptions:
    view = ViewOptions(options.view, options.color, options.sanitize, default="live")
    return DisplayOptions(view, options.stats, calibrates)
