"""Runs one reply of a chat on the screen: a generation in, what ended it out. Ctrl-C and Ctrl-Z are dealt with here."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING

from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.terminal_mode import TerminalMode
from specgen.core.errors import OutputError, SpecgenError
from specgen.render.terminal import ColorMode, is_terminal, make_console
from specgen.render.view import View
from specgen.render.views import SanitizeMode, ViewName, choose_view, resolve_view

if TYPE_CHECKING:
    from specgen.runtime.conversation import Conversation
    from specgen.runtime.generation import Generation


class ReplyAborted(BaseException):
    """Ctrl-C before the prompt was read: there is nothing to keep, and nobody wants to wait for the rest of it."""


@dataclass
class DisplayOptions:
    """How replies are shown."""

    view: ViewName = "auto"
    color: ColorMode = "auto"
    sanitize: SanitizeMode = "auto"
    stats: bool = True
    calibrates: bool = True

    @property
    def shown(self) -> ViewName:
        """The view that `auto` means now."""
        return resolve_view(self.view, is_terminal=is_terminal(sys.stdout), color=self.color, default="live")

    def new_view(self) -> View:
        """A view for one reply, for what stdout is now."""
        return choose_view(
            self.shown,
            console=make_console(sys.stdout, self.color, os.environ),
            binary=sys.stdout.buffer,
            is_terminal=is_terminal(sys.stdout),
            color=self.color,
            sanitize_mode=self.sanitize,
        )


def show_reply(
    conversation: Conversation,
    generation: Generation,
    look: DisplayOptions,
    signals: StopSignals,
    terminal_mode: TerminalMode,
) -> BaseException | None:
    """Run a reply and show it.

    Returns:
        What ended it, if it did not end by itself or at the first Ctrl-C: `ReplyAborted`, `Stopped` or an error.
    """

    def stop() -> None:
        if not generation.counts.num_prompt_tokens:
            raise ReplyAborted
        generation.interrupt()

    view = look.new_view()
    generation.clock = terminal_mode.without_suspension(generation.clock)
    terminal_mode.was_suspended = False
    signals.listener = stop
    try:
        for event in conversation.stream(generation):
            if terminal_mode.was_suspended:
                # The shell has written since, so an erasable tail of the old view is somewhere else now.
                terminal_mode.was_suspended = False
                view = look.new_view()
            view.show(event)
    except ReplyAborted as aborted:
        conversation.forget_caches()
        return aborted
    except (Stopped, SpecgenError) as error:
        return error
    finally:
        signals.listener = None
        with suppress(OutputError, BrokenPipeError):
            view.close()
    return None
