"""Fuzzing by the clock: `python -m tests.fuzz gguf --minutes 10`; also `sanitizer`, `session`. Prints each seed tried.

A finding ends the run with the input in hexadecimal and the seed that makes it again (`--seed`).
"""

from __future__ import annotations

import argparse
import random
import sys
import time

from tests.fuzz.targets import TARGETS


def fuzz(name: str, seconds: float, seed: int) -> int:
    """Run one target until the time is over.

    Returns:
        How many inputs were tried.

    Raises:
        AssertionError: A promise was broken; the message holds the input.
    """
    make, check = TARGETS[name]
    source = random.Random(seed)
    ends = time.monotonic() + seconds
    count = 0
    while time.monotonic() < ends:
        data = make(source)
        try:
            check(data)
        except Exception as error:
            raise AssertionError(f"{name}, seed {seed}, input {count}: {error!r}\n{data.hex()}") from error
        count += 1
    return count


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=None)
    arguments = parser.parse_args()
    seed = random.SystemRandom().randrange(2**32) if arguments.seed is None else arguments.seed
    try:
        count = fuzz(arguments.target, 60 * arguments.minutes, seed)
    except AssertionError as finding:
        print(f"FINDING {finding}")
        return 1
    print(f"{arguments.target}: {count} inputs in {arguments.minutes:g} minutes, seed {seed}, no finding")
    return 0


if __name__ == "__main__":
    sys.exit(main())
