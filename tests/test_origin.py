"""What `--version` knows of the commit, in a checkout, in a wheel, and in somebody else's checkout."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from specgen.origin import COMMIT_FILE, find_commit


def git(folder: Path, *words: str) -> str:
    who = ["-c", "user.name=a", "-c", "user.email=a@example.org", "-c", "commit.gpgsign=false"]
    return subprocess.run(["git", *who, *words], cwd=folder, capture_output=True, text=True, check=True).stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A repository with a commit and a package in it."""
    (tmp_path / "specgen").mkdir()
    git(tmp_path, "init", "-q")
    git(tmp_path, "commit", "-q", "--allow-empty", "-m", "first")
    return tmp_path


def test_a_checkout_tells_its_commit(checkout: Path) -> None:
    (checkout / "pyproject.toml").touch()

    found = find_commit(checkout / "specgen")

    assert found is not None
    assert git(checkout, "rev-parse", "HEAD").startswith(found)


def test_a_copy_in_an_unrelated_checkout_has_no_commit(checkout: Path) -> None:
    assert find_commit(checkout / "specgen") is None


@pytest.mark.parametrize(("note", "commit"), [("0123456789ab\n", "0123456789ab"), ("\x1b]0;x\x07", None), ("", None)])
def test_a_wheel_tells_what_was_noted_and_only_if_it_is_a_commit(tmp_path: Path, note: str, commit: str | None) -> None:
    (tmp_path / COMMIT_FILE).write_text(note)

    assert find_commit(tmp_path) == commit
