"""Runs a piece of code in a fork of the fork server; see `test_lean_import`."""

from __future__ import annotations

import json
import sys


def main() -> None:
    """Runs the first argument as a program that has imported json and sys."""
    code, *sys.argv[1:] = sys.argv[1:]
    exec(code, {"__name__": "__main__", "json": json, "sys": sys})
