"""What the README says is what the program takes: options of its commands, exit codes, the map of the house."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator

import pytest

from specgen.cli.program import program
from specgen.core.errors import SpecgenError
from specgen.core.exit_codes import ExitCode
from tests.structure import PACKAGE
from tests.test_architecture import ORDER

README = (PACKAGE.parent / "README.md").read_text(encoding="utf-8")
PROGRAMS = ("specgen", ".venv/bin/specgen")
SIGNALS = {129, 130, 143}
WORD = re.compile(r"--?[A-Za-z]")


def blocks(language: str) -> list[str]:
    """What stands between fences, those within lists included."""
    return re.findall(rf"^ *```{language}.*?\n(.*?)^ *```$", README, re.MULTILINE | re.DOTALL)


def calls() -> Iterator[list[str]]:
    """The words behind each `specgen` of a shell block, up to what the shell keeps for itself."""
    for line in "".join(blocks("sh")).splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.commenters = "#"
        words: list[str] | None = None
        for word in lexer:
            if word in PROGRAMS and words is None:
                words = []
            elif words is not None and set(word) <= set("();<>|&"):
                yield words
                words = None
            elif words is not None:
                words.append(word)
        if words is not None:
            yield words


CALLS = list(calls())
KNOWN = {command.name: command for command in (program().root, *program().commands)}


@pytest.mark.parametrize("words", CALLS, ids=" ".join)
def test_every_option_of_an_example_exists(words: list[str]) -> None:
    command = KNOWN["" if words[0].startswith("-") else words[0]]
    names = {name for option in command.options for name in option.all_names}

    assert {word.partition("=")[0] for word in words if WORD.match(word)} <= names


def test_every_command_has_an_example() -> None:
    assert {words[0] for words in CALLS if not words[0].startswith("-")} == KNOWN.keys() - {""}


def test_the_table_of_exit_codes_is_that_of_the_errors() -> None:
    table = README.partition("| exit code | meaning |")[2].partition("\n\n")[0]
    listed = {int(code) for row in table.splitlines()[2:] for code in row.split("|")[1].split(",")}

    assert listed == set(ExitCode)
    assert listed == {0} | {error.exit_code for error in errors(SpecgenError)} | SIGNALS


def errors(base: type[SpecgenError]) -> Iterator[type[SpecgenError]]:
    yield base
    for child in base.__subclasses__():
        if child.__module__ == SpecgenError.__module__:
            yield from errors(child)


def test_the_list_of_folders_is_complete_and_in_order() -> None:
    (pair,) = [block for block in blocks("") if block.startswith("core/")]

    assert tuple(line.split("/")[0] for line in pair.splitlines()) == ORDER[:-2]
