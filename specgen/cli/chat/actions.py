"""The commands of a chat: each one is a function over the chat's state.

A command returns the settings of a reply to generate now, or None. One that raises a `SpecgenError` changes nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import get_args

from rich.text import Text

from specgen.cli.chat import file_commands
from specgen.cli.chat.commands import COMMANDS, closest_name
from specgen.cli.chat.reply import measure_baseline
from specgen.cli.chat.state import ChatState
from specgen.core.errors import SettingsError
from specgen.core.events import FinalText, Finish
from specgen.core.settings import ReplySettings
from specgen.render.formatting import format_drafter, format_rate, labelled
from specgen.render.summary import format_summary
from specgen.render.views import ViewName
from specgen.runtime.servers.conversation import ServedConversation

VIEW_NAMES: tuple[ViewName, ...] = get_args(ViewName)
HELP_LINES = (
    "Alt-Enter or Ctrl-J: a new line. Ctrl-X Ctrl-E: edit the line in $EDITOR.",
    'Lines between """ and """ are one message. // sends a literal slash.',
    "Ctrl-C stops a reply; a second Ctrl-C leaves the chat.",
)


def _help(state: ChatState, argument: str) -> None:  # noqa: ARG001
    width = max(len(command.usage) for command in COMMANDS) + 2
    for command in COMMANDS:
        state.print(Text().append(f"{command.usage:<{width}}", "label").append(command.text))
    for line in HELP_LINES:
        state.print(line)


def _clear(state: ChatState, argument: str) -> None:  # noqa: ARG001
    state.conversation.messages = ()
    state.attached_text = ""
    state.last_generation = None
    # The old session stays on disk; the next message starts another one.
    state.autosave.switch_to(None)
    state.print("cleared; the next message starts a new session")


def _undo(state: ChatState, argument: str) -> None:  # noqa: ARG001
    text = state.conversation.take_back()
    if text is None:
        raise SettingsError("there is no message to undo")
    state.save()
    state.print(f"removed: {state.preview(text)}")


def _retry(state: ChatState, argument: str) -> ReplySettings:
    settings = state.settings
    for pair in argument.split():
        name, sign, value = pair.partition("=")
        if not sign:
            raise SettingsError(f"invalid argument {pair!r}", "give NAME=VALUE, as in: /retry temperature=0.8")
        settings = settings.with_value(name, value)
    if not state.conversation.drop_reply():
        raise SettingsError("there is no message to reply to")
    reply_settings = settings.for_reply(state.conversation.sampling_defaults)
    same_prompt = state.last_generation is not None and state.conversation.repeats(state.last_generation)
    if same_prompt and reply_settings.sampling.is_greedy and settings == state.settings:
        state.print("greedy decoding repeats the reply; /retry temperature=0.8 samples another")
    return reply_settings


def _system(state: ChatState, argument: str) -> None:
    conversation = state.conversation
    if argument:
        conversation.set_system(None if argument.lower() == "none" else argument)
        state.save()
    if conversation.system is None:
        state.print("no system message; the chat template may add its own")
    else:
        state.print(f"system message: {state.preview(conversation.system, 200)}")
    state.warn_of_system_role()


def _set(state: ChatState, argument: str) -> None:
    if argument:
        name, _, value = argument.replace("=", " ", 1).partition(" ")
        if not value.strip():
            raise SettingsError(f"/set {name} needs a value", "as in: /set temperature 0.8")
        state.settings = state.settings.with_value(name, value.strip())
        state.save()
    reply = state.reply_settings
    sampling = reply.sampling
    values = {
        "temperature": f"{sampling.temperature:g}{'  (greedy)' if sampling.is_greedy else ''}",
        "top-k": f"{sampling.top_k or 'off'}",
        "top-p": f"{sampling.top_p:g}",
        "min-p": f"{sampling.min_p:g}",
        "repetition-penalty": f"{sampling.repetition_penalty:g}",
        "seed": f"{sampling.seed}",
        "max-new-tokens": f"{reply.max_new_tokens}",
    }
    for name, value in values.items():
        state.print(Text().append(f"{name:<20}", "label").append(value))


def _view(state: ChatState, argument: str) -> None:
    choices = f"choose from {', '.join(VIEW_NAMES)}"
    if not argument:
        state.print(f"view: {state.view.resolved_view}; {choices}")
        return
    name = next((name for name in VIEW_NAMES if name == argument), None)
    if name is None:
        suggestion = closest_name(argument, list(VIEW_NAMES))
        raise SettingsError(f"unknown view {argument}", f"did you mean {suggestion}?" if suggestion else choices)
    state.view = replace(state.view, view=name)
    state.print(f"view: {state.view.resolved_view}")


def _refuse_if_served(state: ChatState, command: str) -> None:
    if isinstance(state.conversation, ServedConversation):
        raise SettingsError(f"{command} has no effect with --server: drafts were set when the server started")


def _draft(state: ChatState, argument: str) -> None:
    _refuse_if_served(state, "/draft")
    if argument:
        for notice in state.replace_draft(argument):
            state.terminal.messages.warning(notice)
        state.is_baseline_stale = True
        state.save()
    info = state.conversation.info(state.reply_settings)
    state.print(f"draft: {format_drafter(info.draft, info.drafter, ascii_only=state.ascii_only)}")


def _draft_length(state: ChatState, argument: str) -> None:
    _refuse_if_served(state, "/k")
    if argument:
        state.settings = state.settings.with_draft_tokens(argument.lower())
        state.is_baseline_stale = True
        state.save()
    length = state.settings.draft_tokens
    state.print("draft length: auto" if length == "auto" else f"draft length: {length} tokens")


def _stats(state: ChatState, argument: str) -> None:
    if argument:
        if argument not in ("on", "off"):
            raise SettingsError(f"invalid argument {argument!r} of /stats", "give on or off")
        state.shows_stats = argument == "on"
        state.print(f"statistics after each reply: {argument}")
        return
    if state.last_generation is None:
        raise SettingsError("there are no statistics yet", "send a message first")
    if state.is_baseline_stale and state.calibrates and measure_baseline(state, state.last_generation):
        state.is_baseline_stale = False
        state.print("measured the baseline again on 8 tokens, because the draft has changed")
    report = state.last_generation.report()
    state.print(format_summary(report, state.terminal.messages.console.width, ascii_only=state.ascii_only))
    counts, totals, num_replies = report.counts, state.conversation.totals, state.conversation.num_replies
    state.print(
        labelled("reused", f"{counts.num_reused_tokens} of {counts.num_prompt_tokens} prompt tokens were in the cache")
    )
    session = (
        f"{num_replies} {'reply' if num_replies == 1 else 'replies'}   {totals.num_emitted} tokens   "
        f"TAR {format_rate(totals.acceptance_rate)}   "
        f"reused {totals.num_reused_tokens} of {totals.num_prompt_tokens} prompt tokens"
    )
    state.print(labelled("session", session))


def _last(state: ChatState, argument: str) -> None:  # noqa: ARG001
    reply = state.conversation.last_reply
    if reply is None:
        raise SettingsError("there is no reply yet")
    view = replace(state.view, view="off").new_view()
    view.show(FinalText(reply.content, Finish("stop")))
    view.close()


def _tokens(state: ChatState, argument: str) -> None:  # noqa: ARG001
    use = state.conversation.context_use()
    if isinstance(state.conversation, ServedConversation) and state.conversation.messages and not use.num_tokens:
        raise SettingsError("the server has not counted these messages", "try again after the next reply")
    if use.window is None:
        state.print(f"{use.num_tokens} tokens; the model does not state the size of its context window")
    else:
        state.print(f"{use.num_tokens} of {use.window} tokens ({100 * use.share:.0f} %)")


ACTIONS: dict[str, Callable[[ChatState, str], ReplySettings | None]] = {
    "/help": _help,
    "/clear": _clear,
    "/undo": _undo,
    "/retry": _retry,
    "/edit": file_commands.edit,
    "/system": _system,
    "/set": _set,
    "/view": _view,
    "/draft": _draft,
    "/k": _draft_length,
    "/stats": _stats,
    "/last": _last,
    "/read": file_commands.read,
    "/save": file_commands.save,
    "/load": file_commands.load,
    "/sessions": file_commands.sessions,
    "/tokens": _tokens,
}
