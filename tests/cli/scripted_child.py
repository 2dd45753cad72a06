"""Runs the real command line with a scripted answer instead of a model.

Places of the barrier: `start`, before a command watches signals; `open`, where any command would load models; `round N`
and `baseline` of an answer. SPECGEN_TEST_ROUNDS: rounds of the answer, default 3. SPECGEN_TEST_COUNT: a file that gets
the number of finished rounds before each event, however the program ends.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from typing import Any

import specgen.cli.bench.run as bench
import specgen.cli.generate.local as generate
import specgen.cli.verify.checks as verify
import specgen.doctor.examine as doctor
from specgen.cli import app, streams
from specgen.core.events import FinalText, Finish, FinishReason, Piece, Prefill, Round, RoundText, TextEvent, TokenState
from specgen.core.metrics import Counts
from specgen.core.results import RunReport
from tests.cli.barrier import announce_signals, reach
from tests.render import runs


def answer(num_rounds: int) -> str:
    return "".join(f" word{index} 日\n" for index in range(num_rounds))


class ScriptedGeneration:
    """What the command line needs of a `Generation`. A round is a word, a rejected token and a character."""

    def __init__(self, num_rounds: int) -> None:
        self.info = runs.info()
        self.first_notices = ()
        self.counts = Counts()
        self.notices: list[str] = []
        self.clock = perf_counter
        self._num_rounds = num_rounds
        self._text = ""
        self._reason: FinishReason = "interrupted"
        self.is_interrupted = False

    @property
    def has_begun(self) -> bool:
        return self.counts.num_rounds > 0

    def finish(self) -> None:
        return

    def interrupt(self) -> None:
        self.is_interrupted = True

    def __iter__(self) -> Iterator[TextEvent]:
        path = os.environ.get("SPECGEN_TEST_COUNT")
        for event in self._events():
            if path is not None:
                Path(path).write_text(str(self.counts.num_rounds))
            yield event

    def _events(self) -> Iterator[TextEvent]:
        yield Prefill(9, 0, 0.01, 0.01)
        for index in range(self._num_rounds):
            reach(f"round {index}")
            round_ = Round(index, (1, 2), 1, 3, 0, 0.01, 0.02, 0.0)
            self.counts.observe(round_)
            pieces = (
                Piece(1, f" word{index}", TokenState.ACCEPTED),
                Piece(2, " wrong", TokenState.REJECTED),
                Piece(3, " 日\n", TokenState.CORRECTION),
            )
            event = RoundText(round_, pieces)
            self._text += event.kept
            yield event
            if self.is_interrupted:
                yield FinalText("", Finish("interrupted"))
                return
        self._reason = "stop"
        yield FinalText("", Finish("stop"))

    def measure_baseline(self, method: str) -> None:
        reach("baseline")

    def report(self) -> RunReport:
        return runs.report(self.counts, text=self._text, finish_reason=self._reason)


def starting(real: Any) -> Any:
    def first(*arguments: Any, **options: Any) -> None:
        reach("start")
        real(*arguments, **options)

    return first


def main() -> None:
    num_rounds = int(os.environ.get("SPECGEN_TEST_ROUNDS", "3"))

    def open_generation(*_: Any) -> ScriptedGeneration:
        reach("open")
        return ScriptedGeneration(num_rounds)

    module: Any = generate
    module.open_generation = open_generation
    others: Any = ((verify, "run_checks"), (doctor, "examine"), (bench, "_open_benchmark"))
    for other, name in others:
        assert hasattr(other, name)
        setattr(other, name, lambda *_, **__: reach("open"))
    messages: Any = streams.Messages
    messages.__init__ = starting(messages.__init__)
    announce_signals()
    app.main()


if __name__ == "__main__":
    main()
