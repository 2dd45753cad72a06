from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
from rich.text import Text

from specgen.core.errors import PairError, SpecgenError
from specgen.core.events import Notice
from specgen.core.results import BatchInvarianceCheck
from specgen.core.settings import SamplingSettings
from specgen.render.formatting import labelled, wrap_block
from specgen.render.messages import format_banner, format_error, format_notice
from specgen.render.theme import format_legend
from specgen.render.views import ViewName
from tests.render.runs import info
from tests.render.screens import terminal_console, written
from tests.snapshots import check_snapshot

SNAPSHOTS = Path(__file__).parent / "snapshots"


RUNS = {
    "model": info(),
    "lookup": info("lookup"),
    "both": dataclasses.replace(info(), drafter="model+lookup", schedule="auto"),
    "none": info("none", 0),
    "sampling": info(sampling=SamplingSettings(0.7, 40, 0.9, 0.05, 1.1, 1234, same_text=True)),
    "from-the-model": dataclasses.replace(info(sampling=SamplingSettings(0.7)), sampling_source="model"),
    "not-lossless": dataclasses.replace(info(), batch_invariance=BatchInvarianceCheck(0.5)),
}


def test_the_banner_reads_as_stored() -> None:
    blocks = [f"# {name}\n{format_banner(run).plain}\n" for name, run in RUNS.items()]

    check_snapshot(SNAPSHOTS / "banner.txt", "\n".join(blocks))


@pytest.mark.parametrize("marks", [False, True])
def test_the_legends_read_as_stored(marks: bool) -> None:
    views: tuple[ViewName, ...] = ("inline", "text", "live", "steps", "off")
    legends = [(view, format_legend(view, marks=marks, ascii_only=False)) for view in views]

    text = "\n".join(f"{view:<7}{'' if legend is None else legend.plain}".rstrip() for view, legend in legends)
    check_snapshot(SNAPSHOTS / f"legends-{'marks' if marks else 'styles'}.txt", text)


def test_a_block_is_wrapped_at_words_after_its_labels_and_keeps_paths_and_styles() -> None:
    path = "/a/folder/" + 40 * "x"
    block = Text("\n").join([labelled("versions", "rich 15.0.0, typer 0.29.2, torch 2.13.0"), labelled("cache", path)])

    hung = wrap_block(block, 34)

    assert hung.plain.splitlines() == [
        "versions rich 15.0.0, typer",
        "         0.29.2, torch 2.13.0",
        "cache    " + path,
    ]
    assert [hung.plain[span.start : span.end].strip() for span in hung.spans] == ["versions", "cache"]


def test_a_block_that_fits_is_unchanged() -> None:
    assert wrap_block(format_banner(info()), 120) == format_banner(info())


def test_the_legend_shows_the_styles_of_the_view() -> None:
    console = terminal_console()

    console.print(format_banner(info()))

    assert (
        "\x1b[1;36maccepted\x1b[0m  \x1b[2;9;35mrejected\x1b[0m  \x1b[2m⋯n discarded\x1b[0m  \x1b[4mtarget\x1b[0m"
        in written(console)
    )
    assert format_banner(info(), ascii_only=True).plain.isascii()


@pytest.mark.parametrize(("view", "marks"), [("live", True), ("off", True), ("off", False)])
def test_a_view_without_states_has_no_legend(view: ViewName, marks: bool) -> None:
    assert len(format_banner(info(), marks=marks, view=view).plain.splitlines()) == 3


@pytest.mark.parametrize("drafter", ["model", "lookup", "none"])
def test_the_banner_has_at_most_four_lines(drafter: str) -> None:
    lines = format_banner(info(drafter, 5)).plain.splitlines()

    assert len(lines) <= 4
    assert any("draft" in line for line in lines)


def test_the_banner_has_the_sampling_settings_and_the_seed_that_repeats_the_text() -> None:
    sampling = SamplingSettings(0.7, 40, 0.9, 0.05, 1.1, 1234, same_text=True)

    (line,) = [line for line in format_banner(info(sampling=sampling)).plain.splitlines() if "settings" in line]

    assert [value for value in ("0.7", "40", "0.9", "0.05", "1234", "1.1") if value not in line] == []


def test_the_banner_omits_a_seed_that_does_not_repeat_the_text() -> None:
    sampling = SamplingSettings(0.7, seed=1234)

    assert "1234" not in format_banner(info(sampling=sampling)).plain


def test_an_error_is_two_lines_for_grep() -> None:
    error = PairError("draft vocabulary\ndiffers \x1b[2J[/red] :smile:", "choose\na draft of the same family")

    assert format_error(error).plain.splitlines() == [
        "error: draft vocabulary differs ␛[2J[/red] :smile:",
        "hint: choose a draft of the same family",
    ]


def test_an_error_without_a_hint_is_one_line() -> None:
    assert format_error(SpecgenError("no")).plain == "error: no"


def test_long_errors_are_not_wrapped() -> None:
    console = terminal_console("never", columns=30)

    console.print(format_error(SpecgenError("word " * 40)))

    assert written(console).count("\n") == 1


def test_a_notice_is_a_warning_on_one_line() -> None:
    assert format_notice(Notice("draft", "the draft\nfailed\x07")).plain == "warning: the draft failed␇"
