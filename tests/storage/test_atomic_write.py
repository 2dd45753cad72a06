"""Atomic replacement of files: after any failure the old or the new content is there, and nothing else."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Callable
from pathlib import Path

import pytest

from specgen.core.errors import OutputError
from specgen.storage.atomic_write import (
    USER_FILE,
    check_output_path,
    is_output_stream,
    publish_folder,
    replace_file,
    replacement,
    write_output,
)

OLD, NEW = b"old", b"new content, longer than the old"


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "folder" / "notes.json"
    path.parent.mkdir()
    path.write_bytes(OLD)
    return path


def names_beside(path: Path) -> list[str]:
    return [each.name for each in path.parent.iterdir()]


@pytest.mark.parametrize(("mode", "expected"), [(0o600, 0o600), (USER_FILE, 0o644)])
def test_a_file_gets_the_mode_that_was_requested(path: Path, mode: int, expected: int) -> None:
    previous = os.umask(0o022)
    try:
        replace_file(path, NEW, mode)
    finally:
        os.umask(previous)

    assert stat.S_IMODE(path.stat().st_mode) == expected
    assert (path.read_bytes(), names_beside(path)) == (NEW, ["notes.json"])


def test_a_private_file_replaces_a_link_and_leaves_its_target(path: Path, tmp_path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)

    replace_file(link, NEW)

    assert not link.is_symlink()
    assert (link.read_bytes(), path.read_bytes()) == (NEW, OLD)


def die_at(step: str, count: int, when: str) -> None:
    """Lets the n-th call of a function of `os` end the process, before or after its work."""
    real, calls = getattr(os, step), []

    def dying(*arguments: object, **options: object) -> object:
        calls.append(step)
        if len(calls) == count:
            if step == "write" and when == "after":
                real(arguments[0], bytes(arguments[1])[:10])  # type: ignore[call-overload]
            elif when == "after":
                real(*arguments, **options)
            os._exit(9)
        return real(*arguments, **options)

    setattr(os, step, dying)


@pytest.mark.parametrize(
    ("step", "count", "when"),
    [
        (step, count, when)
        for step, count in (("write", 1), ("fsync", 1), ("replace", 1), ("fsync", 2))
        for when in ("before", "after")
    ],
)
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.fault("F63")
def test_killed_at_any_step_the_old_or_the_new_content_is_there(path: Path, step: str, count: int, when: str) -> None:
    child = os.fork()
    if child == 0:
        die_at(step, count, when)
        replace_file(path, NEW)
        os._exit(0)

    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 9
    is_replaced = (step, when) == ("replace", "after") or (step, count) == ("fsync", 2)
    assert path.read_bytes() == (NEW if is_replaced else OLD)


def failing(step: str, count: int, number: int) -> Callable[..., object]:
    real, calls = getattr(os, step), []

    def fail(*arguments: object, **options: object) -> object:
        calls.append(step)
        if len(calls) == count:
            raise OSError(number, os.strerror(number))
        return real(*arguments, **options)

    return fail


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EFBIG, errno.EIO])
@pytest.mark.parametrize("step", ["open", "write", "fsync", "replace"])
@pytest.mark.fault("F62")
def test_a_failed_step_leaves_the_old_content_and_no_temporary_file(
    path: Path, monkeypatch: pytest.MonkeyPatch, step: str, number: int
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(os, step, failing(step, 1, number))
        with pytest.raises(OutputError) as caught:
            replace_file(path, NEW)

    assert caught.value.exit_code == 7
    assert os.strerror(number) in caught.value.message
    assert (path.read_bytes(), names_beside(path)) == (OLD, ["notes.json"])


def test_an_error_is_raised_exactly_if_the_old_content_is_still_there(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every call of the system fails in turn."""
    outcomes = []
    for count in range(1, 20):
        replace_file(path, OLD)
        with monkeypatch.context() as patch:
            calls = fail_at(patch, count)
            try:
                replace_file(path, NEW)
                expected = NEW
            except OutputError:
                expected = OLD
        if len(calls) < count:
            break
        outcomes.append((calls[count - 1], expected is NEW))
        assert path.read_bytes() == expected, f"call {count}, {calls[count - 1]}"
        assert names_beside(path) == ["notes.json"]

    before = [(step, False) for step in ("open", "write", "fsync", "close", "replace")]
    assert outcomes == [*before, ("open", True), ("fsync", True), ("close", True)]


