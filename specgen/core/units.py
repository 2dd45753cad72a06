"""Formats sizes for people."""

from __future__ import annotations


def format_size(num_bytes: float) -> str:
    """Returns `1.5 GiB`, `300 MiB` below one GiB, or `12 KiB` below one MiB."""
    if num_bytes >= 2**30:
        return f"{num_bytes / 2**30:.1f} GiB"
    return f"{num_bytes / 2**20:.0f} MiB" if num_bytes >= 2**20 else f"{num_bytes / 2**10:.0f} KiB"
