"""Lines of a chat: messages, commands and mistakes."""

from __future__ import annotations

import re
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgen.cli.chat.actions import ACTIONS
from specgen.cli.chat.commands import (
    COMMANDS,
    NAMES,
    ChatCommand,
    is_open_block,
    parse_line,
)
from specgen.cli.chat.settings import SETTING_NAMES, ChatSettings
from specgen.cli.options.groups import SamplingOptions
from specgen.core.errors import SettingsError

DEFAULTS = SamplingOptions(None, None, None, None, None, None)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ("hello", "hello"),
        ("  hello\nworld \n", "hello\nworld"),
        ("", ""),
        (" \n ", ""),
        ("//undo", "/undo"),
        ("//", "/"),
        ("/undo", ChatCommand("/undo", "")),
        ("  /undo  ", ChatCommand("/undo", "")),
        ("/UNDO", ChatCommand("/undo", "")),
        ("/quit", ChatCommand("/exit", "")),
        ("/bye", ChatCommand("/exit", "")),
        ("/system Be brief.\nVery.", ChatCommand("/system", "Be brief.\nVery.")),
        ("/system\nBe brief.", ChatCommand("/system", "Be brief.")),
        ('"""a\n /b\n"""', "a\n /b"),
        ('"""/undo"""', "/undo"),
        ('"""\n"""', ""),
        ('"""never closed', '"""never closed'),
    ],
)
def test_a_line_is_parsed(text: str, line: object) -> None:
    assert parse_line(text) == line


@pytest.mark.parametrize(
    ("text", "suggestion"),
    [("/udno", "/undo"), ("/quti", "/quit"), ("/sess", "/sessions"), ("/etc/passwd holds what?", None), ("/", None)],
)
def test_an_unknown_command_suggests_the_closest_one(text: str, suggestion: str | None) -> None:
    with pytest.raises(SettingsError) as caught:
        parse_line(text)

    assert set(re.findall(r"/\w+", str(caught.value.hint))) == {"/help", suggestion or "/help"}


@pytest.mark.thorough
@given(st.text(max_size=30))
def test_a_line_that_starts_with_one_slash_is_never_sent(text: str) -> None:
    with suppress(SettingsError):
        assert isinstance(parse_line("/" + text), ChatCommand) or text.startswith("/")


@given(st.text(min_size=1, max_size=30))
def test_two_slashes_send_a_message_with_one(text: str) -> None:
    assert parse_line("//" + text) == ("/" + text).strip()


def test_every_command_of_the_help_has_a_function() -> None:
    assert {command.name for command in COMMANDS} == {*ACTIONS, "/exit"}
    assert set(NAMES) >= set(ACTIONS)


def test_every_line_of_the_help_fits_eighty_columns() -> None:
    width = max(len(command.usage) for command in COMMANDS) + 2

    assert all(width + len(command.text) <= 80 for command in COMMANDS)


def test_a_block_stays_open_until_its_second_quotes() -> None:
    assert is_open_block('"""')
    assert is_open_block('"""a\nb')
    assert not is_open_block('"""a\nb"""')
    assert not is_open_block('a """')


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", "0.5"), ("top-k", "3"), ("top_p", "0.9"), ("min-p", "0.1"), ("Repetition_Penalty", "1.1")],
        *[("seed", "7"), ("max-new-tokens", "9")],
    ],
)
def test_each_setting_takes_effect(name: str, value: str) -> None:
    reply = ChatSettings(DEFAULTS).with_value(name, value).for_reply(None)

    key = name.lower().replace("-", "_")
    assert getattr(reply, key, None) == float(value) or getattr(reply.sampling, key) == float(value)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        *[("temperature", "-1"), ("temperature", "nan"), ("top-k", "1.5"), ("top-p", "2"), ("seed", "-1")],
        *[("max-new-tokens", "0"), ("temprature", "1"), ("temperature", "hot"), ("min-p", "1")],
    ],
)
def test_an_invalid_setting_is_refused(name: str, value: str) -> None:
    with pytest.raises(SettingsError):
        ChatSettings(DEFAULTS).with_value(name, value)


def test_a_misspelled_setting_suggests_the_closest_one() -> None:
    with pytest.raises(SettingsError) as caught:
        ChatSettings(DEFAULTS).with_value("temprature", "1")

    assert "temperature?" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("seed", "same_text", "effective"),
    [(None, None, False), (7, None, True), (7, False, False), (None, True, True)],
)
def test_only_a_seed_that_was_given_ties_randomness_to_positions(
    seed: int | None, same_text: bool | None, effective: bool
) -> None:
    options = SamplingOptions(None, None, None, None, None, seed, same_text)

    assert ChatSettings(options).for_reply(None).sampling.same_text is effective


def test_default_restores_the_models_own_setting() -> None:
    changed = ChatSettings(DEFAULTS).with_value("temperature", "1").with_value("temperature", "default")

    assert changed.sampling.temperature is None


def test_settings_are_saved_and_options_override_them() -> None:
    saved = ChatSettings(DEFAULTS).with_value("temperature", "0.5").with_value("top-k", "3").with_draft_tokens("2")
    options = ChatSettings(SamplingOptions(0.9, None, None, None, None, None))

    resumed = options.with_saved(saved.to_figures(), keep_draft_tokens=False)

    assert (resumed.sampling.temperature, resumed.sampling.top_k, resumed.draft_tokens) == (0.9, 3, "2")


@pytest.mark.parametrize(("given", "expected"), [(None, "off"), ("4", "4")])
def test_a_saved_tree_is_kept_unless_another_is_given(given: str | None, expected: str) -> None:
    saved = ChatSettings(DEFAULTS, tree="off")

    assert ChatSettings(DEFAULTS, tree=given).with_saved(saved.to_figures(), keep_draft_tokens=False).tree == expected
    assert ChatSettings(DEFAULTS).with_saved(ChatSettings(DEFAULTS).to_figures(), keep_draft_tokens=False).tree is None


@given(
    st.dictionaries(st.sampled_from([*SETTING_NAMES, "draft-tokens", "tree", "x"]), st.none() | st.text() | st.floats())
)
def test_no_saved_setting_breaks_a_chat(figures: dict[str, object]) -> None:
    ChatSettings(DEFAULTS).with_saved(figures, keep_draft_tokens=False).for_reply(None)  # type: ignore[arg-type]
