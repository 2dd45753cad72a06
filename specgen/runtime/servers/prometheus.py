"""Reads the counters of a server at `/metrics`, in the text format of Prometheus."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from specgen.runtime.servers.values import Acceptance

_LINE = re.compile(r"([a-zA-Z_:][\w:]*)(?:\{([^}]*)\})?\s+([0-9.eE+-]+)")
_POSITION = re.compile(r'position="(\d{1,3})"')
_RUNNING = ("num_requests_running", "requests_processing")


@dataclass(frozen=True, slots=True)
class Counters:
    """What a server has counted since its start, for all its users.

    Args:
        num_rounds: Rounds that drafted.
        accepted_by_position: Kept draft tokens by position.
        num_running: Requests in progress; None if it does not say.
    """

    num_drafted: int
    num_accepted: int
    num_rounds: int
    accepted_by_position: tuple[int, ...] = ()
    num_running: int | None = None

    def since(self, earlier: Counters) -> Acceptance | None:
        """Returns the growth since an earlier reading; None if it is not one, as after a restart."""
        before = (*earlier.accepted_by_position, *[0] * len(self.accepted_by_position))
        grown = Acceptance(
            self.num_drafted - earlier.num_drafted,
            self.num_accepted - earlier.num_accepted,
            self.num_rounds - earlier.num_rounds,
            accepted_by_position=tuple(n - m for n, m in zip(self.accepted_by_position, before, strict=False)),
            source="metrics",
        )
        return grown if grown.is_consistent else None


def read_counters(text: str, prefix: str) -> Counters | None:
    """Returns the counters of drafts, summed over models and engines of the server; None if it has none.

    Args:
        text: The page.
        prefix: What their names begin with, such as `vllm:`.
    """
    sums, by_position = _read(text, prefix)
    names = ("spec_decode_num_draft_tokens", "spec_decode_num_accepted_tokens", "spec_decode_num_drafts")
    if not all(name in sums for name in names):
        return None
    num_drafted, num_accepted, num_rounds = (sums[name] for name in names)
    return Counters(num_drafted, num_accepted, num_rounds, by_position, _num_running(sums))


def num_running(text: str, prefix: str) -> int | None:
    """Returns the requests in progress, summed likewise; None if the page does not say."""
    return _num_running(_read(text, prefix)[0])


def _num_running(sums: Mapping[str, int]) -> int | None:
    return next((sums[name] for name in _RUNNING if name in sums), None)


def _read(text: str, prefix: str) -> tuple[dict[str, int], tuple[int, ...]]:
    """Returns the sums by name, and those of accepted tokens by position."""
    sums: dict[str, int] = {}
    positions: dict[int, int] = {}
    for line in text.splitlines():
        found = _LINE.match(line) if line.startswith(prefix) else None
        if found is None:
            continue
        name = found[1].removeprefix(prefix).removesuffix("_total")
        value = _whole(found[3])
        if name == "spec_decode_num_accepted_tokens_per_pos" and (at := _POSITION.search(found[2] or "")):
            positions[int(at[1])] = positions.get(int(at[1]), 0) + value
        else:
            sums[name] = sums.get(name, 0) + value
    return sums, tuple(positions.get(index, 0) for index in range(max(positions, default=-1) + 1))


def _whole(word: str) -> int:
    try:
        value = float(word)
    except ValueError:
        return 0
    return int(value) if 0 <= value < 2**53 else 0
