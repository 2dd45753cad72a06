"""Gives a CPU the semantics of a CUDA graph: records what a function does, and repeats it on the same tensors."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten
HOST_READS = {
    *(aten._local_scalar_dense.default, aten.is_nonzero.default, aten.equal.default, aten.item.default),
    *(aten.nonzero.default, aten.masked_select.default, aten.unique_dim.default, aten.bincount.default),
    *(aten._unique2.default, aten.unique_consecutive.default, aten.repeat_interleave.Tensor),
}
READING_METHODS = {"tolist", "numpy", "__array__"}
"""Methods that read a CPU's tensor without an operation."""
INDEXED = {aten.index.Tensor, aten.index_put_.default, aten.index_put.default, aten._index_put_impl_.default}


class TraceRecorder:
    """Records like `CudaRecorder`: numbers are recorded as they were, addresses are fixed, recording does nothing."""

    def __init__(self) -> None:
        self.traces: list[Trace] = []

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        trace = Trace()
        with RefusedReads(), trace:
            work()
        trace.undo()
        self.traces.append(trace)
        return trace.replay


class RefusedReads(TorchFunctionMode):
    """Refuses reads on the host that are no operation on a CPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in READING_METHODS:
            raise RuntimeError(f"{func} reads the device while recording")
        return func(*args, **(kwargs or {}))


class EagerMode(TorchDispatchMode):
    """A dispatch mode that is never compiled: without a guard against it, each operation is a third cheaper."""

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False


class Trace(EagerMode):
    """The operations of one function."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        self.repeated: list[tuple[Any, tuple[Any, ...], dict[str, Any], list[Tensor]]] = []
        """The calls without those that only made a view, which is still there at a replay."""
        self._made: set[int] = set()
        self._before: dict[int, tuple[torch.UntypedStorage, torch.UntypedStorage]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in HOST_READS or (func in INDEXED and any(part.dtype == torch.bool for part in tensors_in(args[1]))):
            raise RuntimeError(f"{func} reads the device while recording")
        refuse_transfers(func, args, kwargs)
        inputs = {storage_of(tensor) for tensor in tensors_in((args, kwargs))}
        written = written_by(func, args, kwargs)
        for tensor in written:
            pointer = storage_of(tensor)
            if pointer not in self._made and pointer not in self._before:
                storage = tensor.untyped_storage()
                self._before[pointer] = (storage, storage.clone())
        result = func(*args, **kwargs)
        new = [tensor for tensor in tensors_in(result) if storage_of(tensor) not in inputs]
        self._made |= {storage_of(tensor) for tensor in new}
        call = (func, args, kwargs, new)
        self.calls.append(call)
        if new or written:
            self.repeated.append(call)
        return result

    def undo(self) -> None:
        """Restores what the function wrote: a recording has no effect."""
        for storage, before in self._before.values():
            storage.copy_(before)

    def replay(self) -> None:
        """Repeats the operations on the same tensors."""
        for func, args, kwargs, new in self.repeated:
            result = func._op(*args, **kwargs)
            if new:
                repeated = (result,) if isinstance(result, Tensor) else tensors_in(result)
                for recorded, tensor in zip(new, repeated, strict=True):
                    recorded.copy_(tensor)

    def signature(self) -> list[Any]:
        """What a replay depends on: operations, shapes, numbers, and the addresses of tensors made before."""
        found: list[Any] = []
        for func, args, kwargs, _ in self.calls:
            leaves = [self._described(leaf) for leaf in tree_leaves((args, kwargs))]
            found.append((str(func), leaves))
        return found

    def _described(self, leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        address = None if storage_of(leaf) in self._made else leaf.data_ptr()
        number = leaf.tolist() if address is not None and leaf.ndim == 0 else None
        return tuple(leaf.shape), leaf.stride(), leaf.dtype, address if number is None else number


def refuse_transfers(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    """Refuses new data of the host, and copies between devices: a graph would repeat the values it was recorded with.

    Numbers without dimensions are recorded as they were.
    """
    if func in (aten.lift_fresh.default, aten.lift_fresh_copy.default) and args[0].ndim:
        raise RuntimeError(f"{func} makes a tensor of host data while recording")
    devices = {tensor.device.type for tensor in tensors_in(args[:2])}
    if func is aten._to_copy.default and kwargs.get("device") is not None:
        devices.add(torch.device(kwargs["device"]).type)
    if func in (aten.copy_.default, aten._to_copy.default) and len(devices) > 1:
        raise RuntimeError(f"{func} copies between devices while recording")


def storage_of(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()


def tensors_in(tree: Any) -> list[Tensor]:
    if isinstance(tree, Tensor):
        return [tree]
    if isinstance(tree, dict):
        tree = tree.values()
    elif not isinstance(tree, list | tuple):
        return []
    return [tensor for part in tree for tensor in tensors_in(part)]


def written_by(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Tensor]:
    written = [args[index] for index in _written_positions(func) if index < len(args)]
    return tensors_in(written + [kwargs[name] for name in _written_names(func) if name in kwargs])


@cache
def _written_positions(func: Any) -> list[int]:
    return [index for index, argument in enumerate(func._schema.arguments) if _is_written(argument)]


@cache
def _written_names(func: Any) -> list[str]:
    return [argument.name for argument in func._schema.arguments if _is_written(argument)]


def _is_written(argument: Any) -> bool:
    return argument.alias_info is not None and argument.alias_info.is_write
