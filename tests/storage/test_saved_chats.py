"""Session files: what goes in comes out; after any fault the old or the new one is there; nothing is overwritten."""

from __future__ import annotations

import errno
import os
import stat
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.core.errors import OutputError, SettingsError
from specgen.storage import saved_chats
from specgen.storage.atomic_write import replace_file
from specgen.storage.saved_chats import SessionFile, SessionFolder, SessionInUse, SessionSetAside
from specgen.storage.transcript import ChatMessage, SavedModel, Transcript, TranscriptError, from_json, to_json

ANY_TEXT = st.text(st.characters(), max_size=30)  # lone surrogates, too
FIGURES = st.dictionaries(
    ANY_TEXT, st.none() | st.integers(-(2**60), 2**60) | st.floats(allow_nan=False) | ANY_TEXT, max_size=4
)
MESSAGES = st.builds(ChatMessage, st.sampled_from(["user", "assistant"]), ANY_TEXT, ANY_TEXT, st.booleans(), FIGURES)
MODELS = st.builds(SavedModel, ANY_TEXT, ANY_TEXT, st.none() | ANY_TEXT, ANY_TEXT)
TRANSCRIPTS = st.builds(
    Transcript,
    st.lists(MESSAGES, max_size=5).map(tuple),
    st.none() | ANY_TEXT,
    MODELS,
    ANY_TEXT,
    st.none() | MODELS,
    FIGURES,
    ANY_TEXT,
)


def session(*texts: str) -> Transcript:
    messages = tuple(ChatMessage("assistant" if index % 2 else "user", text) for index, text in enumerate(texts))
    return Transcript(messages, None, SavedModel("toy"), "lookup", None, {}, "2026-01-01T00:00:00+00:00")


OLD, NEW = session("old"), session("old", "reply", "new")


@given(TRANSCRIPTS)
def test_any_session_comes_back_as_it_was(transcript: Transcript) -> None:
    assert from_json(to_json(transcript, "1.0")) == transcript


@given(TRANSCRIPTS)
def test_a_session_file_acts_on_no_terminal(transcript: Transcript) -> None:
    assert all(byte == 0x0A or 0x20 <= byte < 0x80 for byte in to_json(transcript, "1.0"))


@settings(max_examples=200)
@given(data=st.data())
@pytest.mark.fault("F64")
def test_any_damage_is_a_transcript_error_or_harmless(data: st.DataObject) -> None:
    whole = to_json(NEW, "1.0")
    kind = data.draw(st.sampled_from(["cut", "flip", "noise"]))
    if kind == "cut":
        damaged = whole[: data.draw(st.integers(0, len(whole) - 2))]
    elif kind == "flip":
        place = data.draw(st.integers(0, len(whole) - 1))
        damaged = whole[:place] + bytes([data.draw(st.integers(0, 255))]) + whole[place + 1 :]
    else:
        damaged = data.draw(st.binary(max_size=60))
    with suppress(TranscriptError):
        assert from_json(damaged).messages is not None


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
)


@given(
    changes=st.dictionaries(
        st.sampled_from(["schema_version", "target", "draft", "drafter", "settings", "system", "messages", "created"]),
        JSON,
    )
)
def test_any_wrong_value_is_a_transcript_error_or_harmless(changes: dict[str, object]) -> None:
    import json

    document = {**json.loads(to_json(NEW, "1.0")), **changes}
    with suppress(TranscriptError):
        assert from_json(json.dumps(document).encode()).messages is not None


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "not JSON"),
        (b"[]", "no JSON object"),
        (b"{}", "no schema_version"),
        (b'{"schema_version": true}', "no schema_version"),
        (b'{"schema_version": 2}', "newer specgen"),
        (b'{"schema_version": 1, "messages": [{"role": "system", "content": ""}]}', "role 'system'"),
        (b'{"schema_version": 1, "messages": 3}', "messages is missing or no list"),
    ],
)
def test_what_is_wrong_is_said(data: bytes, why: str) -> None:
    with pytest.raises(TranscriptError, match=why):
        from_json(data)


@pytest.fixture
def folder(tmp_path: Path) -> SessionFolder:
    return SessionFolder(tmp_path / "state" / "sessions")


def test_folder_and_file_are_private(folder: SessionFolder) -> None:
    previous = os.umask(0)
    try:
        file = folder.fresh(datetime(2026, 1, 2))
        file.save(NEW)
    finally:
        os.umask(previous)

    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700
    assert stat.S_IMODE(file.path.stat().st_mode) == 0o600
    assert stat.S_IMODE(file.path.with_name(f".{file.path.name}.lock").stat().st_mode) == 0o600
    file.close()


def test_a_folder_others_could_read_is_closed_to_them(folder: SessionFolder) -> None:
    folder.path.mkdir(parents=True, mode=0o755)

    folder.fresh(datetime.now()).close()

    assert stat.S_IMODE(folder.path.stat().st_mode) == 0o700


