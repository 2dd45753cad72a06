"""Tests how options are read from dataclasses, and how words of a command line become their values."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Literal

import pytest
import typer

from specgen.cli.app import flattened
from specgen.cli.app_spec import Option
from specgen.cli.options.fields import GivenNames, build, describe, options_of
from specgen.cli.program import COMMANDS, RootOptions
from specgen.core.errors import SettingsError


@dataclass(frozen=True, slots=True)
class Group:
    """A group of options."""

    size: Annotated[int | None, Option(("-s", "--size"), "Size.", env="X_SIZE", minimum=1, maximum=9)] = None
    share: Annotated[float, Option(("--share",), "Share.", minimum=0)] = 0.5
    loud: Annotated[bool, Option(("--loud",), "Loud.", off_names=("--quiet",))] = True


@dataclass(frozen=True, slots=True)
class Options:
    """Options of a command."""

    word: Annotated[str, Option(help="A word.", value="WORD")]
    kind: Annotated[Literal["a", "b"], Option(("--kind",), "Kind.")] = "a"
    files: Annotated[tuple[Path, ...], Option(("--file",), "Files.")] = ()
    group: Group = field(default_factory=Group)
    verbose: Annotated[int, Option(("-v",), "More.", counts=True)] = 0
    given: GivenNames = frozenset()


def call(*words: str) -> Options:
    """Parses words as Typer does for a command."""
    made: list[Options] = []

    def run(options: Options) -> int:
        made.append(options)
        return 3

    app = typer.Typer(add_completion=False)
    app.command("go")(flattened(Options, run))

    assert app(list(words), standalone_mode=False) == 3
    return made[0]


def test_words_become_values_of_the_field_types() -> None:
    options = call("x", "--kind", "b", "--file", "1", "--file", "2", "-s", "3", "--share", "0.25", "--quiet", "-vv")

    assert options == Options(
        "x", "b", (Path("1"), Path("2")), Group(3, 0.25, False), 2,
        frozenset({"word", "kind", "files", "size", "share", "loud", "verbose"}),
    )  # fmt: skip


def test_what_is_not_given_keeps_its_default_and_is_not_named() -> None:
    assert call("x") == Options("x", given=frozenset({"word"}))


def test_a_variable_counts_as_given_and_the_option_wins_over_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("X_SIZE", "4")

    assert (call("x").group.size, call("x", "-s", "5").group.size) == (4, 5)
    assert "size" in call("x").given


def test_a_default_given_by_hand_counts_as_given() -> None:
    assert "kind" in call("x", "--kind", "a").given


@pytest.mark.parametrize(
    ("name", "word", "allowed"),
    [
        ("size", "0", "1 to 9"),
        ("size", "10", "1 to 9"),
        ("size", "1.5", "1 to 9"),
        ("share", "-0.1", "at least 0"),
        ("share", "nan", "at least 0"),
        ("kind", "c", "a or b"),
    ],
)
def test_an_invalid_word_is_reported_with_the_option_and_what_is_allowed(name: str, word: str, allowed: str) -> None:
    with pytest.raises(SettingsError) as raised:
        build(Options, {"word": "x", name: word}, "see --help")

    assert f"--{name}" in raised.value.message
    assert repr(word) in raised.value.message
    assert raised.value.hint is not None
    assert allowed in raised.value.hint


def test_the_description_follows_from_types_and_defaults() -> None:
    command = describe("go", "Goes.", Options)
    options = {option.shortest_name: option for option in command.options}

    assert command.argument is not None
    assert (command.argument.value, command.argument.is_required) == ("WORD", True)
    assert [options[name].value for name in ("--kind", "--file", "-s", "--share", "--loud", "-v")] == [
        *("a|b", "FILE", "N", "X", "", "")
    ]
    assert [options[name].default for name in ("--kind", "--share", "--loud", "-s")] == ["a", "0.5", "--loud", None]
    assert [name for name, option in options.items() if option.is_repeatable] == ["--file", "-v"]
    assert options["-s"].notes == "[1 to 9; env X_SIZE]"


@pytest.mark.parametrize("options", [RootOptions, *(command.options for command in COMMANDS)])
def test_names_of_fields_and_options_are_unique_within_a_command(options: type) -> None:
    fields = [option.field for option in options_of(options)]
    names = [name for option in options_of(options) for name in option.all_names]

    assert len(set(fields)) == len(fields)
    assert len(set(names)) == len(names)
