"""Holds the state of a running chat. The loop owns it; commands are functions over it."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from rich.text import Text

from specgen.cli.chat.session import Autosave, absolute_name, transcript_of
from specgen.cli.chat.settings import ChatSettings
from specgen.cli.signals import StopSignals
from specgen.cli.streams import Messages, ViewOptions
from specgen.cli.terminal_mode import TerminalMode
from specgen.core.settings import ReplySettings
from specgen.render.sanitize import one_line
from specgen.render.text_width import cut_to_cells
from specgen.storage.transcript import Transcript

if TYPE_CHECKING:
    from specgen.runtime.answer import Answer
    from specgen.runtime.chat_history import ChatHistory

NUM_PREVIEWED = 2
"""Messages shown when a session is resumed: the last question and its reply."""


@dataclass(frozen=True, slots=True)
class ChatTerminal:
    """The terminal that a chat runs on; the caller has entered `signals` and `mode`."""

    messages: Messages
    signals: StopSignals
    mode: TerminalMode


@dataclass
class ChatState:
    """The state of a running chat.

    Args:
        replace_draft: Replaces the drafter by name; returns notices for the user.
        shows_stats: Print a line of statistics after each reply.
        calibrates: Time the target alone, so that replies show a speedup.
    """

    conversation: ChatHistory
    terminal: ChatTerminal
    autosave: Autosave
    settings: ChatSettings
    view: ViewOptions
    replace_draft: Callable[[str], list[str]]
    shows_stats: bool = True
    calibrates: bool = True
    created: str = field(default_factory=lambda: datetime.now(UTC).isoformat(timespec="seconds"))
    attached_text: str = ""
    """Contents of files, to be prepended to the next message."""
    last_generation: Answer | None = None
    is_baseline_stale: bool = False
    """The drafter or the draft length has changed since the baseline was measured."""
    is_baseline_doubtful: bool = False
    """The last speedup is implausible: the measurement may have been disturbed, so the next reply repeats it."""

    @property
    def ascii_only(self) -> bool:
        """Whether the terminal can show ASCII characters only."""
        return self.terminal.messages.ascii_only

    @property
    def reply_settings(self) -> ReplySettings:
        """Settings of the next reply, completed by the model's own."""
        return self.settings.for_reply(self.conversation.sampling_defaults)

    def print(self, text: str | Text) -> None:
        """Prints the output of a command, under `--quiet` too."""
        self.terminal.messages.print(Text(text, style="muted") if isinstance(text, str) else text)

    def preview(self, text: str, max_cells: int = 60) -> str:
        """Returns a text on one line without control characters, cut to a number of terminal cells."""
        return cut_to_cells(one_line(re.sub(r"\s+", " ", text), ascii_only=self.ascii_only), max_cells, "...")

    def warn_of_system_role(self) -> None:
        """Warns if the chat template has no system role."""
        if self.conversation.folds_system:
            self.terminal.messages.warning(
                "this model's chat template has no system role; the system message is prepended to your first message"
            )

    def transcript(self) -> Transcript:
        """Returns the session as it is saved."""
        return transcript_of(self.conversation, self.settings, self.created)

    def save(self) -> None:
        """Saves the session, if sessions are saved. A failure is a warning, not an error."""
        self.autosave.save(self.transcript())

    def resume_from(self, transcript: Transcript) -> None:
        """Continues a saved conversation, and shows its last messages."""
        conversation, messages = self.conversation, transcript.messages
        conversation.messages = messages
        conversation.set_system(transcript.system)
        self.created, self.last_generation, self.attached_text = transcript.created, None, ""
        if transcript.target.name != absolute_name(conversation.target_name):
            saved_with = transcript.target.ran_as or transcript.target.name
            self.terminal.messages.warning(f"this session was saved with another model: {saved_with}")
        self.print(f"resumed: {len(messages)} messages" if messages else "resumed: no messages yet")
        for message in messages[-NUM_PREVIEWED:]:
            author = "you  " if message.role == "user" else "model"
            num_cells = max(min(self.terminal.messages.console.width - len(author) - 1, 70), 10)
            self.print(f"{author} {self.preview(message.content, num_cells)}")
        if messages and messages[-1].role == "user":
            self.print("your last message has no reply yet; /retry generates one")