def test_a_closed_session_leaves_one_file_and_nothing_else(folder: SessionFolder) -> None:
    file = folder.fresh(datetime(2026, 1, 2))
    file.save(OLD)
    file.save(NEW)
    file.close()
    file.close()

    assert [path.name for path in folder.path.iterdir()] == [file.path.name]
    assert file.name.startswith("2026-01-02-")
    assert SessionFile(file.path).load() == NEW


def test_saving_follows_no_link_out_of_the_folder(folder: SessionFolder, tmp_path: Path) -> None:
    folder.make()
    victim = tmp_path / "victim"
    victim.write_text("mine")
    path = folder.path_of("trap")
    path.symlink_to(victim)
    file = SessionFile(path)

    file.save(NEW)

    assert victim.read_text() == "mine"
    assert not path.is_symlink()
    file.close()


@pytest.mark.parametrize("name", ["", ".", "..", "last", ".hidden", "a\nb", "x" * 101, "a\x1bb", "-" * 3])
def test_what_is_no_session_name_is_refused(folder: SessionFolder, name: str) -> None:
    with pytest.raises(SettingsError):
        folder.path_of(name)


def test_a_name_with_a_slash_is_a_file_of_the_user(folder: SessionFolder, tmp_path: Path) -> None:
    assert folder.path_of(f"{tmp_path}/x.json") == tmp_path / "x.json"
    assert folder.path_of("notes") == folder.path / "notes.json"


def test_last_is_the_session_saved_last(folder: SessionFolder) -> None:
    for name, when in (("a", 100), ("b", 300), ("c", 200)):
        folder.make()
        replace_file(folder.path_of(name), to_json(OLD, "1.0"))
        os.utime(folder.path_of(name), (when, when))

    assert folder.existing("last") == folder.path_of("b")
    assert [entry.name for entry in folder.entries()] == ["b", "c", "a"]


def test_a_missing_session_is_told_with_the_nearest_name(folder: SessionFolder) -> None:
    folder.make()
    replace_file(folder.path_of("holiday"), to_json(OLD, "1.0"))

    with pytest.raises(SettingsError) as caught:
        folder.existing("holyday")

    assert caught.value.hint == "did you mean holiday?"


def test_without_sessions_there_is_no_last(folder: SessionFolder) -> None:
    with pytest.raises(SettingsError, match="no saved session"):
        folder.existing("last")


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema_version": 99}', b"\xff\xfe", to_json(NEW, "1")[:-20]])
@pytest.mark.fault("F64")
def test_what_can_t_be_read_is_set_aside_and_never_overwritten(folder: SessionFolder, content: bytes) -> None:
    folder.make()
    path = folder.path_of("notes")
    kept = []
    for _ in range(2):
        path.write_bytes(content)
        file = SessionFile(path)
        with pytest.raises(SessionSetAside) as caught:
            file.load()
        file.save(NEW)
        file.close()
        kept = sorted(item for item in folder.path.iterdir() if "corrupt" in item.name)

    assert [item.read_bytes() for item in kept] == [content, content]
    assert kept[0].name == f"notes.json.corrupt-{datetime.now():%Y-%m-%d}"
    assert kept[-1].name in str(caught.value)
    assert folder.existing("last") == path


@pytest.mark.fault("F66")
def test_a_second_chat_can_t_write_the_session_and_learns_who_does(folder: SessionFolder) -> None:
    first = folder.fresh(datetime.now())
    first.save(NEW)
    code = (
        "import sys; from pathlib import Path; from specgen.storage.saved_chats import SessionFile\n"
        "from specgen.core.errors import SpecgenError\n"
        "try: SessionFile(Path(sys.argv[1]))\n"
        "except SpecgenError as error: print(error.exit_code, error.message)"
    )

    def other() -> str:
        return subprocess.run([sys.executable, "-c", code, first.path], capture_output=True, text=True).stdout

    assert other() == f"2 the session {first.name} is in use by process {os.getpid()}\n"
    first.close()
    assert other() == ""


def test_two_openers_in_one_process_are_told_apart(folder: SessionFolder) -> None:
    first = folder.fresh(datetime.now())

    with pytest.raises(SessionInUse):
        SessionFile(first.path)

    first.close()
    SessionFile(first.path).close()


def test_a_lock_left_by_a_dead_process_holds_nobody_up(folder: SessionFolder) -> None:
    folder.make()
    path = folder.path_of("notes")
    path.with_name(".notes.json.lock").write_text("1\n")
    path.with_name(".notes.json.123-dead.tmp").write_text("half")

    file = SessionFile(path)
    file.save(NEW)
    file.close()

    assert [item.name for item in folder.path.iterdir()] == ["notes.json"]


