"""`specgen chat`: options in, a conversation until the person leaves. Everything heavy is imported inside."""

from __future__ import annotations

import sys
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from specgen.cli import engine_options as e
from specgen.cli import options as o
from specgen.cli.signals import Stopped, StopSignals
from specgen.core.errors import SettingsError
from specgen.core.settings import BackendSettings, ModelSettings

if TYPE_CHECKING:
    from specgen.text.chat_template import ChatTemplate

EPILOG = """Examples:

specgen chat

specgen chat -t Qwen/Qwen2.5-1.5B-Instruct -d Qwen/Qwen2.5-0.5B-Instruct --system "Be brief."

specgen chat --resume last"""

SESSION = "Session"


def chat(
    context: typer.Context,
    resume: Annotated[
        str | None,
        typer.Option(
            "--resume",
            metavar="last|NAME|FILE",
            help="Go on with a saved session, with its models where none are given.",
            rich_help_panel=SESSION,
        ),
    ] = None,
    save: Annotated[
        bool, typer.Option("--save/--no-save", help="Save the session after every turn.", rich_help_panel=SESSION)
    ] = True,
    history: Annotated[
        bool,
        typer.Option(
            "--history/--no-history",
            envvar="SPECGEN_HISTORY",
            help="Keep the lines you type, for the Up key. A line that starts with a space is never kept.",
            rich_help_panel=SESSION,
        ),
    ] = True,
    system: o.System = None,
    system_file: o.SystemFile = None,
    chat_template: Annotated[
        str,
        typer.Option(
            "--chat-template",
            metavar="auto|FILE",
            help="The model's own template, or a Jinja file.",
            rich_help_panel=o.INPUT,
        ),
    ] = "auto",
    chat_template_kwargs: o.ChatTemplateKwargs = None,
    target: o.Target = "",
    draft: o.DraftName = o.DEFAULT_DRAFT,
    quant: o.Quant = "auto",
    draft_quant: o.DraftQuant = "auto",
    dtype: o.Dtype = "auto",
    device: o.Device = "auto",
    draft_device: o.DraftDevice = None,
    revision: o.Revision = None,
    draft_revision: o.DraftRevision = None,
    offline: o.Offline = False,
    backend: e.Backend = "auto",
    gpu_layers: e.GpuLayers = None,
    context_size: e.ContextSize = None,
    threads: e.Threads = None,
    draft_tokens: o.DraftTokens = o.DEFAULT_DRAFT_TOKENS,
    lookup_file: o.LookupFiles = None,
    calibrate: Annotated[
        bool,
        typer.Option(
            "--calibrate/--no-calibrate",
            help="Time the target alone once, on 8 tokens, so that replies show a speedup.",
            rich_help_panel=o.SPECULATION,
        ),
    ] = True,
    strict: o.Strict = False,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(
            "--max-new-tokens",
            "--max-tokens",
            "-n",
            min=1,
            help="Longest reply, in tokens; default 1024, or what the model's window leaves.",
            rich_help_panel=o.SAMPLING,
            show_default=False,
        ),
    ] = None,
    temperature: o.Temperature = None,
    top_k: o.TopK = None,
    top_p: o.TopP = None,
    min_p: o.MinP = None,
    repetition_penalty: o.RepetitionPenalty = None,
    seed: o.Seed = None,
    same_text: o.SameText = None,
    stop: o.Stop = None,
    view: Annotated[
        Literal["auto", "inline", "live", "text", "steps", "off"],
        typer.Option(
            "--view", envvar="SPECGEN_VIEW", help="How replies are shown. auto: live.", rich_help_panel=o.OUTPUT
        ),
    ] = "auto",
    color: o.Color = "auto",
    sanitize: o.Sanitize = "auto",
    stats: o.Stats = True,
    quiet: o.Quiet = False,
    verbose: o.Verbose = 0,
) -> None:
    """Talk with a model: its caches live on between turns, and you see what the draft saves."""
    from specgen.cli.stdout import require_stdout
    from specgen.render.terminal import is_terminal

    require_stdout("the replies")
    if not is_terminal(sys.stdin):
        raise SettingsError("chat needs a terminal, but stdin is not one", 'use: specgen generate "your question"')
    from specgen.cli.chat.autosave import Autosave
    from specgen.cli.chat.completion import argument_choices
    from specgen.cli.chat.line_editor import LineEditor
    from specgen.cli.chat.loading import ChatModels, load_conversation, load_draft, save_costs
    from specgen.cli.chat.loop import ChatLoop
    from specgen.cli.chat.resume import ResumedSession, resume_session, resumed_models, resumed_settings
    from specgen.cli.chat.settings import DEFAULT_MAX_NEW_TOKENS, ChatSettings
    from specgen.cli.chat.state import ChatState, ChatTerminal, DisplayOptions
    from specgen.cli.request import SamplingOptions, check_stops, draft_length_from, lookup_texts_from, system_message
    from specgen.cli.streams import Messages
    from specgen.cli.terminal_mode import TerminalMode
    from specgen.cli.view_options import ViewOptions
    from specgen.storage.paths import state_folder
    from specgen.storage.saved_chats import SessionFolder

    messages = Messages(color, quiet)
    sampling = SamplingOptions(temperature, top_k, top_p, min_p, repetition_penalty, seed, same_text)
    sampling.resolve(None)
    draft_length_from(draft_tokens)
    check_stops(stop or [])
    length = max_new_tokens or DEFAULT_MAX_NEW_TOKENS
    settings = ChatSettings(sampling, length, draft_tokens, stops=tuple(stop or ()), strict=strict)
    given_system = system_message(system, system_file)
    template = _template(chat_template, chat_template_kwargs)
    engine = BackendSettings(backend, gpu_layers, context_size, threads)
    target_settings = ModelSettings(target, quant, dtype, device, revision, offline, engine)
    draft_settings = ModelSettings(draft, draft_quant, dtype, draft_device or device, draft_revision, offline, engine)
    display = DisplayOptions(ViewOptions(view, color, sanitize, default="live"), stats, calibrate)
    folder, resumed, exit_code = SessionFolder(), ResumedSession(), 0
    with StopSignals() as signals, TerminalMode() as terminal_mode:
        try:
            if resume is not None:
                resumed = resume_session(folder, resume, messages, keeps_file=save)
            target_settings, draft_settings = resumed_models(
                context, resumed.transcript, target_settings, draft_settings
            )
            settings = resumed_settings(context, resumed.transcript, settings)
            lookup_texts = lookup_texts_from(lookup_file, [draft_settings.name])
            chosen = ChatModels(target_settings, draft_settings, lookup_texts)
            conversation = load_conversation(chosen, template, settings, messages, verbose)
            state = ChatState(
                conversation,
                ChatTerminal(messages, signals, terminal_mode),
                Autosave(folder, resumed.file, is_on=save, warn=messages.warning),
                settings,
                display,
                partial(load_draft, conversation, draft_settings, messages),
            )
            editor = LineEditor(state_folder() / "history" if history else None, argument_choices(folder))
            loop = ChatLoop(state, editor)
            loop.print_banner(resumed.transcript, given_system)
            exit_code = loop.run()
            save_costs(conversation)
        except Stopped as stopped:
            exit_code = stopped.exit_code
        finally:
            if resumed.file is not None:
                resumed.file.close()
    raise typer.Exit(exit_code)


def _template(choice: str, options: str | None) -> ChatTemplate:
    from specgen.cli.request import template_options_from, template_source
    from specgen.text.chat_template import ChatTemplate

    if choice == "none":
        raise SettingsError("a chat needs a chat template", "for raw completion: specgen generate --chat-template none")
    return ChatTemplate(template_source(choice), template_options_from(options))
