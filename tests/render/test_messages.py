from __future__ import annotations

import pytest
from rich.text import Text

from specgen.core.errors import PairError, SpecgenError
from specgen.core.events import Notice
from specgen.core.settings import SamplingSettings
from specgen.render.messages import format_banner, format_error, format_notice, hang, labelled
from specgen.render.views import ViewName
from tests.render.runs import info
from tests.render.screens import terminal_console, written


def test_the_banner_names_both_models_the_settings_and_the_legend() -> None:
    assert format_banner(info()).plain.splitlines() == [
        "target   Qwen/Qwen2.5-7B-Instruct nf4 bfloat16 cuda:0 5.0 GiB",
        "draft    Qwen/Qwen2.5-0.5B-Instruct nf4 bfloat16 cuda:0",
        "settings drafts of up to 5 tokens, up to 256 new tokens, greedy",
        "legend   accepted  rejected  ⋯n discarded  target",
    ]


def test_a_block_is_wrapped_at_words_behind_its_labels_and_keeps_paths_and_styles() -> None:
    path = "/a/folder/" + 40 * "x"
    block = Text("\n").join([labelled("versions", "rich 15.0.0, typer 0.29.2, torch 2.13.0"), labelled("cache", path)])

    hung = hang(block, 34)

    assert hung.plain.splitlines() == [
        "versions rich 15.0.0, typer",
        "         0.29.2, torch 2.13.0",
        "cache    " + path,
    ]
    assert [hung.plain[span.start : span.end].strip() for span in hung.spans] == ["versions", "cache"]


def test_a_block_with_room_stays_as_it_is() -> None:
    assert hang(format_banner(info()), 120) == format_banner(info())


def test_the_legend_is_in_its_styles_or_its_marks() -> None:
    console = terminal_console()

    console.print(format_banner(info()))

    assert (
        "\x1b[1;36maccepted\x1b[0m  \x1b[2;9;35mrejected\x1b[0m  \x1b[2m⋯n discarded\x1b[0m  \x1b[4mtarget\x1b[0m"
        in written(console)
    )
    assert format_banner(info(), marks=True).plain.endswith("legend   accepted [-rejected +n discarded-] {+target+}")
    assert format_banner(info(), ascii_only=True).plain.endswith("legend   accepted  rejected  +n discarded  target")


@pytest.mark.parametrize(
    ("view", "styled", "marked"),
    [
        ("text", "accepted  target", "accepted {+target+}"),
        ("live", "accepted  target  rejected, for a moment", None),
        ("steps", "accepted  -rejected  -discarded  +target", "accepted -rejected -discarded +target"),
        ("off", None, None),
    ],
)
def test_the_legend_is_of_the_view(view: ViewName, styled: str | None, marked: str | None) -> None:
    for marks, expected in ((False, styled), (True, marked)):
        _, _, legend = format_banner(info(), marks=marks, view=view).plain.partition("\nlegend   ")

        assert legend == (expected or "")


@pytest.mark.parametrize("drafter", ["model", "lookup", "none"])
def test_the_banner_has_at_most_four_lines(drafter: str) -> None:
    lines = format_banner(info(drafter, 5)).plain.splitlines()

    assert len(lines) <= 4
    assert any("draft" in line for line in lines)


def test_sampling_is_told_with_the_seed_that_repeats_it() -> None:
    sampling = SamplingSettings(0.7, 40, 0.9, 0.05, 1.1, 1234, same_text=True)

    (line,) = [line for line in format_banner(info(sampling=sampling)).plain.splitlines() if "settings" in line]

    assert "temperature 0.7, top-k 40, top-p 0.9, min-p 0.05, seed 1234, repetition penalty 1.1" in line


def test_a_seed_that_repeats_nothing_is_not_told() -> None:
    sampling = SamplingSettings(0.7, seed=1234)

    assert "1234" not in format_banner(info(sampling=sampling)).plain


def test_an_error_is_two_lines_that_can_be_grepped() -> None:
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
