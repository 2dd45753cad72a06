"""Resources over many turns of one chat: memory, files, threads and objects stay flat."""

from __future__ import annotations

import gc
import os
import threading
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path

import pytest

from specgen.cli.chat.session import Autosave
from specgen.loading import libraries
from specgen.runtime.conversation import Conversation
from specgen.storage.saved_chats import SessionFolder
from specgen.storage.transcript import SavedModel, Transcript
from tests.cli.chat.scenes import SHORT, converse, open_toy, reply


@dataclass(frozen=True)
class Levels:
    """The resources of a process."""

    files: int
    threads: int
    objects: int
    resident: int


def levels() -> Levels:
    # What tests import is frozen, and so left out of a collection, which would take seconds. Where loading freezes its
    # objects, as it does outside of tests, those must be looked at, too.
    if libraries.gc is gc:
        gc.unfreeze()
    gc.collect()
    resident = int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    num_objects = gc.get_freeze_count() + len(gc.get_objects())
    return Levels(len(os.listdir("/proc/self/fd")), threading.active_count(), num_objects, resident)


def transcript(conversation: Conversation) -> Transcript:
    created = datetime(2026, 1, 1).isoformat()
    return Transcript(conversation.messages, None, SavedModel("toy"), "lookup", None, {}, created)


def run_turns(talker: Path, num_turns: int, num_warm: int) -> tuple[Levels, Levels, list[int]]:
    conversation = converse(open_toy(talker), replace(SHORT, max_new_tokens=30))
    autosave = Autosave(SessionFolder(), is_on=True, warn=pytest.fail)
    sizes, warm = [], None
    for turn in range(num_turns):
        generation = reply(conversation, f"Question {turn}")
        if turn == 0:
            conversation.calibrate(generation)
        if turn % 10 == 9:
            conversation.take_back()
        autosave.save(transcript(conversation))
        assert autosave.file is not None
        sizes.append(autosave.file.path.stat().st_size)
        if turn == num_warm:
            warm = levels()
    last = levels()
    autosave.close()
    assert warm is not None
    return warm, last, sizes


def assert_flat(warm: Levels, last: Levels, num_turns: int) -> None:
    assert last.files <= warm.files
    assert last.threads <= warm.threads
    # A turn adds its two messages with their statistics, and nothing else.
    assert last.objects - warm.objects <= 8 * num_turns + warm.objects // 100
    # Text, lookup index and the toy's cache of 64 bytes per token; a leak of tensors would be far larger.
    assert last.resident - warm.resident < 24 * 2**20


@pytest.mark.thorough
def test_sixty_turns_leave_files_threads_objects_and_memory_flat(talker: Path) -> None:
    warm, last, sizes = run_turns(talker, 60, 20)

    assert_flat(warm, last, 40)
    # Linear: the second half adds as much as the first.
    assert abs((sizes[59] - sizes[29]) - (sizes[29] - sizes[0])) < 0.2 * sizes[59]


@pytest.mark.slow
def test_three_hundred_turns_leave_files_threads_objects_and_memory_flat(talker: Path) -> None:
    warm, last, sizes = run_turns(talker, 300, 60)

    assert_flat(warm, last, 240)
    assert abs((sizes[299] - sizes[149]) - (sizes[149] - sizes[0])) < 0.2 * sizes[299]
