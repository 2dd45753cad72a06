"""Characters of several code points: one style each, whatever the tokens are."""

from __future__ import annotations

import re
from collections.abc import Sequence

import pytest
import regex
from hypothesis import given
from hypothesis import strategies as st

from specgen.core.events import RoundText, TokenState
from specgen.render.live import LiveView
from specgen.render.sanitize import sanitize
from specgen.render.view import StyledView
from specgen.render.views import InlineView, StepsView, TextView
from tests.render.screens import (
    ACCEPTED,
    CORRECTION,
    REJECTED,
    TARGET,
    final,
    pipe_console,
    round_text,
    show_all,
    terminal_console,
    written,
)

WORDS = [
    "👩",
    "\u200d",
    "💻",
    " ",
    "क",
    "्",
    "ष",
    "ि",
    "\t",
    "ع",
    "ر",
    "|",
    "e",
    "\u0301",
    ".",
    "🇩",
    "🇪",
    "👍",
    "🏽",
    "\n",
]
VIEWS: Sequence[type[StyledView]] = (InlineView, TextView, LiveView)


def styles_of(output: str) -> list[tuple[str, str]]:
    """Returns each character that stays on the screen, and the controls in force where it was written."""
    found, style = [], ""
    output = re.sub(r"\x1b7.*?\x1b8\x1b\[K", "", output, flags=re.DOTALL)  # a live tail, which is erased
    for control, character in re.findall(r"(\x1b\[[0-9;?]*[A-Za-z])|(.)", output, flags=re.DOTALL):
        if control.endswith("m"):
            style = "" if control == "\x1b[0m" else control
        elif character:
            found.append((character, style))
    return found


def shown(view: type[StyledView], events: Sequence[RoundText]) -> str:
    console = terminal_console(columns=400)
    show_all(view(console, sanitize), [*events, final()])
    return written(console)


@pytest.mark.fault("F156")
@pytest.mark.parametrize("view", VIEWS)
@given(tokens=st.lists(st.tuples(st.sampled_from(WORDS), st.sampled_from([ACCEPTED, TARGET])), max_size=30))
def test_a_cluster_has_one_style(view: type[StyledView], tokens: list[tuple[str, TokenState]]) -> None:
    rounds: list[list[tuple[str, TokenState]]] = [[]]
    for text, state in tokens:
        rounds[-1].append((text, state))
        if state is TARGET:
            rounds.append([])

    styled = styles_of(shown(view, [round_text(*parts) for parts in rounds if parts]))

    text = "".join(text for text, _ in tokens)
    assert "".join(character for character, _ in styled).rstrip("\n") == text.rstrip("\n")
    at = 0
    for cluster in regex.findall(r"\X", text.rstrip("\n")):
        styles = {style for _, style in styled[at : at + len(cluster)]}
        assert len(styles) == 1, (cluster, styles)
        at += len(cluster)


@pytest.mark.fault("F156")
def test_styles_change_at_the_end_of_a_cluster() -> None:
    output = shown(TextView, [round_text(("👩", ACCEPTED), ("\u200d💻!", TARGET)), round_text(("\u0301 e", ACCEPTED))])

    assert styles_of(output)[:8] == [
        *[(character, "\x1b[1;36m") for character in "👩\u200d💻"],
        *[(character, "\x1b[4m") for character in "!\u0301"],
        *[(character, "\x1b[1;36m") for character in " e"],
        ("\n", ""),
    ]


@pytest.mark.fault("F156")
def test_a_rejected_accent_is_not_drawn_over_kept_text_nor_kept_ones_over_rejected_text() -> None:
    rejected = round_text(("e", ACCEPTED), ("\u0301", REJECTED), (".", CORRECTION))
    kept = round_text(("e", ACCEPTED), ("x", REJECTED), ("\u0301", CORRECTION))

    assert "".join(character for character, _ in styles_of(shown(InlineView, [rejected]))) == "e\u25cc\u0301.\n"
    assert "".join(character for character, _ in styles_of(shown(InlineView, [kept]))) == "e\u0301x\n"
    assert "+\u25cc\u0301" in re.sub(r"\x1b\[[0-9;]*m", "", shown(StepsView, [kept]))


@pytest.mark.fault("F156")
def test_marks_stand_around_whole_clusters() -> None:
    console = pipe_console("never")
    view = TextView(console, sanitize)

    show_all(view, [round_text(("e", ACCEPTED), ("\u0301.", TARGET)), final()])

    assert written(console) == "e\u0301{+.+}\n"


def test_accents_without_end_cost_no_more_each() -> None:
    rounds = [round_text(("\u0301" * 20, ACCEPTED)) for _ in range(300)]

    assert len(styles_of(shown(TextView, [round_text(("e", ACCEPTED)), *rounds]))) == 6002
