"""Marks tests that start processes or are thorough, and reports tests that could not run, or were long."""

from __future__ import annotations

import os
import subprocess
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Sequence
from fnmatch import fnmatchcase
from types import CodeType, FunctionType
from typing import Any

import pexpect
import pytest

from tests.processes.forked import ForkedProcess, server_socket

STARTERS: tuple[object, ...] = (subprocess, pexpect, ForkedProcess, server_socket)
FORKS = {"fork", "forkpty"}
"""Functions of `os`."""
ON_REQUEST = ("slow", "gpu", "server")
THOROUGH_SECONDS = 0.2
"""A test that computes longer is `thorough`, if a faster one sees the same kind of fault."""
NEED = "needs "
"""How the reason of a skip begins that is for want of a kernel, a device or a library."""


def mark_processes(items: Iterable[pytest.Item]) -> None:
    """Marks with `process` each test that reaches a starter of processes, itself or through what it is given."""
    known: dict[object, bool] = {}
    for item in items:
        fixtures = item._fixtureinfo.name2fixturedefs.values()
        values = item.callspec.params.values() if hasattr(item, "callspec") else ()
        functions = [getattr(item, "function", None), *(one.func for found in fixtures for one in found), *values]
        if any(_starts_process(function, known) for function in functions):
            item.add_marker("process")


def _starts_process(thing: Any, known: dict[object, bool]) -> bool:
    function = getattr(thing, "__wrapped__", thing)
    if isinstance(function, type):
        return any(_starts_process(one, known) for one in vars(function).values() if isinstance(one, FunctionType))
    if not isinstance(function, FunctionType) or not function.__module__.startswith("tests."):
        return False
    if function not in known:
        known[function] = False  # ends recursion
        names = set(_names(function.__code__))
        values = [function.__globals__[name] for name in names if name in function.__globals__]
        known[function] = (
            (bool(names & FORKS) and any(value is os for value in values))
            or any(value is starter for value in values for starter in STARTERS)
            or any(_starts_process(value, known) for value in values)
        )
    return known[function]


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def mark_thorough(items: Iterable[Any]) -> None:
    """Marks with `thorough` the parameters that a test's marker `fast` leaves out. One of a test always stays."""
    functions: dict[Any, list[Any]] = defaultdict(list)
    for item in items:
        if hasattr(item, "callspec") and item.get_closest_marker("fast") is not None:
            functions[item.parent, item.function].append(item)
    for function in functions.values():
        kept = [item for item in function if _is_fast(item)] or function[:1]
        for item in function:
            if item not in kept:
                item.add_marker("thorough")


def _is_fast(item: Any) -> bool:
    marker = item.get_closest_marker("fast")
    without: Sequence[str] = marker.kwargs.get("without", ())
    patterns = marker.args or ("*",)
    name = item.callspec.id
    return any(fnmatchcase(name, one) for one in patterns) and not any(fnmatchcase(name, one) for one in without)


def deselect_unless_requested(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Deselects tests with a marker of `ON_REQUEST` that -m does not mention."""
    requested = str(config.option.markexpr)
    left_out = [marker for marker in ON_REQUEST if marker not in requested]
    kept, dropped = [], []
    for item in items:
        is_dropped = any(item.get_closest_marker(marker) for marker in left_out)
        (dropped if is_dropped else kept).append(item)
    if dropped:
        items[:] = kept
        config.hook.pytest_deselected(items=dropped)


def report_needs(config: pytest.Config) -> None:
    """Writes, as the last line of a run, which tests were not run and what they need."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput"):
        return
    reasons = (report.longrepr[2] for report in reporter.stats.get("skipped", ()))
    needs = Counter(reason.partition(NEED)[2] for reason in reasons if NEED in reason)
    if needs:
        listed = ", ".join(f"{count} tests need {need}" for need, count in sorted(needs.items()))
        reporter.write_line(f"not run here: {listed}")


def long_tests(reports: Iterable[Any]) -> list[tuple[str, float]]:
    """Returns the tests that took longer than `THOROUGH_SECONDS` with their fixtures, the longest first."""
    seconds: Counter[str] = Counter()
    for report in reports:
        if hasattr(report, "nodeid"):
            seconds[report.nodeid] += getattr(report, "duration", 0.0)
    return [(name, taken) for name, taken in seconds.most_common() if taken > THOROUGH_SECONDS]


def report_long(config: pytest.Config) -> None:
    """Writes, after the fast lane, how many of its tests took longer than the rule of `thorough` allows."""
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None or hasattr(config, "workerinput") or "not thorough" not in str(config.option.markexpr):
        return
    long = long_tests(report for reports in reporter.stats.values() for report in reports)
    if long:
        name, taken = long[0]
        counted = (
            f"{len(long)} tests took more than {THOROUGH_SECONDS} s, {sum(each for _, each in long):.0f} s together"
        )
        reporter.write_line(f"fast lane: {counted}; the longest took {taken:.1f} s: {name}")
