"""The loop of `specgen chat`: reads lines, runs commands, generates replies, and saves the session."""

from __future__ import annotations

import sys
import termios
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rich.text import Text

from specgen.cli.chat.actions import run_command
from specgen.cli.chat.calibration import is_doubtful, update_baseline
from specgen.cli.chat.commands import Command, EmptyLine, UnknownCommand, UserText, parse_line
from specgen.cli.chat.line_reader import read_line
from specgen.cli.chat.reply import show_reply
from specgen.cli.chat.state import ChatState
from specgen.cli.signals import Stopped, StopSignals
from specgen.core.errors import SettingsError, SpecgenError
from specgen.render.summary import format_turn
from specgen.storage.transcript import ChatMessage, Transcript

if TYPE_CHECKING:
    from specgen.cli.chat.line_editor import LineEditor
    from specgen.runtime.generation import Generation
    from specgen.runtime.reply_settings import ReplySettings

CTRL_C_EXIT_CODE, HANGUP_EXIT_CODE = 130, 129


@dataclass(frozen=True, slots=True)
class ChatLoop:
    """Runs a chat until the user leaves.

    Args:
        state: Changed by commands and replies.
        editor: Reads the lines.
    """

    state: ChatState
    editor: LineEditor

    def print_banner(self, resumed: Transcript | None, system: str | None) -> None:
        """Prints what runs; continues a saved session, and sets a system message that replaces the saved one."""
        state = self.state
        conversation, messages = state.conversation, state.terminal.messages
        messages.chat_banner(conversation.info(state.reply_settings), state.display.view.resolved_view)
        for notice in conversation.models.notices:
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
                    text = read_line(self.editor, signals)
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
        match parse_line(text):
            case EmptyLine():
                pass
            case UnknownCommand(name, _) as unknown:
                state.terminal.messages.error(SettingsError(f"unknown command {name}", unknown.hint))
            case UserText(message):
                before = state.conversation.messages
                state.conversation.say(f"{state.attached_text}{message}")
                if self._reply(before):
                    state.attached_text = ""
            case Command("/exit", _):
                return False
            case Command(name, argument):
                self._run_command(name, argument)
        return True

    def _run_command(self, name: str, argument: str) -> None:
        before = self.state.conversation.messages
        try:
            reply_settings = run_command(self.state, name, argument)
        except SpecgenError as error:
            self.state.terminal.messages.error(error)
            return
        except Stopped as stopped:
            if stopped.exit_code != CTRL_C_EXIT_CODE:
                raise
            self.state.terminal.signals.signum = None
            self.state.print("stopped")
            return
        if reply_settings is not None:
            self._reply(before, reply_settings)

    def _reply(self, before: tuple[ChatMessage, ...], settings: ReplySettings | None = None) -> bool:
        """Generates a reply; restores the messages to `before` if it has no token.

        Returns:
            Whether there is a reply.

        Raises:
            Stopped: The program has to end; the part of the reply that exists is saved.
        """
        conversation, signals = self.state.conversation, self.state.terminal.signals
        conversation.settings = self.state.reply_settings
        try:
            generation = conversation.begin_reply(settings)
        except SpecgenError as error:
            conversation.messages = before
            self.state.terminal.messages.error(error)
            return False
        failure = show_reply(self.state, generation)
        message = conversation.end_reply(generation)
        signum, signals.signum = signals.signum, None
        if isinstance(failure, Stopped):
            raise failure
        if signum is not None and 128 + signum != CTRL_C_EXIT_CODE:
            raise Stopped(signum)
        for notice in generation.notices:
            self.state.terminal.messages.warning(notice)
        if isinstance(failure, SpecgenError):
            self.state.terminal.messages.error(failure)
        if message is None:
            conversation.messages = before
            self.state.print("no reply; your message was removed, and the Up key brings it back")
        else:
            # After Ctrl-C the user waits for a prompt, and a second Ctrl-C leaves: no measurement then.
            self._finish_reply(generation, may_calibrate=signum is None)
        if signals.signum is not None:
            raise Stopped(signals.signum)
        self.state.save()
        return message is not None

    def _finish_reply(self, generation: Generation, *, may_calibrate: bool) -> None:
        """Measures the baseline if necessary, then prints the statistics and the state of the context window."""
        state, messages = self.state, self.state.terminal.messages
        state.last_generation = generation
        note = update_baseline(state, generation) if may_calibrate else None
        report = generation.report()
        state.is_baseline_doubtful = is_doubtful(report)
        if state.display.stats:
            messages.info(format_turn(report, ascii_only=state.ascii_only))
            if note is not None:
                messages.info(note)
        use = state.conversation.context_use()
        if use.is_nearly_full:
            share = f"{100 * use.share:.0f} % full" if use.share < 1 else "full"
            messages.warning(
                f"the context is {share} ({use.num_tokens} of {use.window} tokens); free some with /undo or /clear"
            )
        messages.info(Text())

    def _leave(self, exit_code: int = 0) -> int:
        """Saves and closes the session; returns the exit code."""
        state, messages = self.state, self.state.terminal.messages
        state.save()
        state.autosave.close()
        if exit_code in (0, CTRL_C_EXIT_CODE) and (name := state.autosave.resume_name):
            messages.info(Text(f"saved; continue with: specgen chat --resume {name}", style="muted"))
        if state.autosave.failure is not None and exit_code == 0:
            messages.error(state.autosave.failure)
            return state.autosave.failure.exit_code
        return exit_code


def end_of_input_code(signals: StopSignals) -> int:
    """Returns the exit code at the end of input: a closed terminal looks like Ctrl-D, but exits as after SIGHUP."""
    try:
        termios.tcgetattr(sys.stdin.fileno())
    except (OSError, ValueError, termios.error):
        return HANGUP_EXIT_CODE
    return signals.exit_code
