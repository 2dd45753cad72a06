"""Generates one reply of a chat and shows it, and times the target alone for its speedup."""

from __future__ import annotations

import signal
from contextlib import suppress
from typing import TYPE_CHECKING

from rich.text import Text

from specgen.cli.signals import Stopped
from specgen.core.doubt import find_doubt
from specgen.core.errors import OutputError, ServerError, SpecgenError
from specgen.core.settings import ReplySettings
from specgen.render.summary import format_turn
from specgen.storage.transcript import ChatMessage

if TYPE_CHECKING:
    from specgen.cli.chat.state import ChatState
    from specgen.runtime.answer import Answer


class _PrefillStopped(BaseException):
    """Ctrl-C before the end of the prefill: there is no text to keep, and the rest of the prefill is not needed."""


def generate_reply(state: ChatState, before: tuple[ChatMessage, ...], settings: ReplySettings | None = None) -> bool:
    """Generates and shows the next reply; returns whether it has a token.

    Args:
        state: Its conversation gets the reply.
        before: The messages to restore if the model gives no reply.
        settings: For this reply only; default: the chat's.

    Raises:
        Stopped: The program has to end; the part of the reply that exists is in the conversation.
    """
    conversation, messages, signals = state.conversation, state.terminal.messages, state.terminal.signals
    try:
        generation = conversation.begin_reply(settings or state.reply_settings)
    except SpecgenError as error:
        conversation.messages = before
        messages.error(error)
        return False
    failure = _show(state, generation)
    message = conversation.end_reply(generation)
    signum, signals.signum = signals.signum, None
    if isinstance(failure, Stopped):
        raise failure
    if signum is not None and signum != signal.SIGINT:
        raise Stopped(signum)
    for notice in generation.notices:
        messages.warning(notice)
    if failure is not None:
        messages.error(failure)
    if message is None:
        conversation.messages = before
        state.print("no reply; your message was removed, and the Up key brings it back")
    else:
        # After Ctrl-C the user waits for a prompt, and a second Ctrl-C leaves: no measurement then.
        _finish(state, generation, may_calibrate=signum is None)
    if signals.signum is not None:
        raise Stopped(signals.signum)
    state.save()
    return message is not None


def _show(state: ChatState, generation: Answer) -> Stopped | SpecgenError | None:
    """Runs a reply and shows it. Handles Ctrl-C and Ctrl-Z on the way.

    Returns:
        What ended the reply; None if it ended by itself or at the first Ctrl-C.
    """
    signals, mode = state.terminal.signals, state.terminal.mode

    def stop() -> None:
        if not (generation.counts.num_prompt_tokens or generation.has_begun):
            raise _PrefillStopped
        generation.interrupt()

    view = state.view.new_view()
    generation.clock = mode.without_suspension(generation.clock)
    mode.was_suspended = False
    signals.listener = stop
    try:
        for event in state.conversation.stream(generation):
            if mode.was_suspended:
                # The shell has written to the terminal since, so the cursor is no longer at the end of the old view.
                mode.was_suspended = False
                view = state.view.new_view()
            view.show(event)
    except _PrefillStopped:
        state.conversation.abandon_reply()
    except (Stopped, SpecgenError) as error:
        return error
    finally:
        signals.listener = None
        with suppress(OutputError, BrokenPipeError):
            view.close()
    return None


def _finish(state: ChatState, generation: Answer, *, may_calibrate: bool) -> None:
    """Measures the baseline if necessary, then prints the statistics and the state of the context window."""
    conversation, messages = state.conversation, state.terminal.messages
    state.last_generation = generation
    is_first = conversation.baseline is None
    is_due = may_calibrate and state.calibrates and (is_first or state.is_baseline_doubtful)
    is_measured = is_due and measure_baseline(state, generation)
    report = generation.report()
    state.is_baseline_doubtful = report.counts.num_drafted > 0 and find_doubt(report) is not None
    if state.shows_stats:
        messages.info(format_turn(report, ascii_only=state.ascii_only))
        if is_measured:
            again = "" if is_first else " again"
            on = f" on {report.baseline.num_tokens} tokens" if report.baseline else ""
            messages.info(Text(f"(measured the baseline{again}{on}, for the speedup)", style="muted"))
    use = conversation.context_use()
    if use.is_nearly_full:
        share = f"{100 * use.share:.0f} % full" if use.share < 1 else "full"
        messages.warning(
            f"the context is {share} ({use.num_tokens} of {use.window} tokens); free some with /undo or /clear"
        )
    messages.info(Text())


def measure_baseline(state: ChatState, generation: Answer) -> bool:
    """Times the target alone after a reply; returns whether that succeeded. Ctrl-C ends it early."""
    signals, messages, num_shown = state.terminal.signals, state.terminal.messages, len(generation.notices)
    signals.listener = generation.interrupt
    try:
        is_measured = state.conversation.calibrate(generation) is not None
        for notice in generation.notices[num_shown:]:
            messages.warning(notice)
        return is_measured
    except ServerError as error:
        messages.warning(f"the baseline was not measured: {error.message}")
        return False
    finally:
        signals.listener = None
        if signals.signum == signal.SIGINT:
            signals.signum = None
