"""The loop of `specgen chat`: lines in, replies and what commands say out. Heavy modules are already there."""

from __future__ import annotations

import sys
import termios
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.text import Text

from specgen.cli.chat.actions import run_command
from specgen.cli.chat.autosave import Autosave, transcript_of, whole_name
from specgen.cli.chat.commands import Command, Nothing, Say, Unknown, parse_line
from specgen.cli.chat.files import one_line_preview
from specgen.cli.chat.lines import read_line
from specgen.cli.chat.reply import DisplayOptions, show_reply
from specgen.cli.chat.settings import ChatSettings
from specgen.cli.signals import Stopped, StopSignals
from specgen.cli.streams import Messages
from specgen.cli.terminal_mode import TerminalMode
from specgen.core.errors import SettingsError, SpecgenError
from specgen.core.results import RunReport
from specgen.render.diagnosis import why_doubtful
from specgen.render.summary import format_turn
from specgen.render.terminal import is_ascii_only
from specgen.storage.transcript import ChatMessage, Transcript

if TYPE_CHECKING:
    from specgen.cli.chat.line_editor import LineEditor
    from specgen.runtime.conversation import Conversation, ReplySettings
    from specgen.runtime.generation import Generation

INTERRUPTED = 130


@dataclass
class Chat:
    """A running chat.

    Args:
        conversation: What was said.
        editor: Where lines come from.
        messages: What is told on stderr.
        signals: Entered by the caller.
        saving: The session on disk.
        settings: What the user decided about replies.
        look: What the user decided about their looks.
        foreground: The terminal.
        open_draft: Loads another drafter by name; returns what loading has to tell.
    """

    conversation: Conversation
    editor: LineEditor
    messages: Messages
    signals: StopSignals
    saving: Autosave
    settings: ChatSettings
    look: DisplayOptions
    terminal_mode: TerminalMode
    open_draft: Callable[[str], list[str]]
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    attached: str = ""
    """Text of files that goes in front of the next message."""
    last: Generation | None = None
    is_baseline_stale: bool = False
    is_baseline_doubtful: bool = False
    """The last speedup can't be: perhaps its timing was disturbed, and the next reply repeats it."""

    def print_banner(self, resumed: Transcript | None, system: str | None) -> None:
        """Say what runs and how to find out more; go on with a saved session, a system message given now first."""
        conversation = self.conversation
        models = conversation.models
        settings = self.settings.for_reply(models.pair.sampling_defaults)
        self.messages.chat_banner(conversation.info(settings), self.look.shown)
        for notice in models.notices:
            self.messages.warning(notice)
        if resumed is not None:
            self.resume_from(resumed)
        if system is not None:
            conversation.set_system(system)
        self.tell_folding()

    def run(self) -> int:
        """Read and answer until the person leaves; returns the exit code."""
        try:
            while True:
                try:
                    text = read_line(self.editor, self.signals)
                except KeyboardInterrupt:
                    self.tell("Ctrl-D or /exit leaves")
                    continue
                if not self.take(text):
                    return self.leave()
        except EOFError:
            return self.leave(self._hangup_code())
        except Stopped as stopped:
            return self.leave(stopped.exit_code)

    def take(self, text: str) -> bool:
        """Do what a line asks for; False if that is to leave."""
        match parse_line(text):
            case Nothing():
                pass
            case Unknown(name, _) as unknown:
                self.messages.error(SettingsError(f"there is no command {name}", unknown.hint))
            case Say(message):
                before = self.conversation.messages
                self.conversation.say(f"{self.attached}{message}")
                if self.reply(before):
                    self.attached = ""
            case Command("/exit", _):
                return False
            case Command(name, argument):
                self._run(name, argument)
        return True

    def _run(self, name: str, argument: str) -> None:
        before = self.conversation.messages
        try:
            wanted = run_command(self, name, argument)
        except SpecgenError as error:
            self.messages.error(error)
            return
        except Stopped as stopped:
            if stopped.exit_code != INTERRUPTED:
                raise
            self.signals.signum = None
            self.tell("stopped")
            return
        if wanted is not None:
            self.reply(before, wanted)

    def reply(self, before: tuple[ChatMessage, ...], settings: ReplySettings | None = None) -> bool:
        """Reply to the conversation; without a first token it is again what it was `before`.

        Raises:
            Stopped: The program is to end; what there is of the reply is saved.
        """
        conversation = self.conversation
        conversation.settings = self.settings.for_reply(conversation.models.pair.sampling_defaults)
        try:
            generation = conversation.begin_reply(settings)
        except SpecgenError as error:
            conversation.messages = before
            self.messages.error(error)
            return False
        ending = show_reply(conversation, generation, self.look, self.signals, self.terminal_mode)
        message = conversation.end_reply(generation)
        signum, self.signals.signum = self.signals.signum, None
        is_over = isinstance(ending, Stopped) or (signum is not None and 128 + signum != INTERRUPTED)
        if message is None and not is_over:
            conversation.messages = before
        if is_over:
            raise ending if isinstance(ending, Stopped) else Stopped(signum or 0)
        # Whoever pressed Ctrl-C waits for a prompt, and a second one is for leaving, not for a measurement.
        self._tell_ending(generation, ending, has_reply=message is not None, may_calibrate=signum is None)
        if self.signals.signum is not None:
            raise Stopped(self.signals.signum)
        self.save()
        return message is not None

    def _tell_ending(
        self, generation: Generation, ending: BaseException | None, *, has_reply: bool, may_calibrate: bool
    ) -> None:
        for notice in generation.notices:
            self.messages.warning(notice)
        if isinstance(ending, SpecgenError):
            self.messages.error(ending)
        if not has_reply:
            self.tell("no reply; your message is taken back, and the Up key brings it again")
            return
        self.last = generation
        is_first = self.conversation.baseline is None
        is_due = may_calibrate and self.look.calibrates and (is_first or self.is_baseline_doubtful)
        is_new = is_due and self._calibrate(generation)
        report = generation.report()
        self.is_baseline_doubtful = report.counts.num_drafted > 0 and why_doubtful(report) != ""
        if self.look.stats:
            self.messages.info(self._turn_line(report))
            if is_new:
                text = f"(the target alone was timed {'once' if is_first else 'again'}, on 8 tokens, for the speedup)"
                self.messages.info(Text(text, style="muted"))
        use = self.conversation.context_use()
        if use.is_nearly_full:
            how_full = f"{100 * use.share:.0f} % full" if use.share < 1 else "full"
            self.messages.warning(
                f"the context is {how_full} ({use.num_tokens} of {use.window} tokens): /clear or /undo makes room"
            )
        self.messages.info(Text())

    def _calibrate(self, generation: Generation) -> bool:
        self.signals.listener = generation.interrupt
        try:
            return self.conversation.calibrate(generation) is not None
        finally:
            self.signals.listener = None
            if self.signals.exit_code == INTERRUPTED:
                self.signals.signum = None

    def calibrate_again(self) -> bool:
        """Time the target alone anew, if the drafter changed since; whether that was done."""
        if self.last is None or not self.is_baseline_stale or not self.look.calibrates:
            return False
        self.is_baseline_stale = not self._calibrate(self.last)
        return not self.is_baseline_stale

    def _turn_line(self, report: RunReport) -> Text:
        return format_turn(report, ascii_only=self.ascii_only)

    @property
    def ascii_only(self) -> bool:
        """Whether the terminal can show ASCII alone."""
        return is_ascii_only(self.messages.console)

    def tell(self, text: str | Text) -> None:
        """Say something a command was asked for, or that has to be known."""
        self.messages.print(Text(text, style="muted") if isinstance(text, str) else text)

    def tell_folding(self) -> None:
        """Say so where the template knows no system role."""
        if self.conversation.folds_system:
            self.messages.warning(
                "this model's chat template has no system role; the system message goes in front of your first message"
            )

    def save(self) -> None:
        """Write the session as it is now, if sessions are saved; a failure is told and is no error."""
        self.saving.save(self.transcript())

    def resume_from(self, transcript: Transcript) -> None:
        """Go on with a saved conversation, and say where it stood."""
        conversation, messages = self.conversation, transcript.messages
        conversation.messages = messages
        conversation.set_system(transcript.system)
        self.created, self.last, self.attached = transcript.created, None, ""
        ours = whole_name(conversation.models.pair.settings.target.name)
        if transcript.target.name != ours:
            self.messages.warning(f"this session was with {transcript.target.ran_as or transcript.target.name}")
        self.tell(f"{len(messages)} messages are back" if messages else "nothing was said in it yet")
        for message in messages[-2:]:
            who = "you  " if message.role == "user" else "model"
            room = max(min(self.messages.console.width - len(who) - 1, 70), 10)
            self.tell(f"{who} {one_line_preview(message.content, room, ascii_only=self.ascii_only)}")
        if messages and messages[-1].role == "user":
            self.tell("your last message has no reply yet; /retry gets one")

    def transcript(self) -> Transcript:
        """The session as it is saved."""
        return transcript_of(self.conversation, self.settings, self.created)

    def leave(self, exit_code: int = 0) -> int:
        """Save for the last time and let go of the session."""
        self.save()
        self.saving.close()
        if exit_code in (0, INTERRUPTED) and (name := self.saving.name):
            self.messages.info(Text(f"saved; specgen chat --resume {name} goes on", style="muted"))
        if self.saving.failure is not None and exit_code == 0:
            self.messages.error(self.saving.failure)
            return self.saving.failure.exit_code
        return exit_code

    def _hangup_code(self) -> int:
        """0 for Ctrl-D, 129 where the terminal is gone: its end looks like one more Ctrl-D."""
        try:
            termios.tcgetattr(sys.stdin.fileno())
        except (OSError, ValueError, termios.error):
            return 129
        return self.signals.exit_code
