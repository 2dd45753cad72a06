"""Measures specgen on a GPU: ten parts, each in a process of its own and with a deadline, on random models.

    python -m tests.gpu.on_card --parts 0-4 --seconds 300 --out OUT
    python -m tests.gpu.on_card --parts 5-9 --seconds 240 --out OUT
    python -m tests.gpu.on_card --table OUT/*.jsonl                    the aims, from the figures of both commands
    python -m tests.gpu.on_card --device cpu --tiny --out OUT          a rehearsal; its figures mean nothing

A figure is a printed line, and a line of JSON in `on_card-PARTS.jsonl`. See README, On a GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from tests.gpu import attention, correctness, gates, loop, machine, models, passes, peers, products
from tests.gpu.isolation import Part, Setup, run_parts
from tests.gpu.report import read_figures

PARTS = (
    Part(0, "machine", 15, machine.examine),
    Part(1, "tests", 95, machine.run_tests),
    Part(2, "attention", 30, attention.measure),
    Part(3, "products", 70, products.measure),
    Part(4, "passes", 90, passes.measure),
    Part(5, "recorded = plain", 40, correctness.compare),
    Part(6, "loop", 70, loop.measure),
    Part(7, "near ties", 40, correctness.measure_near_ties),
    Part(8, "memory", 30, machine.measure_memory),
    Part(9, "peers", 150, peers.measure),
)


def main(arguments: Sequence[str] | None = None, parts: Sequence[Part] = PARTS) -> int:
    """Runs parts, or prints the table of figures that are there. Returns the exit code."""
    options = _parser().parse_args(arguments)
    if options.table:
        print(gates.table(read_figures(options.table)), end="")
        return 0
    # Without it, asking whether there is a GPU would start CUDA, and a forked process could not.
    os.environ["PYTORCH_NVML_BASED_CUDA_CHECK"] = "1"
    models.preload()
    numbers = _numbers(options.parts)
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / f"on_card-{options.parts.replace(',', '_')}.jsonl"
    path.write_text("")
    chosen = [part for part in parts if part.number in numbers]
    failed = run_parts(chosen, Setup(options.device, options.tiny, path, options.isolation), options.seconds)
    figures = read_figures([path])
    judged = [
        {"what": one.gate.what, "value": one.value, "verdict": one.verdict, "good": one.gate.good}
        for one in gates.judge(figures)
    ]
    document = {"figures": figures, "gates": judged, "failed_parts": failed}
    path.with_suffix(".json").write_text(json.dumps(document, indent=1))
    print(gates.table(figures), end="")
    return 1 if failed else 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.on_card", description=__doc__.partition("\n")[0])
    parser.add_argument("--parts", default="0-9", help="numbers and ranges: 0-4, or 3,7 [default 0-9]")
    parser.add_argument("--seconds", type=float, default=540, help="deadline of the run [default 540]")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="folder [default $OUT]")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--tiny", action="store_true", help="tiny models and few repeats: a rehearsal")
    parser.add_argument("--isolation", choices=("fork", "spawn"), default="fork", help="how a part is started")
    parser.add_argument(
        "--table", type=Path, nargs="+", metavar="FILE", help="print the aims from figures, run nothing"
    )
    return parser


def _numbers(given: str) -> set[int]:
    """Reads `0-4` or `3,7`."""
    found: set[int] = set()
    for part in given.split(","):
        first, _, last = part.partition("-")
        found |= set(range(int(first), int(last or first) + 1))
    return found


if __name__ == "__main__":
    sys.exit(main())
