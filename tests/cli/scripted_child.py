"""The real command line with a scripted answer instead of a model.

Places of the barrier: `start`, before a command watches signals; `open`, where any command would load models; `round N`
and `baseline` of an answer. SPECGEN_TEST_ROUNDS: rounds of the answer, default 3. SPECGEN_TEST_COUNT: a file that gets
the number of finished rounds before each event, however the program ends.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import specgen.cli.doctor.run as doctor
import specgen.cli.verify.run as verify
from specgen.cli import app
from specgen.cli.bench.measure import open_benchmark
from specgen.cli.request import build_request, pair_settings
from specgen.cli.streams import Messages
from specgen.core.events import FinalText, Finish, FinishReason, Piece, Prefill, Round, RoundText, TextEvent, TokenState
from specgen.core.metrics import Counts
from specgen.core.results import RunReport
from specgen.loading.libraries import prepare_libraries
from specgen.runtime import learned_costs
from specgen.runtime.generation import Generation
from specgen.runtime.loaded_models import load_models
from specgen.runtime.pair import resolve_pair
from tests.cli.barrier import announce_signals, reach
from tests.render import runs


def answer(num_rounds: int) -> str:
    return "".join(f" word{index} 日\n" for index in range(num_rounds))


class ScriptedGeneration:
    """What the command line needs of a `Generation`. A round is a word, a rejected token and a character."""

    def __init__(self, num_rounds: int) -> None:
        self.info = runs.info()
        self.models = SimpleNamespace(notices=())
        self.counts = Counts()
        self.notices: list[str] = []
        self.clock = perf_counter
        self._num_rounds = num_rounds
        self._text = ""
        self._reason: FinishReason = "interrupted"
        self.is_interrupted = False

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


def replace(real: Any, stand_in: Any) -> None:
    """Replaces an object under each name that a module of specgen has for it."""
    for module_name, module in list(sys.modules.items()):
        if module_name.startswith("specgen."):
            for name, value in list(vars(module).items()):
                if value is real:
                    setattr(module, name, stand_in)


def main() -> None:
    num_rounds = int(os.environ.get("SPECGEN_TEST_ROUNDS", "3"))

    def nothing(*_: Any, **__: Any) -> Any:
        return None

    def reach_open(*_: Any, **__: Any) -> Any:
        reach("open")

    for unused in (
        prepare_libraries,
        pair_settings,
        build_request,
        resolve_pair,
        learned_costs.load,
        learned_costs.save,
    ):
        replace(unused, nothing)
    for opening in (load_models, verify._prove, doctor._examine, open_benchmark):
        replace(opening, reach_open)
    replace(Generation, lambda *_: ScriptedGeneration(num_rounds))
    messages: Any = Messages
    messages.__init__ = starting(messages.__init__)
    announce_signals()
    app.main()


if __name__ == "__main__":
    main()
