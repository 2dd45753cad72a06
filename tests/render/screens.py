"""Test helpers of render: example rounds, a console on a string, and a terminal (pyte) that records its controls."""

from __future__ import annotations

import io
from collections.abc import Iterable, Sequence
from typing import Any

import pyte
from hypothesis import strategies as st
from rich.console import Console

from specgen.core.events import FinalText, Finish, Piece, Round, RoundText, TextEvent, TokenState
from specgen.render.terminal import ColorMode, make_console
from specgen.render.view import View

ACCEPTED, REJECTED, DISCARDED = TokenState.ACCEPTED, TokenState.REJECTED, TokenState.DISCARDED
CORRECTION, BONUS, TARGET = TokenState.CORRECTION, TokenState.BONUS, TokenState.TARGET


class Terminal(io.StringIO):
    """Text stream whose `isatty` is true."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class CountingStream(io.StringIO):
    """Text stream that counts writes and flushes."""

    def __init__(self) -> None:
        super().__init__()
        self.num_writes = 0
        self.num_flushes = 0

    def write(self, text: str, /) -> int:
        self.num_writes += 1
        return super().write(text)

    def flush(self) -> None:
        self.num_flushes += 1
        super().flush()


class Screen(pyte.HistoryScreen):
    """Terminal that records the controls it receives."""

    def __init__(self, columns: int, lines: int = 8) -> None:
        super().__init__(columns, lines, history=100_000, ratio=1.0)
        self.controls: set[str] = set()


class VisibleScreen(pyte.Screen):
    """Records the controls as `Screen` does, without its scrollback, which makes each character dearer."""

    def __init__(self, columns: int, lines: int) -> None:
        super().__init__(columns, lines)
        self.controls: set[str] = set()


class _Recorder:
    """Records every control except drawing, and passes it to a screen."""

    def __init__(self, screen: Screen | VisibleScreen) -> None:
        self._screen = screen

    def __getattr__(self, name: str) -> Any:
        if name in pyte.Stream.events and name != "draw":
            self._screen.controls.add(name)
        return getattr(self._screen, name)


def render_screen(output: str, columns: int, lines: int = 8) -> Screen:
    """Feeds output to a new terminal as a tty line discipline would (newline becomes CR LF)."""
    screen = Screen(columns, lines)
    feed(screen, output)
    return screen


def feed(screen: Screen | VisibleScreen, output: str) -> None:
    """Feeds output to a terminal; records its controls."""
    stream = pyte.Stream()
    # Attaching reads every control once; they are recorded only from here on.
    stream.attach(_Recorder(screen))
    screen.controls.clear()
    # One by one: after a character without width, pyte drops the rest of a chunk.
    for character in output.replace("\n", "\r\n"):
        stream.feed(character)


def scrollback(screen: Screen) -> list[str]:
    """Returns all rows of the scrollback, without trailing blanks."""
    history = ["".join(row[x].data for x in range(screen.columns)) for row in screen.history.top]
    rows = [row.rstrip() for row in (*history, *screen.display)]
    while rows and not rows[-1]:
        rows.pop()
    return rows


def terminal_console(mode: ColorMode = "auto", columns: int = 80, **environ: str) -> Console:
    return make_console(Terminal(), mode, {"COLUMNS": str(columns), "LINES": "8", "TERM": "xterm", **environ})


def pipe_console(mode: ColorMode = "auto", **environ: str) -> Console:
    return make_console(CountingStream(), mode, environ)


def written(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def pieces(*texts_and_states: tuple[str, TokenState]) -> tuple[Piece, ...]:
    return tuple(Piece(id_, text, state) for id_, (text, state) in enumerate(texts_and_states))


def round_text(*texts_and_states: tuple[str, TokenState], index: int = 0, seconds: float = 0.031) -> RoundText:
    """Makes a round whose counts agree with its pieces."""
    made = pieces(*texts_and_states)
    draft = [piece for piece in made if piece.state in (ACCEPTED, REJECTED, DISCARDED)]
    own = [piece for piece in made if piece not in draft]
    num_accepted = sum(piece.state is ACCEPTED for piece in draft)
    ids = tuple(piece.id for piece in draft)
    return RoundText(Round(index, ids, num_accepted, own[0].id if own else None, 0, 0.01, seconds - 0.01, 0.0), made)


EXAMPLE = round_text(
    (" The", ACCEPTED),
    (" quick", ACCEPTED),
    (" dog", REJECTED),
    (" and", DISCARDED),
    (" cat", DISCARDED),
    (" fox", CORRECTION),
)


def final(text: str = "") -> FinalText:
    return FinalText(text, Finish("stop"))


def show_all(view: View, events: Iterable[TextEvent]) -> None:
    for event in events:
        view.show(event)
    view.close()


def answer(events: Iterable[TextEvent]) -> str:
    """Returns the answer by its definition: kept text of all rounds, then the final text."""
    return "".join(
        event.kept if isinstance(event, RoundText) else event.text
        for event in events
        if isinstance(event, (RoundText, FinalText))
    )


def rounds(texts: st.SearchStrategy[str]) -> st.SearchStrategy[RoundText]:
    """Generates rounds of every shape: without a draft, all accepted, cut after any token, ended by the draft."""

    def build(accepted: Sequence[str], refused: Sequence[str], own: str | None) -> RoundText:
        states = [(text, ACCEPTED) for text in accepted]
        states += [(text, DISCARDED if index else REJECTED) for index, text in enumerate(refused)]
        if own is None and not refused and accepted:
            return round_text(*states)
        state = CORRECTION if refused else BONUS if accepted else TARGET
        return round_text(*states, (own or "", state))

    return st.builds(
        build,
        st.lists(texts, max_size=4),
        st.lists(texts, max_size=4),
        st.one_of(st.none(), texts),
    )


def generations(texts: st.SearchStrategy[str], max_rounds: int = 12) -> st.SearchStrategy[list[TextEvent]]:
    return st.builds(
        lambda rounds, rest: [*rounds, final(rest)],
        st.lists(rounds(texts), max_size=max_rounds),
        st.one_of(st.just(""), texts),
    )
