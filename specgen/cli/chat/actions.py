"""What each command of a chat does, to the chat it is given."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING, get_args

from rich.text import Text

from specgen.cli.chat import files
from specgen.cli.chat.commands import COMMANDS, nearest
from specgen.cli.chat.files import one_line_preview
from specgen.core.errors import SettingsError
from specgen.core.events import FinalText, Finish
from specgen.render.formatting import format_drafter, format_rate
from specgen.render.messages import labelled
from specgen.render.summary import format_summary
from specgen.render.views import ViewName

if TYPE_CHECKING:
    from specgen.cli.chat.loop import Chat
    from specgen.runtime.conversation import ReplySettings

VIEW_NAMES: tuple[str, ...] = get_args(ViewName)
HELP_LINES = (
    "Alt-Enter or Ctrl-J: a new line. Ctrl-X Ctrl-E: edit the line in $EDITOR.",
    'Lines between """ and """ are one message. // sends a literal slash.',
    "Ctrl-C stops a reply, a second one leaves.",
)


def run_command(chat: Chat, name: str, argument: str) -> ReplySettings | None:
    """Run a command.

    Returns:
        Settings of a reply that is now wanted, None if none is.

    Raises:
        SpecgenError: It can't be done; nothing has changed.
    """
    return ACTIONS[name](chat, argument)


def _help(chat: Chat, argument: str) -> None:  # noqa: ARG001
    width = max(len(command.usage) for command in COMMANDS) + 2
    for command in COMMANDS:
        chat.tell(Text().append(f"{command.usage:<{width}}", "label").append(command.text))
    for line in HELP_LINES:
        chat.tell(line)


def _clear(chat: Chat, argument: str) -> None:  # noqa: ARG001
    chat.conversation.messages = ()
    chat.attached = ""
    chat.last = None
    # The old session stays on disk as it is; what follows is another one.
    chat.saving.switch_to(None)
    chat.tell("cleared; the next message starts a new session")


def _undo(chat: Chat, argument: str) -> None:  # noqa: ARG001
    text = chat.conversation.take_back()
    if text is None:
        raise SettingsError("there is nothing to undo")
    chat.save()
    chat.tell(f"took back: {one_line_preview(text, ascii_only=chat.ascii_only)}")


def _retry(chat: Chat, argument: str) -> ReplySettings:
    settings = chat.settings
    for pair in argument.split():
        name, sign, value = pair.partition("=")
        if not sign:
            raise SettingsError(f"{pair} is no NAME=VALUE", "as in: /retry temperature=0.8")
        settings = settings.with_value(name, value)
    if not chat.conversation.drop_reply():
        raise SettingsError("there is no message to reply to")
    wanted = settings.for_reply(chat.conversation.models.pair.sampling_defaults)
    last = chat.last.request if chat.last is not None else None
    same_prompt = last is not None and list(last.prompt_ids) == chat.conversation.prompt_ids()
    if same_prompt and wanted.sampling.is_greedy and settings == chat.settings:
        chat.tell("greedy: the reply will be the same; /retry temperature=0.8 draws another")
    return wanted


def _edit(chat: Chat, argument: str) -> ReplySettings | None:  # noqa: ARG001
    from specgen.cli.chat.line_editor import edit_text

    old = chat.conversation.last_user_text
    with chat.terminal_mode.released():
        new = edit_text(old or "").strip()
    if not new or new == old:
        chat.tell("unchanged; nothing is sent" if new else "empty; nothing is sent")
        return None
    chat.conversation.take_back()
    chat.conversation.say(new)
    chat.tell(f"sending: {one_line_preview(new, ascii_only=chat.ascii_only)}")
    return chat.settings.for_reply(chat.conversation.models.pair.sampling_defaults)


def _system(chat: Chat, argument: str) -> None:
    conversation = chat.conversation
    if argument:
        conversation.set_system(None if argument.lower() == "none" else argument)
        chat.save()
    if conversation.system is None:
        chat.tell("no system message; the chat template may bring its own")
    else:
        chat.tell(f"system message: {one_line_preview(conversation.system, 200, ascii_only=chat.ascii_only)}")
    chat.tell_folding()


def _set(chat: Chat, argument: str) -> None:
    if argument:
        name, _, value = argument.replace("=", " ", 1).partition(" ")
        if not value.strip():
            raise SettingsError(f"/set {name} needs a value", "as in: /set temperature 0.8")
        chat.settings = chat.settings.with_value(name, value.strip())
        chat.save()
    reply = chat.settings.for_reply(chat.conversation.models.pair.sampling_defaults)
    sampling = reply.sampling
    shown = {
        "temperature": f"{sampling.temperature:g}{'  (greedy)' if sampling.is_greedy else ''}",
        "top-k": f"{sampling.top_k or 'off'}",
        "top-p": f"{sampling.top_p:g}",
        "min-p": f"{sampling.min_p:g}",
        "repetition-penalty": f"{sampling.repetition_penalty:g}",
        "seed": f"{sampling.seed}",
        "max-new-tokens": f"{reply.max_new_tokens}",
    }
    for name, value in shown.items():
        chat.tell(Text().append(f"{name:<20}", "label").append(value))


def _view(chat: Chat, argument: str) -> None:
    known = f"there are {', '.join(VIEW_NAMES)}"
    if not argument:
        chat.tell(f"view: {chat.look.shown}; {known}")
        return
    if argument not in VIEW_NAMES:
        near = nearest(argument, list(VIEW_NAMES))
        raise SettingsError(f"there is no view {argument}", f"did you mean {near}?" if near else known)
    chat.look.view = next(view for view in get_args(ViewName) if view == argument)
    chat.tell(f"view: {chat.look.shown}")


def _draft(chat: Chat, argument: str) -> None:
    if argument:
        for notice in chat.open_draft(argument):
            chat.messages.warning(notice)
        chat.is_baseline_stale = True
        chat.save()
    models = chat.conversation.models
    drafter = models.pair.settings.drafter
    chat.tell(f"draft: {format_drafter(models.draft_info, drafter, ascii_only=chat.ascii_only)}")


def _k(chat: Chat, argument: str) -> None:
    if argument:
        chat.settings = chat.settings.with_draft_tokens(argument.lower())
        chat.is_baseline_stale = True
        chat.save()
    longest = chat.settings.draft_tokens
    chat.tell("drafts as long as pays (auto)" if longest == "auto" else f"drafts of {longest} tokens")


def _stats(chat: Chat, argument: str) -> None:
    if argument:
        if argument not in ("on", "off"):
            raise SettingsError(f"/stats {argument} is neither on nor off")
        chat.look.stats = argument == "on"
        chat.tell(f"a line of figures after each reply: {argument}")
        return
    if chat.last is None:
        raise SettingsError("there are no figures yet", "they come with the first reply")
    if chat.calibrate_again():
        chat.tell("the target alone was timed anew, on 8 tokens, since the draft was changed")
    report = chat.last.report()
    chat.tell(format_summary(report, chat.messages.console.width, ascii_only=chat.ascii_only))
    counts, totals = report.counts, chat.conversation.totals
    chat.tell(
        labelled("reused", f"{counts.num_reused_tokens} of {counts.num_prompt_tokens} prompt tokens were in the cache")
    )
    replies = f"{chat.conversation.num_replies} {'reply' if chat.conversation.num_replies == 1 else 'replies'}"
    chat.tell(
        labelled(
            "session",
            f"{replies}   {totals.num_emitted} tokens   TAR {format_rate(totals.acceptance_rate)}   "
            f"reused {totals.num_reused_tokens} of {totals.num_prompt_tokens} prompt tokens",
        )
    )


def _last(chat: Chat, argument: str) -> None:  # noqa: ARG001
    reply = chat.conversation.last_reply
    if reply is None:
        raise SettingsError("there is no reply yet")
    look = replace(chat.look, view="off")
    view = look.new_view()
    view.show(FinalText(reply.content, Finish("stop")))
    view.close()


def _tokens(chat: Chat, argument: str) -> None:  # noqa: ARG001
    use = chat.conversation.context_use()
    if use.window is None:
        chat.tell(f"{use.num_tokens} tokens; the model names no window")
    else:
        chat.tell(f"{use.num_tokens} of {use.window} tokens ({100 * use.share:.0f} %)")


ACTIONS: dict[str, Callable[[Chat, str], ReplySettings | None]] = {
    "/help": _help,
    "/clear": _clear,
    "/undo": _undo,
    "/retry": _retry,
    "/edit": _edit,
    "/system": _system,
    "/set": _set,
    "/view": _view,
    "/draft": _draft,
    "/k": _k,
    "/stats": _stats,
    "/last": _last,
    "/read": files.read,
    "/save": files.save,
    "/load": files.load,
    "/sessions": files.sessions,
    "/tokens": _tokens,
}
