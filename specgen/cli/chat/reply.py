"""Runs one reply of a chat and shows it. Handles Ctrl-C and Ctrl-Z on the way."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING

from specgen.cli.chat.state import ChatState
from specgen.cli.signals import Stopped
from specgen.core.errors import OutputError, SpecgenError

if TYPE_CHECKING:
    from specgen.runtime.generation import Generation


class ReplyAborted(BaseException):
    """Ctrl-C before the end of the prefill: there is no text to keep, and the rest of the prefill is not needed."""


def show_reply(state: ChatState, generation: Generation) -> BaseException | None:
    """Runs a reply and shows it.

    Returns:
        `ReplyAborted`, `Stopped` or an error if one of them ended the reply; None if it ended by itself or at the
        first Ctrl-C.
    """
    signals, mode = state.terminal.signals, state.terminal.mode

    def stop() -> None:
        if not generation.counts.num_prompt_tokens:
            raise ReplyAborted
        generation.interrupt()

    view = state.display.view.new_view()
    generation.clock = mode.without_suspension(generation.clock)
    mode.was_suspended = False
    signals.listener = stop
    try:
        for event in state.conversation.stream(generation):
            if mode.was_suspended:
                # The shell has written to the terminal since, so the cursor is no longer at the end of the old view.
                mode.was_suspended = False
                view = state.display.view.new_view()
            view.show(event)
    except ReplyAborted as aborted:
        state.conversation.models.reset_caches()
        return aborted
    except (Stopped, SpecgenError) as error:
        return error
    finally:
        signals.listener = None
        with suppress(OutputError, BrokenPipeError):
            view.close()
    return None
