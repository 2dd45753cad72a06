"""`specgen chat`: options in, a conversation until the person leaves. Everything heavy is imported inside."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from specgen.cli import engine_options as e
from specgen.cli import options as o
from specgen.cli.signals import Stopped, StopSignals
from specgen.core.errors import SettingsError
from specgen.core.settings import BackendSettings, ModelSettings

if TYPE_CHECKING:
    from specgen.cli.chat.line_editor import Choices
    from specgen.cli.chat.settings import ChatSettings
    from specgen.cli.streams import Messages
    from specgen.render.progress import LoadProgress
    from specgen.runtime.conversation import Conversation
    from specgen.storage.saved_chats import SessionFolder
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
        raise SettingsError("chat needs a terminal, and stdin is none", 'use: specgen generate "your question"')
    from specgen.cli.chat.autosave import Autosave
    from specgen.cli.chat.line_editor import LineEditor
    from specgen.cli.chat.loop import Chat
    from specgen.cli.chat.reply import DisplayOptions
    from specgen.cli.chat.resume import Resumed, resume_session, resumed_models, resumed_settings
    from specgen.cli.chat.settings import DEFAULT_MAX_NEW_TOKENS, ChatSettings
    from specgen.cli.request import SamplingOptions, check_stops, draft_length_from, lookup_texts_from, system_message
    from specgen.cli.streams import Messages
    from specgen.cli.terminal_mode import TerminalMode
    from specgen.loading.libraries import gc_paused
    from specgen.render.progress import LoadProgress
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
    folder, resumed, exit_code = SessionFolder(), Resumed(), 0
    with StopSignals() as signals, TerminalMode() as terminal_mode:
        try:
            if resume is not None:
                resumed = resume_session(folder, resume, messages, keeps=save)
            model_settings = resumed_models(context, resumed.transcript, target_settings, draft_settings)
            lookup_texts = lookup_texts_from(lookup_file, [model_settings[1].name])
            settings = resumed_settings(context, resumed.transcript, settings)
            loading = LoadProgress(messages.console, quiet=quiet, verbose=verbose > 0)
            with loading as progress, gc_paused():
                conversation = _load(model_settings, lookup_texts, template, settings, progress, verbose=verbose > 1)
            running = Chat(
                conversation,
                LineEditor(state_folder() / "history" if history else None, _choices(folder)),
                messages,
                signals,
                Autosave(folder, resumed.file, is_on=save, warn=messages.warning),
                settings,
                DisplayOptions(view, color, sanitize, stats, calibrate),
                terminal_mode,
                partial(_open_draft, conversation, model_settings[1], messages),
            )
            running.print_banner(resumed.transcript, given_system)
            exit_code = running.run()
            _keep_costs(conversation)
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


def _load(
    model_settings: tuple[ModelSettings, ModelSettings],
    lookup_texts: tuple[str, ...],
    template: ChatTemplate,
    settings: ChatSettings,
    progress: LoadProgress,
    *,
    verbose: bool,
) -> Conversation:
    progress.stage("starting")
    from specgen.loading.libraries import prepare_libraries

    prepare_libraries(verbose)
    from specgen.cli.request import pair_settings
    from specgen.runtime import learned_costs
    from specgen.runtime.conversation import Conversation
    from specgen.runtime.loaded_models import load_models
    from specgen.runtime.pair import resolve_pair

    pair = resolve_pair(pair_settings(*model_settings, lookup_texts), progress)
    template.check(pair.tokenizer, pair.target.name)
    models = load_models(pair, progress)
    learned_costs.load(models)
    return Conversation(models, settings.for_reply(pair.sampling_defaults), template)


def _choices(folder: SessionFolder) -> dict[str, Choices]:
    """Arguments that can be completed, by command."""
    from specgen.cli.chat.actions import VIEW_NAMES
    from specgen.cli.chat.settings import SETTING_NAMES

    return {
        "/draft": lambda: ("auto", "lookup", "none"),
        "/k": lambda: ("auto",),
        "/load": lambda: [entry.name for entry in folder.entries()],
        "/retry": lambda: [f"{name}=" for name in SETTING_NAMES],
        "/set": lambda: SETTING_NAMES,
        "/stats": lambda: ("on", "off"),
        "/system": lambda: ("none",),
        "/view": lambda: VIEW_NAMES,
    }


def _open_draft(conversation: Conversation, like: ModelSettings, messages: Messages, name: str) -> list[str]:
    """Change what drafts; weight format and device as for the draft the chat began with."""
    from specgen.cli.request import pair_settings
    from specgen.loading.libraries import gc_paused
    from specgen.render.progress import LoadProgress
    from specgen.runtime import learned_costs

    models = conversation.models
    wanted = pair_settings(models.pair.settings.target, replace(like, name=os.path.expanduser(name), revision=None))
    with LoadProgress(messages.console, quiet=messages.quiet) as progress, gc_paused():
        pair = models.pair.with_drafter(wanted.drafter, wanted.draft, progress)
        _keep_costs(conversation)
        notices = models.replace_drafter(pair, progress)
    learned_costs.load_draft(models)
    return notices


def _keep_costs(conversation: Conversation) -> None:
    from specgen.runtime import learned_costs

    learned_costs.save(conversation.models)
