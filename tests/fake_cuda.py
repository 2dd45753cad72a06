"""Gives a CPU a second device that calls itself CUDA: tensors of both may not meet, and copies and reads are listed.

All values are real and in host memory, so code for CUDA devices runs to its end. A tensor belongs to the fake device
if its storage was made there: by `device=`, by `.to()`, or by an operation on tensors of the device. As on CUDA, an
operation on tensors of both devices fails, except for copies, numbers without dimensions, and indices on the host.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef
from torch.overrides import TorchFunctionMode

from tests.models.static.recorder import EagerMode, tensors_in

FAKE = torch.device("cuda:0")
HOST = torch.device("cpu")
aten = torch.ops.aten
COPIES = {aten.copy_.default, aten._to_copy.default}
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}
READS = {
    *(aten._local_scalar_dense.default, aten.item.default, aten.is_nonzero.default, aten.equal.default),
    *(aten.nonzero.default, aten.masked_select.default),
}


class FakeCuda(TorchFunctionMode):
    """The fake device; use `fake_cuda`."""

    def __init__(self) -> None:
        super().__init__()
        self.reads: list[str] = []
        """Calls that wait for the device: of the module that read, what it called."""
        self.pageable: list[str] = []
        """Uploads from memory that is not pinned, which wait, too."""
        self.num_events = self.num_over = 0
        """Events recorded, and how many of them are over for sure: waiting for those takes no time."""
        self.warns_of_reads = False
        self.made_on: torch.device | None = None
        self._on_device: dict[int, StorageWeakRef] = {}
        self._pinned: dict[int, StorageWeakRef] = {}
        self._unfinished: dict[int, StorageWeakRef] = {}
        """Pinned memory that a copy from the device is on its way to."""

    def device_of(self, tensor: Tensor) -> torch.device:
        return FAKE if self._is_in(self._on_device, tensor) else HOST

    def tag(self, tensor: Tensor, device: torch.device) -> None:
        key = StorageWeakRef(tensor.untyped_storage())
        if device == FAKE:
            self._on_device[key.cdata] = key
        else:
            self._on_device.pop(key.cdata, None)

    def note_read(self, what: str) -> None:
        self.reads.append(f"{_caller()}: {what}")
        self.num_over = self.num_events
        if self.warns_of_reads:
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    def note_copy(self, to: Tensor, origin: Tensor, non_blocking: bool) -> None:
        if self.device_of(to) == self.device_of(origin) or not origin.numel():
            return
        if self.device_of(to) == HOST:
            if non_blocking and self._is_in(self._pinned, to):
                self._unfinished[to.untyped_storage()._cdata] = StorageWeakRef(to.untyped_storage())
            else:
                self.note_read("copy")
        elif not (non_blocking and self._is_in(self._pinned, origin)):
            self.pageable.append(f"{_caller()}: {tuple(origin.shape)}")

    def _is_in(self, storages: dict[int, StorageWeakRef], tensor: Tensor) -> bool:
        if not storages:
            return False
        found = storages.get(tensor.untyped_storage()._cdata)
        return found is not None and not found.expired()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = dict(kwargs or {})
        name = getattr(func, "__name__", "")
        if name == "__get__" and isinstance(args[0], Tensor):
            device = self.device_of(args[0])
            answers = {"device": device, "is_cuda": device == FAKE, "is_cpu": device == HOST}
            attribute = func.__self__.__name__
            return answers[attribute] if attribute in answers else func(*args, **kwargs)
        if name in ("to", "cuda", "cpu"):
            return self._moved(func, name, args, kwargs)
        if name == "numpy" and self.device_of(args[0]) == FAKE:
            raise TypeError("can't convert a CUDA tensor to numpy")
        if name == "tolist" and self.device_of(args[0]) == FAKE:
            self.note_read("tolist")
        if name in ("tolist", "item", "numpy") and self._is_in(self._unfinished, args[0]):
            raise AssertionError("a copy from the device is read before it has ended")
        if name == "pin_memory":
            return self._pin(args[0].clone())
        if name == "is_pinned":
            return self._is_in(self._pinned, args[0])
        is_pinned = kwargs.pop("pin_memory", False)
        device = kwargs.get("device")
        before = self.made_on
        if device is not None:
            kwargs["device"] = HOST
            self.made_on = FAKE if torch.device(device).type == "cuda" else HOST
        try:
            result = func(*args, **kwargs)
        finally:
            made_on, self.made_on = self.made_on, before
        if device is not None and isinstance(result, Tensor):
            self.tag(result, made_on or HOST)
        return self._pin(result) if is_pinned else result

    def _moved(self, func: Any, name: str, args: Any, kwargs: dict[str, Any]) -> Any:
        tensor, rest = args[0], list(args[1:])
        non_blocking = bool(kwargs.get("non_blocking", False))
        device = HOST if name == "cpu" else FAKE if name == "cuda" else None
        if name == "to":
            given = [*rest, kwargs.get("device")]
            named = [torch.device(each) for each in given if isinstance(each, str | torch.device)]
            named += [self.device_of(each) for each in rest if isinstance(each, Tensor)]
            device = named[0] if named else None
            rest = [HOST if isinstance(each, str | torch.device) else each for each in rest]
            kwargs |= {"device": HOST} if kwargs.get("device") is not None else {}
            result = func(tensor, *rest, **kwargs)
        else:
            result = tensor
        device = self.device_of(tensor) if device is None else FAKE if device.type == "cuda" else HOST
        if device == self.device_of(tensor):
            return result
        result = result.clone()
        self.tag(result, device)
        self.note_copy(result, tensor, non_blocking)
        return result

    def wait(self, copies: set[int], index: int) -> None:
        """Waits for an event, the last one of `index`, and so for the copies before it."""
        if index > self.num_over:
            self.reads.append(f"{_caller()}: event")
            self.num_over = index
        for key in copies:
            self._unfinished.pop(key, None)

    @property
    def unfinished(self) -> set[int]:
        """Copies that are on their way to the host."""
        return set(self._unfinished)

    def _pin(self, tensor: Tensor) -> Tensor:
        key = StorageWeakRef(tensor.untyped_storage())
        self._pinned[key.cdata] = key
        return tensor


class _Operations(EagerMode):
    """Checks each operation's devices, and gives its results one."""

    def __init__(self, owner: FakeCuda) -> None:
        super().__init__()
        self._owner = owner

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        with torch._C.DisableTorchFunction():
            owner = self._owner
            inputs = tensors_in((args, kwargs))
            places = [owner.device_of(tensor) for tensor in inputs]
            pairs = zip(inputs, places, strict=True)
            is_mixed = len({place for tensor, place in pairs if tensor.ndim or tensor.numel() != 1}) > 1
            device = FAKE if FAKE in places else HOST if inputs else None
            if func in COPIES:
                device = owner.device_of(inputs[0])
                if func is aten.copy_.default:
                    owner.note_copy(inputs[0], inputs[1], bool((*args, False)[2]) or kwargs.get("non_blocking", False))
            elif func in INDEXED and owner.device_of(args[0]) == FAKE:
                if is_mixed:
                    owner.pageable.append(f"{_caller()}: indices")
                if any(tensor.dtype == torch.bool for tensor in tensors_in(args[1])):
                    owner.note_read("mask")
            elif is_mixed:
                found = [(tuple(tensor.shape), owner.device_of(tensor)) for tensor in inputs]
                raise RuntimeError(f"{func}: expected all tensors to be on the same device, found {found}")
            if func in READS and device == FAKE:
                owner.note_read(str(func))
            result = func(*args, **kwargs)
            if (device or owner.made_on) == FAKE:
                known = {tensor.untyped_storage()._cdata for tensor in inputs}
                for tensor in tensors_in(result):
                    if tensor.untyped_storage()._cdata not in known:
                        owner.tag(tensor, FAKE)
            return result