def fail_at(patch: pytest.MonkeyPatch, count: int) -> list[str]:
    """Makes the n-th writing call of any kind fail; returns the list of calls."""
    calls: list[str] = []

    def failing_at(step: str, real: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **options: object) -> object:
            calls.append(step)
            if len(calls) == count:
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return real(*arguments, **options)

        return call

    for step in ("open", "write", "fsync", "close", "replace"):
        patch.setattr(os, step, failing_at(step, getattr(os, step)))
    return calls


def test_a_write_in_pieces_is_complete(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda descriptor, data: real(descriptor, bytes(data)[:7]))

    replace_file(path, NEW)

    assert path.read_bytes() == NEW


def test_a_replacement_that_is_interrupted_leaves_the_old_content(path: Path) -> None:
    def write_and_stop() -> None:
        with replacement(path) as temporary:
            temporary.write_bytes(NEW)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_and_stop()

    assert (path.read_bytes(), names_beside(path)) == (OLD, ["notes.json"])


def test_a_published_folder_replaces_an_incomplete_one(tmp_path: Path) -> None:
    made, final = tmp_path / ".made", tmp_path / "final"
    for folder, name in ((made, "config.json"), (final, "left over")):
        folder.mkdir()
        (folder / name).write_text("{}")

    publish_folder(made, final)

    assert [path.name for path in tmp_path.iterdir()] == ["final"]
    assert [path.name for path in final.iterdir()] == ["config.json"]


def test_the_file_of_a_user_is_written_through_its_link(path: Path) -> None:
    link = path.with_name("link")
    link.symlink_to(path)

    write_output(link, NEW)

    assert link.is_symlink()
    assert path.read_bytes() == NEW


def test_an_open_descriptor_is_written_at_its_position(path: Path) -> None:
    descriptor = os.open(path, os.O_WRONLY)
    try:
        os.lseek(descriptor, 0, os.SEEK_END)
        write_output(Path(f"/dev/fd/{descriptor}"), NEW)
    finally:
        os.close(descriptor)

    assert path.read_bytes() == OLD + NEW
    assert is_output_stream(Path("/dev/null"))
    assert is_output_stream(Path("/dev/stdout"))
    assert not is_output_stream(path)


def test_an_output_path_that_cannot_be_written_is_refused_before_any_work(path: Path, tmp_path: Path) -> None:
    check_output_path(None, "the answer")
    check_output_path(path, "the answer")

    for wrong, named in ((tmp_path / "nowhere" / "file", tmp_path / "nowhere"), (path.parent, path.parent)):
        with pytest.raises(OutputError) as caught:
            check_output_path(wrong, "the answer")
        assert str(named) in caught.value.message


@pytest.mark.fault("F125")
@pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP, errno.EBADF])
def test_a_folder_that_cannot_be_synced_is_published(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    made = tmp_path / "made"
    made.mkdir()
    (made / "file").write_bytes(NEW)
    _fail_for_folders(monkeypatch, code)

    publish_folder(made, tmp_path / "final")

    assert (tmp_path / "final" / "file").read_bytes() == NEW


@pytest.mark.fault("F125")
def test_a_folder_on_a_failing_disk_is_not_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made").mkdir()
    _fail_for_folders(monkeypatch, errno.EIO)

    with pytest.raises(OSError, match="Input/output"):
        publish_folder(tmp_path / "made", tmp_path / "final")
    assert not (tmp_path / "final").exists()


def _fail_for_folders(monkeypatch: pytest.MonkeyPatch, code: int) -> None:
    fsync = os.fsync

    def fail(descriptor: int) -> None:
        if stat.S_ISDIR(os.fstat(descriptor).st_mode):
            raise OSError(code, os.strerror(code))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", fail)
