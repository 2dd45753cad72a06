"""Limits of control groups, in file trees as systems have them."""

from __future__ import annotations

from pathlib import Path

import pytest

from specgen.core import cgroups
from specgen.loading import libraries, memory

GIB = 2**30


@pytest.fixture
def tree(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Returns the root of an empty tree, in the place of the system's; `/proc/self/cgroup` is its file `self`."""
    monkeypatch.setattr(cgroups, "ROOT", tmp_path)
    monkeypatch.setattr(cgroups, "SELF", tmp_path / "self")
    return tmp_path


def group(folder: Path, limit: object, used: int = 1000, stat: str = "inactive_file 0") -> None:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "memory.max").write_text(f"{limit}\n")
    (folder / "memory.current").write_text(f"{used}\n")
    (folder / "memory.stat").write_text(f"anon 5\n{stat}\n")


@pytest.mark.fault("F124")
@pytest.mark.parametrize("limits", [("max", GIB), (GIB, "max"), (GIB, 2 * GIB), (3 * GIB, GIB)])
def test_the_smallest_limit_on_the_way_up_counts(tree: Path, limits: tuple[object, object]) -> None:
    (tree / "self").write_text("0::/user.slice/job.scope\n")
    group(tree / "user.slice", limits[0])
    group(tree / "user.slice" / "job.scope", limits[1], used=3000, stat="inactive_file 2500")
    group(tree / "other.slice", 17)

    assert cgroups.memory_limit() == GIB
    assert (memory.total_bytes() or 0) <= GIB
    assert cgroups.free_memory() == GIB - (500 if limits[1] == GIB else 1000)


@pytest.mark.fault("F124")
def test_an_outer_group_may_be_fuller_than_an_inner_one(tree: Path) -> None:
    (tree / "self").write_text("0::/a/b\n")
    group(tree / "a", 2 * GIB, used=2 * GIB - 7)
    group(tree / "a" / "b", GIB)

    assert cgroups.memory_limit() == GIB
    assert cgroups.free_memory() == 7


@pytest.mark.fault("F124")
@pytest.mark.parametrize("path", ["/", "/docker/1234", "/../../x", ""])
def test_a_container_sees_its_own_group_as_the_root(tree: Path, path: str) -> None:
    (tree / "self").write_text(f"0::{path}\n")
    group(tree, GIB)

    assert cgroups.memory_limit() == GIB


@pytest.mark.fault("F124")
@pytest.mark.parametrize(("line", "folder"), [("4:memory:/job", "memory/job"), ("4:cpu,memory:/job", "memory/job")])
def test_version_1_has_a_tree_of_its_own(tree: Path, line: str, folder: str) -> None:
    (tree / "self").write_text(f"12:devices:/\n{line}\n0::/\n")
    for place, limit in (("memory", 2**63 - 4096), (folder, GIB)):
        (tree / place).mkdir(parents=True)
        (tree / place / "memory.limit_in_bytes").write_text(f"{limit}\n")
        (tree / place / "memory.usage_in_bytes").write_text("5000\n")
        (tree / place / "memory.stat").write_text("inactive_file 1\ntotal_inactive_file 4000\n")

    assert cgroups.memory_limit() == GIB
    assert cgroups.free_memory() == GIB - 1000


@pytest.mark.parametrize("text", ["", "x", "0:", "::::", "1:memory", "\0"])
def test_unreadable_files_are_no_limit(tree: Path, text: str) -> None:
    (tree / "self").write_text(text)
    group(tree, "max")

    assert cgroups.memory_limit() is None
    assert cgroups.free_memory() is None
    assert cgroups.cpu_limit() is None


@pytest.mark.fault("F124")
@pytest.mark.parametrize(
    ("files", "limit"),
    [
        ({"a/cpu.max": "150000 100000", "a/b/cpu.max": "max 100000"}, 2),
        ({"cpu.max": "100000 100000"}, 1),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, None),
        ({"cpu,cpuacct/a/cpu.cfs_quota_us": "300000", "cpu,cpuacct/a/cpu.cfs_period_us": "100000"}, 3),
    ],
)
def test_cpu_time_is_limited_by_quotas(tree: Path, files: dict[str, str], limit: int | None) -> None:
    (tree / "self").write_text("0::/a/b\n2:cpu,cpuacct:/a\n")
    for name, text in files.items():
        (tree / name).parent.mkdir(parents=True, exist_ok=True)
        (tree / name).write_text(f"{text}\n")

    assert cgroups.cpu_limit() == limit


@pytest.mark.fault("F124")
def test_threads_are_limited_to_the_cpu_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(libraries, "cpu_limit", lambda: 2)
    monkeypatch.setattr("os.cpu_count", lambda: 64)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # so that it is as before in the end
    monkeypatch.delenv("OMP_NUM_THREADS")
    libraries._limit_threads()
    assert libraries.os.environ["OMP_NUM_THREADS"] == "2"

    monkeypatch.setenv("OMP_NUM_THREADS", "5")
    libraries._limit_threads()
    assert libraries.os.environ["OMP_NUM_THREADS"] == "5"
