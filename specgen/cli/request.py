"""Checks options and reads the files they name, before anything is loaded."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from specgen.cli.options.groups import SYSTEM_VARIABLE, SystemOptions
from specgen.cli.prompt_input import as_utf8, read_text
from specgen.core.draft_name import LOOKUP_SUFFIX, DraftName
from specgen.core.errors import SettingsError
from specgen.core.settings import (
    LONGEST_AUTO_DRAFT,
    MAX_DRAFT_TOKENS,
    MAX_TREE_NODES,
    RESERVED_VARIABLES,
    DraftSchedule,
    TreeSchedule,
)


def read_lookup_files(paths: Sequence[Path], drafts: Sequence[DraftName]) -> tuple[str, ...]:
    """Returns the contents of `--lookup-file`.

    Raises:
        SettingsError: None of the drafts would search them.
        PromptError: A file can't be read.
    """
    if paths and not any(draft.has_lookup for draft in drafts):
        raise SettingsError(
            f"--lookup-file needs prompt lookup, which --draft {drafts[0]} does not use",
            f"give --draft {'lookup' if drafts[0].kind == 'none' else drafts[0].text + LOOKUP_SUFFIX}",
        )
    return tuple(read_text(path, "lookup file") for path in paths)


def parse_draft_length(text: str) -> tuple[int, DraftSchedule]:
    """Returns the longest draft and the schedule of `--draft-tokens`.

    Raises:
        SettingsError: It is neither `auto` nor an integer in range.
    """
    if text == "auto":
        return LONGEST_AUTO_DRAFT, "auto"
    with suppress(ValueError):
        if 0 <= (length := int(text)) <= MAX_DRAFT_TOKENS:
            return length, "constant"
    raise SettingsError(f"invalid --draft-tokens {text!r}", f"give auto or an integer from 0 to {MAX_DRAFT_TOKENS}")


def parse_tree(text: str | None) -> tuple[int, TreeSchedule]:
    """Returns the most tokens of a tree, 0 for none, and the schedule of `--tree`; None: it is not given.

    Raises:
        SettingsError: It is neither `auto` nor `off` nor an integer in range.
    """
    if text is None:
        return MAX_TREE_NODES, "default"
    if text in ("auto", "off"):
        return (MAX_TREE_NODES, "auto") if text == "auto" else (0, "constant")
    with suppress(ValueError):
        if 1 <= (size := int(text)) <= MAX_TREE_NODES:
            return size, "constant"
    raise SettingsError(f"invalid --tree {text!r}", f"give auto, off or an integer from 1 to {MAX_TREE_NODES}")


def system_message(options: SystemOptions) -> str | None:
    """Returns the system message, given as text or as a file.

    Raises:
        SettingsError: Both are given.
        PromptError: The file can't be read, or the text is not UTF-8.
    """
    text, path = options.system, options.system_file
    if path is not None and is_default_system(options):
        text = None
    if text is not None and path is not None:
        raise SettingsError("--system and --system-file both give a system message", "give one of them")
    if path is not None:
        return read_text(path, "system file")
    return None if text is None else as_utf8(text, "the system message")


def is_default_system(options: SystemOptions) -> bool:
    """Returns whether the system message comes from SPECGEN_SYSTEM, a default that options may replace."""
    return options.system is not None and options.system == os.environ.get(SYSTEM_VARIABLE)


def template_source(choice: str) -> str | None:
    """Returns the Jinja source of `--chat-template FILE`; None for `auto` and `none`."""
    return None if choice in ("auto", "none") else read_text(Path(choice), "template file")


def parse_template_variables(text: str | None) -> dict[str, Any]:
    """Returns the variables of `--chat-template-kwargs`.

    Raises:
        SettingsError: It is not a JSON object, or sets a variable of specgen's own.
    """
    if text is None:
        return {}
    try:
        variables = json.loads(text)
        if not isinstance(variables, dict):
            raise ValueError("not a JSON object")
    except (ValueError, RecursionError) as error:
        hint = """give a JSON object in quotes: '{"key": true}'"""
        raise SettingsError(f"invalid --chat-template-kwargs {text!r}: {error}", hint) from error
    if reserved := sorted(RESERVED_VARIABLES & variables.keys()):
        raise SettingsError(
            f"--chat-template-kwargs can't set {reserved[0]!r}: specgen sets it itself",
            "omit it; --chat-template FILE gives another template",
        )
    return variables


def check_stops(stops: Sequence[str]) -> None:
    """Rejects an empty stop text, which every text ends with.

    Raises:
        SettingsError: One is empty.
    """
    if "" in stops:
        raise SettingsError("invalid --stop '': it is empty", "give the text that ends the answer")