class FakeGenerator(torch.Generator):
    """A generator that says it is on the device it was asked for."""

    def __new__(cls, device: torch.device | str = "cpu") -> FakeGenerator:
        made = super().__new__(cls)
        made.asked = torch.device(device)
        return made

    def __init__(self, device: torch.device | str = "cpu") -> None:
        pass

    asked: torch.device

    @property
    def device(self) -> torch.device:
        return self.asked


@contextmanager
def fake_cuda(patch: pytest.MonkeyPatch) -> Iterator[FakeCuda]:
    """Makes `cuda` a device, in this thread, until the block ends."""
    mode = FakeCuda()

    class Event:
        """Ends when the copies that were on their way when it was recorded have ended.

        Its time counts the reads before it, one millisecond each: a pass without a read takes none.
        """

        def __init__(self, *, enable_timing: bool = False) -> None:
            self.has_time = enable_timing

        def record(self, stream: Any = None) -> None:
            self.copies, self.num_reads = mode.unfinished, len(mode.reads)
            mode.num_events += 1
            self.index = mode.num_events

        def elapsed_time(self, last: Event) -> float:
            assert self.has_time, "it was made without enable_timing"
            assert last.has_time, "it was made without enable_timing"
            return float(last.num_reads - self.num_reads)

        def synchronize(self) -> None:
            mode.wait(self.copies, self.index)

    # Triton compiles for real devices only. A build of torch for CUDA would ask it.
    patch.setattr(torch.version, "cuda", None)
    patch.setattr(torch, "Generator", FakeGenerator)
    patch.setattr(torch.cuda, "Event", Event)
    patch.setattr(torch.cuda, "current_stream", lambda device: None)
    with _Operations(mode), mode:
        yield mode
    patch.undo()


def _caller() -> str:
    """Returns the first module of specgen up the stack; `outside` if there is none."""
    frame = sys._getframe(2)
    while frame is not None:
        name = frame.f_globals.get("__name__", "")
        if name.startswith("specgen."):
            return str(name)
        frame = frame.f_back  # type: ignore[assignment]
    return "outside"
