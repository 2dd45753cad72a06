"""Notes what casts doubt on a benchmark of servers."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from time import sleep

from specgen.bench.results import BASELINE
from specgen.runtime.servers.answer import ServedAnswer
from specgen.runtime.servers.prometheus import Counters
from specgen.runtime.servers.server import Server
from specgen.runtime.servers.values import Acceptance

MANY_ROUNDS = 20
"""From here on, a TAR of exactly 1 is more likely a fault of the counters than luck."""
_LATE_SECONDS = 0.5
"""An engine may publish the counters of an answer shortly after its last event."""


class ServedDoubts:
    """What was seen so far, by code. Runs may be noted by any thread.

    Args:
        servers: The one without drafts first.
    """

    def __init__(self, servers: Sequence[Server]) -> None:
        self.by_code: dict[str, str] = {}
        self._servers = servers
        self._counters: list[Counters | None] = []
        self._acceptances: list[tuple[int, Acceptance | None]] = []

    def begin(self) -> None:
        """Compares the models, and reads the counters of drafts of all servers."""
        names = [{one.facts.model, one.facts.root} - {""} for one in self._servers]
        for server, own in zip(self._servers, names, strict=True):
            if not own & names[BASELINE]:
                model = server.facts.model
                self._add("different_models", server, f"runs {model}, not the baseline server's model")
        self._counters = [server.counters() for server in self._servers]

    def check_alone(self, index: int) -> None:
        """Asks a server, which gets none of our requests now, whether it serves others."""
        if self._servers[index].num_running():
            self._add("not_alone", self._servers[index], "served others at the same time")

    def add_acceptance(self, index: int, found: Acceptance | None) -> None:
        """Takes what a server reported with an answer, for the comparison with its counters at the end."""
        self._acceptances.append((index, found))

    def note_retry(self, index: int) -> None:
        """Notes that a server refused a run at first."""
        self._add("retried", self._servers[index], "was busy and refused runs at first")

    def note(self, index: int, answer: ServedAnswer) -> None:
        """Notes what a run shows."""
        counts, server = answer.counts, self._servers[index]
        if answer.uses_own_clock and answer.received.num_pieces < counts.num_emitted - 1:
            self._add("merged_chunks", server, "sends several tokens at once, so times here are coarse")
        if counts.num_rounds > MANY_ROUNDS and counts.acceptance_rate == 1:
            self._add("perfect_acceptance", server, "counts every draft token as accepted: its counters may be wrong")

    def end(self) -> None:
        """Notes servers whose counters do not agree with their answers. Those that served others are not compared."""
        for index in range(len(self._servers)):
            if "not_alone" not in self.by_code:
                self._compare_counters(index)

    def _compare_counters(self, index: int) -> None:
        before, server = self._counters[index], self._servers[index]
        found = [acceptance for number, acceptance in self._acceptances if number == index]
        known = [one for one in found if one is not None and one.source == "response"]
        if before is None or len(known) < len(found):
            return
        reported = _sums(known)
        counted = _growth(server, before)
        if counted != reported:
            sleep(_LATE_SECONDS)
            counted = _growth(server, before)
        if counted is not None and counted != reported:
            of_counters, of_answers = (f"{accepted} of {drafted}" for drafted, accepted in (counted, reported))
            words = f"counted {of_counters} draft tokens as accepted, but reported {of_answers} with its answers"
            self._add("counters_differ", server, words)

    def _add(self, code: str, server: Server, words: str) -> None:
        self.by_code[code] = f"{server.client.address.host} {words}"


def _sums(found: Iterable[Acceptance]) -> tuple[int, int]:
    pairs = [(one.num_drafted, one.num_accepted) for one in found]
    return sum(drafted for drafted, _ in pairs), sum(accepted for _, accepted in pairs)


def _growth(server: Server, before: Counters) -> tuple[int, int] | None:
    after = server.counters()
    grown = None if after is None else after.since(before)
    return None if grown is None else (grown.num_drafted, grown.num_accepted)
