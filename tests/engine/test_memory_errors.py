"""Errors of memory and of drafters: what they are converted to, and when they are freed."""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from specgen.core.errors import DraftError, MemoryShortageError
from specgen.engine.drafters.base import draft_errors
from specgen.engine.memory_errors import memory_errors, memory_shortage


class Held:
    """Stands for a tensor of a pass."""


@pytest.fixture
def no_collection() -> Iterator[None]:
    gc.disable()
    yield
    gc.enable()


@pytest.mark.parametrize("block", [memory_errors, draft_errors])
@pytest.mark.usefixtures("no_collection")
def test_a_failed_pass_holds_no_memory_once_its_error_was_handled(block: Callable[[], Any]) -> None:
    """The step is repeated at once, so its memory can't wait for the garbage collector."""

    def fail() -> weakref.ref[Held]:
        held = Held()
        refs.append(weakref.ref(held))
        raise RuntimeError("CUDA out of memory")

    refs: list[weakref.ref[Held]] = []
    kinds = []
    try:
        with block():
            fail()
    except (DraftError, MemoryShortageError) as error:
        kinds.append(type(error))
    assert kinds == [MemoryShortageError if block is memory_errors else DraftError]
    assert [ref() for ref in refs] == [None]


def test_memory_that_ran_out_in_a_draft_is_the_cause_of_its_failure() -> None:
    with pytest.raises(DraftError) as caught, draft_errors():
        raise MemoryError
    assert isinstance(caught.value.__cause__, MemoryShortageError)
    assert str(caught.value) == memory_shortage().message
    assert isinstance(caught.value.__cause__.__cause__, MemoryError)


@pytest.mark.parametrize("error", [KeyboardInterrupt(), DraftError("known")])
def test_an_interruption_and_a_known_failure_leave_a_draft_as_they_are(error: BaseException) -> None:
    with pytest.raises(type(error)) as caught, draft_errors():
        raise error
    assert caught.value is error
