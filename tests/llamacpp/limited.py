"""Runs a module's `main` with at most 6 GiB of address space: `python -m tests.llamacpp.limited MODULE ARGUMENT...`.

A size of 2^31 in a header must not fill the machine's memory, whoever believes it.
"""

from __future__ import annotations

import importlib
import resource
import sys

MAX_BYTES = 6 * 2**30


def main() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (MAX_BYTES, MAX_BYTES))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    module = sys.argv[1]
    sys.argv = [module, *sys.argv[2:]]
    importlib.import_module(module).main()


if __name__ == "__main__":
    main()
