"""The fake device of the tests sees what it must see."""

from __future__ import annotations

import pytest
import torch

from specgen.engine.randomness import PositionNoise
from specgen.engine.transfer import HostCopy, ids_on, moved
from tests.fake_cuda import FAKE, HOST, fake_cuda


def test_tensors_of_two_devices_cannot_meet(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch):
        host, device = torch.ones(2, 2), torch.ones(2, 2, device="cuda")
        for work in (lambda: host @ device, lambda: torch.cat([host, device]), lambda: device.add_(host)):
            with pytest.raises(RuntimeError, match="same device"):
                work()
        with pytest.raises(TypeError):
            device.numpy()

        assert (device @ host.to(device.device)).device == FAKE
        assert (device * 2 + torch.tensor(1.0)).is_cuda
        assert device.cpu().device == HOST


def test_reads_and_uploads_from_ordinary_memory_are_listed(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch) as seen:
        device = torch.zeros(3, device="cuda")
        for read in (lambda: float(device[0]), lambda: device.tolist(), lambda: bool(device.any()), device.cpu):
            for is_inference in (False, True):
                with torch.inference_mode(is_inference):
                    read()
                assert len(seen.reads) == 1
                seen.reads.clear()
        device[torch.tensor([True, False, True], device="cuda")]
        assert len(seen.reads) == 1
        for upload in (lambda: torch.ones(3).to("cuda"), lambda: device.copy_(torch.ones(3)), lambda: device[[0, 1]]):
            upload()
            assert len(seen.pageable) == 1
            seen.pageable.clear()


def test_copies_of_the_engine_do_not_wait(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch) as seen:
        ids = ids_on(FAKE, [3, 4])
        there = moved(torch.tensor([5, 6]), FAKE)

        assert ids.device == there.device == FAKE
        assert moved(there, FAKE) is there
        assert (seen.reads, seen.pageable) == ([], [])
        assert torch.cat([ids, there]).tolist() == [3, 4, 5, 6]


def test_a_copy_to_pinned_memory_waits_when_it_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch) as seen:
        source = torch.tensor([1, 2], device="cuda")
        first, second = HostCopy(source), HostCopy(source)
        first.start()
        source += 1
        second.start()
        assert seen.reads == []

        assert (first.read(), second.read()) == ([1, 2], [2, 3])
        assert len(seen.reads) == 2


def test_a_copy_that_is_read_too_early_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch):
        early = HostCopy(torch.ones(2, device="cuda"))
        early.start()
        with pytest.raises(AssertionError, match="before it has ended"):
            early._copy.tolist()


@pytest.mark.parametrize(("device", "place"), [("cuda", "cuda"), ("mps", "cpu"), ("cpu", "cpu")])
def test_position_noise_is_made_on_the_device_of_the_target(
    device: str, place: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with fake_cuda(monkeypatch):
        rows = PositionNoise(3, 10, torch.device(device)).rows(7, 2)

        assert (rows.device.type, rows.dtype) == (place, torch.float64)
