"""Sizes for people."""

from __future__ import annotations


def gigabytes(num_bytes: float) -> str:
    """A size for people, in decimal units as disks and hubs count."""
    return f"{num_bytes / 1e9:.1f} GB" if num_bytes >= 1e8 else f"{num_bytes / 1e6:.1f} MB"