STEPS = ("write", "fsync", "replace")
KILLED = """
import os, sys
from pathlib import Path
from specgen.storage import saved_chats
from tests.storage.test_saved_chats import NEW
step, count, after, path = sys.argv[1], int(sys.argv[2]), sys.argv[3] == "after", Path(sys.argv[4])
real, calls = getattr(os, step), []
def dying(*arguments, **options):
    calls.append(step)
    if len(calls) == count:
        if step == "write" and after:
            real(arguments[0], bytes(arguments[1])[:40])
        elif after:
            real(*arguments, **options)
        os._exit(9)
    return real(*arguments, **options)
file = saved_chats.SessionFile(path)
setattr(os, step, dying)
file.save(NEW)
os._exit(0)
"""


@pytest.mark.parametrize(
    ("step", "count", "when"),
    [
        (step, count, when)
        for step, count in (("write", 1), ("fsync", 1), ("replace", 1), ("fsync", 2))
        for when in ("before", "after")
    ],
)
@pytest.mark.fault("F63")
def test_killed_at_any_step_the_old_or_the_new_session_is_there(
    folder: SessionFolder, step: str, count: int, when: str
) -> None:
    folder.make()
    path = folder.path_of("notes")
    replace_file(path, to_json(OLD, "1.0"))

    done = subprocess.run(
        [sys.executable, "-c", KILLED, step, str(count), when, path], cwd=Path(__file__).parents[2], check=False
    )

    assert done.returncode == 9
    file = SessionFile(path)
    is_replaced = (step, when) == ("replace", "after") or (step, count) == ("fsync", 2)
    assert file.load() == (NEW if is_replaced else OLD)
    file.close()
    assert [item.name for item in folder.path.iterdir()] == ["notes.json"]


def failing(step: str, count: int, number: int) -> Callable[..., object]:
    real, calls = getattr(os, step), []

    def fail(*arguments: object, **options: object) -> object:
        calls.append(step)
        if len(calls) == count:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize(("step", "count"), [("open", 1), ("write", 1), ("fsync", 1), ("replace", 1)])
@pytest.mark.fault("F62")
def test_a_full_disk_leaves_the_old_session_and_no_litter(
    folder: SessionFolder, monkeypatch: pytest.MonkeyPatch, step: str, count: int, number: int
) -> None:
    folder.make()
    path = folder.path_of("notes")
    replace_file(path, to_json(OLD, "1.0"))

    with monkeypatch.context() as patch:
        patch.setattr(saved_chats.os, step, failing(step, count, number))
        with pytest.raises(OutputError) as caught:
            replace_file(path, to_json(NEW, "1.0"))

    assert caught.value.exit_code == 7
    assert os.strerror(number) in caught.value.message
    assert from_json(path.read_bytes()) == OLD
    assert [item.name for item in folder.path.iterdir()] == ["notes.json"]


def test_whichever_step_fails_what_is_told_is_what_lies_there(
    folder: SessionFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of the system by turns: told and the old session, or nothing told and the new one."""
    folder.make()
    path = folder.path_of("notes")
    outcomes = []
    for count in range(1, 20):
        replace_file(path, to_json(OLD, "1.0"))
        with monkeypatch.context() as patch:
            calls = fail_at(patch, count)
            try:
                replace_file(path, to_json(NEW, "1.0"))
                expected = NEW
            except OutputError:
                expected = OLD
        if len(calls) < count:
            break
        outcomes.append((calls[count - 1], expected is NEW))
        assert from_json(path.read_bytes()) == expected, f"call {count}, {calls[count - 1]}"
        assert [item.name for item in folder.path.iterdir()] == ["notes.json"]

    before = [(step, False) for step in ("open", "write", "fsync", "close", "replace")]
    assert outcomes == [*before, ("open", True), ("fsync", True), ("close", True)]


def fail_at(patch: pytest.MonkeyPatch, count: int) -> list[str]:
    """Let the n-th call that writes, of whatever kind, fail; the calls so far."""
    calls: list[str] = []

    def failing_at(step: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            calls.append(step)
            if len(calls) == count:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*arguments, **options)

        return call

    for step in ("open", "write", "fsync", "close", "replace"):
        patch.setattr(saved_chats.os, step, failing_at(step, getattr(os, step)))
    return calls


def test_a_write_in_pieces_is_whole(folder: SessionFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    folder.make()
    real = os.write
    monkeypatch.setattr(saved_chats.os, "write", lambda fd, data: real(fd, bytes(data)[:7]))

    replace_file(folder.path_of("notes"), to_json(NEW, "1.0"))

    assert from_json(folder.path_of("notes").read_bytes()) == NEW


@pytest.mark.parametrize("where", ["/proc/nowhere/sessions", "/dev/null/sessions"])
def test_a_folder_that_can_t_be_made_is_told(where: str) -> None:
    with pytest.raises(OutputError, match="cannot make the folder") as caught:
        SessionFolder(Path(where)).fresh(datetime.now())

    assert caught.value.exit_code == 7
    assert SessionFolder(Path(where)).entries() == []
