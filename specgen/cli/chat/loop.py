"""The loop of `specgen chat`: reads lines, sends messages and runs commands."""

from __future__ import annotations

import signal
import sys
import termios
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from specgen.cli.chat.actions import ACTIONS
from specgen.cli.chat.commands import ChatCommand, parse_line
from specgen.cli.chat.reply import generate_reply
from specgen.cli.chat.state import ChatState
from specgen.cli.signals import Stopped, StopSignals
from specgen.core.errors import SettingsError, SpecgenError
from specgen.core.exit_codes import ExitCode
from specgen.storage.transcript import Transcript

if TYPE_CHECKING:
    from specgen.cli.chat.line_editor import LineEditor


@dataclass(frozen=True, slots=True)
class ChatLoop:
    """Runs a chat until the user leaves."""

    state: ChatState
    editor: LineEditor

    def print_banner(self, resumed: Transcript | None, system: str | None) -> None:
        """Prints what runs; continues a saved session, and sets a system message that replaces the saved one."""
        state = self.state
        conversation, messages = state.conversation, state.terminal.messages
        messages.chat_banner(conversation.info(state.reply_settings), state.view.resolved_view)
        for notice in conversation.first_notices:
            messages.warning(notice)
        if resumed is not None:
            state.resume_from(resumed)
        if system is not None:
            conversation.set_system(system)
        state.warn_of_system_role()

    def run(self) -> int:
        """Reads lines and replies until the user leaves; returns the exit code."""
        signals = self.state.terminal.signals
        try:
            while True:
                try:
                    text = _read_line(self.editor, signals)
                except KeyboardInterrupt:
                    self.state.print("Ctrl-D or /exit leaves the chat")
                    continue
                if not self.handle_line(text):
                    return self._leave()
        except EOFError:
            return self._leave(end_of_input_code(signals))
        except Stopped as stopped:
            return self._leave(stopped.exit_code)

    def handle_line(self, text: str) -> bool:
        """Handles an entry; returns False for `/exit`."""
        state = self.state
        try:
            line = parse_line(text)
        except SettingsError as error:
            state.terminal.messages.error(error)
            return True
        if isinstance(line, ChatCommand):
            if line.name == "/exit":
                return False
            self._run_command(line)
        elif line:
            before = state.conversation.messages
            state.conversation.say(f"{state.attached_text}{line}")
            if generate_reply(state, before):
                state.attached_text = ""
        return True

    def _run_command(self, command: ChatCommand) -> None:
        state = self.state
        before = state.conversation.messages
        try:
            reply_settings = ACTIONS[command.name](state, command.argument)
        except SpecgenError as error:
            state.terminal.messages.error(error)
            return
        except Stopped as stopped:
            if stopped.exit_code != ExitCode.CTRL_C:
                raise
            state.terminal.signals.signum = None
            state.print("stopped")
            return
        if reply_settings is not None:
            generate_reply(state, before, reply_settings)

    def _leave(self, exit_code: int = 0) -> int:
        """Saves and closes the session; returns the exit code."""
        state, messages = self.state, self.state.terminal.messages
        state.save()
        state.autosave.close()
        if exit_code in (0, ExitCode.CTRL_C) and (name := state.autosave.resume_name):
            messages.info(Text(f"saved; continue with: specgen chat --resume {name}", style="muted"))
        if state.autosave.failure is not None and exit_code == 0:
            messages.error(state.autosave.failure)
            return state.autosave.failure.exit_code
        return exit_code


def _read_line(editor: LineEditor, signals: StopSignals) -> str:
    """Waits for a line, or raises the signal that arrived instead. Ctrl-C is not left pending in `signals`.

    Raises:
        KeyboardInterrupt: Ctrl-C, and no other signal.
        Stopped: Another signal.
        EOFError: End of input.
    """
    received: list[int] = []

    def on_signal() -> None:
        # Reset, so that a later signal, maybe of another kind, calls this again instead of raising in the event loop.
        signum, signals.signum = signals.signum or 0, None
        received.append(signum)
        if not editor.interrupt():
            raise Stopped(signum)

    signals.listener = on_signal
    text = ""
    try:
        text = editor.read()
    except Stopped as stopped:
        received.append(stopped.exit_code - 128)
    except KeyboardInterrupt:
        received.append(signal.SIGINT)
    finally:
        signals.listener = None
        signals.signum = next((signum for signum in received if signum != signal.SIGINT), None)
    if signals.signum is not None:
        raise Stopped(signals.signum)
    if received:
        raise KeyboardInterrupt
    return text


def end_of_input_code(signals: StopSignals) -> int:
    """Returns the exit code at the end of input: a closed terminal looks like Ctrl-D, but exits as after SIGHUP."""
    try:
        termios.tcgetattr(sys.stdin.fileno())
    except (OSError, ValueError, termios.error):
        return ExitCode.HANGUP
    return signals.exit_code
