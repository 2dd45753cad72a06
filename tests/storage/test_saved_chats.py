"""Saved chats: private files with one writer; damaged ones are renamed and never overwritten."""

from __future__ import annotations

import os
import stat
from datetime import datetime
from pathlib import Path

import pytest

from specgen.core.errors import OutputError, SettingsError
from specgen.storage.atomic_write import replace_file
from specgen.storage.saved_chats import SessionFile, SessionFolder, SessionInUse, SessionSetAside
from specgen.storage.transcript import to_json
from tests.storage.test_transcript import make_transcript

OLD, NEW = make_transcript("old"), make_transcript("old", "reply", "new")


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
    file.close()


def test_a_folder_that_others_can_read_becomes_private(folder: SessionFolder) -> None:
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
def test_an_invalid_session_name_is_refused(folder: SessionFolder, name: str) -> None:
    with pytest.raises(SettingsError):
        folder.path_of(name)


def test_a_name_with_a_slash_is_a_file_of_the_user(folder: SessionFolder, tmp_path: Path) -> None:
    assert folder.path_of(f"{tmp_path}/x.json") == tmp_path / "x.json"
    assert folder.path_of("notes") == folder.path / "notes.json"


def test_last_is_the_session_saved_last(folder: SessionFolder) -> None:
    for name, when in (("a", 100), ("b", 300), ("c", 200)):
        folder.make()
        replace_file(folder.path_of(name), to_json(OLD))
        os.utime(folder.path_of(name), (when, when))

    assert folder.existing("last") == folder.path_of("b")
    assert [entry.name for entry in folder.entries()] == ["b", "c", "a"]


def test_a_missing_session_is_an_error_with_the_nearest_name(folder: SessionFolder) -> None:
    folder.make()
    replace_file(folder.path_of("holiday"), to_json(OLD))

    with pytest.raises(SettingsError) as caught:
        folder.existing("holyday")

    assert "holyday" in caught.value.message
    assert "holiday" in str(caught.value.hint)


def test_without_sessions_there_is_no_last(folder: SessionFolder) -> None:
    with pytest.raises(SettingsError):
        folder.existing("last")


@pytest.mark.parametrize("content", [b"", b"{", b'{"schema_version": 99}', b"\xff\xfe", to_json(NEW)[:-20]])
@pytest.mark.fault("F64")
def test_a_damaged_session_is_renamed_and_never_overwritten(folder: SessionFolder, content: bytes) -> None:
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
def test_a_second_chat_cannot_write_the_session_and_learns_the_owner(folder: SessionFolder) -> None:
    first = folder.fresh(datetime.now())
    first.save(NEW)

    with pytest.raises(SessionInUse) as caught:
        SessionFile(first.path)

    assert (caught.value.code, caught.value.exit_code) == ("session_in_use", 2)
    assert first.name in caught.value.message
    assert str(os.getpid()) in caught.value.message
    first.close()
    SessionFile(first.path).close()


def test_files_that_a_killed_process_left_do_not_block_the_session(folder: SessionFolder) -> None:
    folder.make()
    path = folder.path_of("notes")
    path.with_name(".notes.json.lock").write_text("1\n")
    path.with_name(".notes.json.123-dead.tmp").write_text("half")

    file = SessionFile(path)
    file.save(NEW)
    file.close()

    assert [item.name for item in folder.path.iterdir()] == ["notes.json"]


@pytest.mark.parametrize("where", ["/proc/nowhere/sessions", "/dev/null/sessions"])
def test_a_folder_that_cannot_be_created_is_an_error(where: str) -> None:
    with pytest.raises(OutputError) as caught:
        SessionFolder(Path(where)).fresh(datetime.now())

    assert caught.value.exit_code == 7
    assert where in caught.value.message
    assert SessionFolder(Path(where)).entries() == []
