"""Locks: one owner at a time, whose process id others learn, and no owner after its process ended."""

from __future__ import annotations

import errno
import os
import stat
import threading
from pathlib import Path

import pytest

from specgen.core.errors import OutputError
from specgen.storage.lock import FileLock, LockedError, wait_for_lock


def test_a_lock_has_one_owner_and_names_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with FileLock(path):
        with pytest.raises(LockedError) as caught:
            FileLock(path)
        assert caught.value.owner == str(os.getpid())

    FileLock(path).release()


def test_a_lock_file_is_private(tmp_path: Path) -> None:
    previous = os.umask(0)
    try:
        with FileLock(tmp_path / "lock"):
            assert stat.S_IMODE((tmp_path / "lock").stat().st_mode) == 0o600
    finally:
        os.umask(previous)


def test_a_released_lock_removes_its_file_only_on_request(tmp_path: Path) -> None:
    lock = FileLock(tmp_path / "lock")
    lock.release()
    assert (tmp_path / "lock").exists()

    lock = FileLock(tmp_path / "lock")
    lock.release(remove=True)
    lock.release(remove=True)
    assert not (tmp_path / "lock").exists()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_the_lock_of_a_process_that_was_killed_is_free(tmp_path: Path) -> None:
    child = os.fork()
    if child == 0:
        FileLock(tmp_path / "lock")
        os._exit(9)
    os.waitpid(child, 0)

    assert (tmp_path / "lock").read_text() == f"{child}\n"
    FileLock(tmp_path / "lock").release()


def test_a_lock_file_removed_while_another_process_opens_it_is_created_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real = tmp_path / "lock", os.open

    def remove_after_first_open(*arguments: object, **options: object) -> int:
        descriptor = real(*arguments, **options)  # type: ignore[arg-type]
        monkeypatch.undo()
        path.unlink()
        return descriptor

    monkeypatch.setattr(os, "open", remove_after_first_open)
    lock = FileLock(path)

    with pytest.raises(LockedError):
        FileLock(path)
    lock.release()


def test_waiting_ends_when_the_owner_releases_the_lock(tmp_path: Path) -> None:
    owner = FileLock(tmp_path / "lock")
    waits: list[str] = []

    def on_wait() -> None:
        waits.append("once")
        threading.Timer(0.25, owner.release).start()

    wait_for_lock(tmp_path / "lock", on_wait).release()

    assert waits == ["once"]


def test_a_lock_in_a_missing_folder_or_on_a_link_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "victim")

    for path in (tmp_path / "missing" / "lock", tmp_path / "link"):
        with pytest.raises(OutputError) as caught:
            FileLock(path)
        assert caught.value.exit_code == 7
    assert not (tmp_path / "victim").exists()


@pytest.mark.fault("F125")
@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP])
def test_a_file_system_without_locks_is_used_without_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def fail(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr("fcntl.flock", fail)

    with FileLock(tmp_path / "lock"):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"
