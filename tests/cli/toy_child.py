"""Runs the real command line with real models and stops at a forward pass.

    python -m tests.cli.toy_child generate -t TOY "..."

Places of the barrier: `forward N` of the target, counted from 0, the prefill.
"""

from __future__ import annotations

from typing import Any

from specgen.cli import app
from specgen.loading.libraries import prepare_libraries
from tests.cli.barrier import announce_signals, reach


def main() -> None:
    prepare_libraries(verbose=False)
    from specgen.models.cached_model import CachedModel

    forward, calls = CachedModel._forward, iter(range(10**6))

    def announced(self: CachedModel, *arguments: Any) -> Any:
        reach(f"forward {next(calls)}")
        return forward(self, *arguments)

    CachedModel._forward = announced  # type: ignore[method-assign]
    announce_signals()
    app.main()


if __name__ == "__main__":
    main()
