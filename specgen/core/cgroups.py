"""Reads the limits of the control groups that this process is in: memory in bytes and CPU time. Standard library only.

A limit may be set on any group from the process's own one up to the root, as by systemd slices, and the smallest one
counts. In a container the mounted tree may begin at the container's own group: the path in `/proc/self/cgroup` does not
exist below it, and its root is the group to read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path("/sys/fs/cgroup")
SELF = Path("/proc/self/cgroup")


def memory_limit() -> int | None:
    """Returns the smallest memory limit of the process, or None without a limit."""
    return min((limit for limit, _ in _memory()), default=None)


def free_memory() -> int | None:
    """Returns the memory that is free within the limits, or None without a limit.

    Page cache that can be dropped counts as used, and is added back.
    """
    return min((max(0, limit - used) for limit, used in _memory()), default=None)


def cpu_limit() -> int | None:
    """Returns how many CPUs the process may keep busy, rounded up, or None without a limit."""
    quotas = []
    for folder in _groups("cpu"):
        quota, _, period = _text(folder / "cpu.max").partition(" ")  # version 2: "200000 100000", or "max 100000"
        if not period:
            quota, period = _text(folder / "cpu.cfs_quota_us"), _text(folder / "cpu.cfs_period_us")
        if quota.isdigit() and period.isdigit() and int(quota) > 0 and int(period) > 0:
            quotas.append(math.ceil(int(quota) / int(period)))
    return min(quotas, default=None)


def _memory() -> Iterator[tuple[int, int]]:
    """Yields the limit of each group that has one, and the memory used there that can't be dropped."""
    for folder in _groups("memory"):
        for limit_name, used_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit = _text(folder / limit_name)
            if limit.isdigit():  # "max" means unlimited
                used = _text(folder / used_name)
                cached = dict(line.split(" ", 1) for line in _text(folder / "memory.stat").split("\n") if " " in line)
                cache = cached.get(cache_name, "0").strip()
                yield int(limit), (int(used) if used.isdigit() else 0) - (int(cache) if cache.isdigit() else 0)


def _groups(controller: str) -> Iterator[Path]:
    """Yields the folders of the process's groups for a controller, in both versions, from the innermost to the root."""
    seen = {ROOT}
    for line in _text(SELF).split("\n"):
        number, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        if controller in controllers.split(","):
            roots = [ROOT / controller, ROOT / controllers]
        elif number == "0" and not controllers:
            roots = [ROOT]
        else:
            continue
        # `..` leads out of the part of the tree that a namespace shows.
        parts = [part for part in PurePosixPath(path).parts if part not in ("/", "..")]
        for root in roots:
            for count in range(len(parts), -1, -1):
                folder = root.joinpath(*parts[:count])
                if folder not in seen:
                    seen.add(folder)
                    yield folder
    yield from (folder for folder in (ROOT, ROOT / controller) if folder == ROOT or folder not in seen)


def _text(path: Path) -> str:
    try:
        return path.read_text().strip()
    except (OSError, ValueError):
        return ""
