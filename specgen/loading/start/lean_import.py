"""Imports transformers' models without what only training, several processes or a compiler need of torch.

A quarter of a start on small models was such imports: torch.distributed.tensor, torch's compiler, scipy. Nothing of
them runs here. Whoever needs them later gets the real ones.
"""

from __future__ import annotations

import importlib
import re
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from specgen.loading.start.first_import import RealParts, stand_in
from specgen.loading.start.meta_kernels import all_meta_kernels

_COMPILER = "torch._dynamo"
_WRAPPED = "torch._dynamo._trace_wrapped_higher_order_op"
_MODELS = ("transformers.loss.loss_utils", "transformers.masking_utils", "transformers.modeling_utils")
# What brings torch.distributed.tensor, and, by the losses of object detection, scipy.optimize.
_ANSWERED_NO = ("is_torch_distributed_available", "is_scipy_available")

_META = re.compile(r"(?<![\w/-])meta(?![\w/-])", re.IGNORECASE)
"""The device, and neither Meta-Llama nor metadata."""

T = TypeVar("T")


def import_models_alone() -> None:
    """Import what all of transformers' models are made of, lean; a transformers that is built otherwise, as it is.

    To be called before anything imports `transformers.models`; later, it does nothing. The modules imported here keep
    the answer that torch.distributed is not there: a model can't be spread over processes, only over devices.
    """
    if _MODELS[-1] in sys.modules:
        return
    with ExitStack() as until_then:
        for name in ("transformers.utils", "transformers.utils.import_utils"):
            module = importlib.import_module(name)
            for question in _ANSWERED_NO:
                until_then.enter_context(_replaced(module, question, lambda _: lambda: False))
        until_then.enter_context(compiler_put_off())
        for name in _MODELS:
            # What fails here fails again for whoever wants it, where the error is told as what it is.
            with suppress(Exception):
                importlib.import_module(name)


@contextmanager
def compiler_put_off() -> Iterator[None]:
    """Let decorators for torch's compiler do nothing: they tell it how to trace a function, and nothing is traced.

    Whoever asks for more of it gets the real one, by its name in torch or by an import, and so does all that follows.
    """
    importlib.import_module("torch")
    if _COMPILER in sys.modules:
        yield
        return
    stand_ins: dict[str, ModuleType] = {}

    def leave() -> None:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]

    finder = RealParts(lambda name: name.startswith(_COMPILER + "."), leave)
    # A path makes it a package: an import of a part goes to the finder, which has the real one.
    decorators = {"allow_in_graph": _as_it_is, "assume_constant_result": _as_it_is, "disable": _disable, "__path__": []}
    stand_ins[_COMPILER] = stand_in(_COMPILER, leave, decorators)
    # Used for masks that are made by vmap; made then, and then of the real class.
    late = {"TransformGetItemToIndex": lambda: importlib.import_module(_WRAPPED).TransformGetItemToIndex()}
    stand_ins[_WRAPPED] = stand_in(_WRAPPED, leave, late)
    sys.meta_path.insert(0, finder)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        leave()


@contextmanager
def meta_without_sympy() -> Iterator[None]:
    """Let a model be made on the meta device without what torch does there in Python, after half a second of imports.

    That is random numbers nobody keeps, and arithmetic on positions. The positions are real here, and the load fills
    the buffers made of them anew. A model that joins them with other tensors can't be made so: the error names the meta
    device. For one thread at a time.
    """
    torch = importlib.import_module("torch")
    with torch.device("meta"):
        torch.empty(0)  # torch lists what makes tensors as the first such context needs it, and must not list these

    def normal_of(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda tensor, *distribution, **named: tensor if tensor.is_meta else real(tensor, *distribution, **named)

    def arange_of(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *bounds, **named: real(*bounds, **{"device": "cpu", **named})

    with _replaced(torch.nn.init, "normal_", normal_of), _replaced(torch, "arange", arange_of):
        yield


def empty_model(folder: Path, attention: str | None = None) -> Any:
    """transformers' model of a folder's config: its weights have no memory, and nothing is drawn for them.

    Drawing would bring sympy and torch's compiler, a second and a half.

    Args:
        folder: Holds a config.json.
        attention: In place of the one that transformers or the config chooses.
    """
    transformers: Any = importlib.import_module("transformers")
    init_empty_weights: Any = importlib.import_module("accelerate").init_empty_weights
    no_init_weights: Any = importlib.import_module("transformers.initialization").no_init_weights
    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
    if attention is not None:
        config._attn_implementation = attention

    def make() -> Any:
        with init_empty_weights(), no_init_weights():
            return transformers.AutoModelForCausalLM.from_config(config, trust_remote_code=False)

    return _or_with_all_of_torch(make, make)


def loaded_lean(load: Callable[[], T], device: str) -> T:
    """Run a load of transformers with what it needs of torch and no more.

    Args:
        load: May be called a second time, where the first call failed before it read a weight.
        device: Where the model goes. Elsewhere than on a CPU its buffers have a way to go, and transformers does all.
    """

    def without_sympy() -> T:
        with meta_without_sympy():
            return load()

    with compiler_put_off():
        if device != "cpu":
            all_meta_kernels()
            return load()
        return _or_with_all_of_torch(without_sympy, load)


def _or_with_all_of_torch(first: Callable[[], T], again: Callable[[], T]) -> T:
    """`first`, and where it needs more of the meta device than there is, `again` with all there can be."""
    try:
        return first()
    except RuntimeError as error:
        # What torch can't do there is not always told with the device's name.
        if not isinstance(error, NotImplementedError) and not _META.search(str(error)):
            raise
    all_meta_kernels()
    return again()


@contextmanager
def _replaced(module: ModuleType, name: str, by: Callable[[Any], Any]) -> Iterator[None]:
    """Put what `by` makes of a module's attribute in its place for a while; one that is not there stays so."""
    real = getattr(module, name, None)
    if real is None:
        yield
        return
    setattr(module, name, by(real))
    try:
        yield
    finally:
        setattr(module, name, real)


def _as_it_is(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
    return function


def _disable(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
    return _as_it_is if function is None else function
