"""What the host writes for a pass: the values, and how few operations they take."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from specgen.core.settings import DecodeSettings
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.sampling import Sampler
from specgen.models.static.inputs import DraftFlag, PassInputs
from specgen.models.static.model import StaticModel
from specgen.models.static.passes import DecoderPass
from tests.decoders import decoder_of
from tests.fakes import GREEDY, tiny_model
from tests.models.static.recorder import EagerMode, written_by

CPU = torch.device("cpu")


class NoWork:
    """A recorder whose replays do nothing: what is left is the host's work."""

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        return lambda: None


class Writes(EagerMode):
    """Counts the operations that write to a tensor: on CUDA a launch each."""

    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if written_by(func, args, kwargs or {}) and func is not torch.ops.aten.detach_.default:
            self.count += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("is_on_device", [False, True])
def test_a_pass_gets_its_ids_position_and_count(is_on_device: bool) -> None:
    inputs = PassInputs(CPU)
    inputs.write([9] * 17, 1, 17)
    new = [5, 6, 7]

    inputs.write(torch.tensor(new) if is_on_device else new, 40, 3)
    inputs.write_draft(torch.tensor([8]))

    assert inputs.ids.tolist() == [5, 8, 7] + [9] * 14
    assert (inputs.position.tolist(), inputs.count.tolist()) == ([40], [3])


def test_a_draft_is_finite_again_after_one_that_was_not() -> None:
    flag = DraftFlag(CPU)
    found = []
    for is_finite in (None, torch.tensor(False), torch.tensor([True]), torch.tensor([False]), None, None):
        flag.write(is_finite)
        found.append(bool(flag.is_finite))

    assert found == [True, False, True, False, True, True]


@pytest.mark.parametrize(("num_drafted", "expected"), [(0, 1), (3, 4)])
def test_a_round_writes_few_inputs(num_drafted: int, expected: int) -> None:
    """An upload for each model's first pass; with a draft, the target also gets its ids and whether it is finite."""
    target, draft = (StaticModel(DecoderPass(decoder_of(tiny_model("llama", seed))), 96, NoWork()) for seed in range(2))
    sampler = Sampler.seeded(GREEDY, CPU, 96)
    drafter = ModelDrafter(draft, 96, sampler) if num_drafted else NoDrafter()
    # A verdict that no replay changes: nothing is accepted, and the target's own token is 3.
    with torch.inference_mode():
        target._verdict[:4] = torch.tensor([0, 3, 1, 1])
    counts = []
    events = decode(target, drafter, [1, 2, 3], sampler, DecodeOptions(DecodeSettings(12, num_drafted)))
    next(events)
    while len(counts) < 6:
        with Writes() as writes:
            next(events)
        counts.append(writes.count)

    assert counts[-3:] == [expected] * 3
