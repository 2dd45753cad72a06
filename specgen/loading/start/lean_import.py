"""Imports transformers' models without the parts of torch for training, distribution and compilation.

Such imports took a quarter of the start with small models: torch.distributed.tensor, torch's compiler, scipy. Nothing
of them is used here; code that uses them later gets the real modules.
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

from specgen.loading.start.first_import import RealModules, placeholder
from specgen.loading.start.meta_kernels import all_meta_kernels

_COMPILER = "torch._dynamo"
_WRAPPED = "torch._dynamo._trace_wrapped_higher_order_op"
_MODELS = ("transformers.loss.loss_utils", "transformers.masking_utils", "transformers.modeling_utils")
# These import torch.distributed.tensor, and scipy.optimize through the losses of object detection.
_ANSWERED_NO = ("is_torch_distributed_available", "is_scipy_available")

_META = re.compile(r"(?<![\w/-])meta(?![\w/-])", re.IGNORECASE)
"""Matches the device, but neither Meta-Llama nor metadata."""

T = TypeVar("T")


def import_models_alone() -> None:
    """Imports the modules that all models of transformers use, without the parts above.

    To be called before anything imports `transformers.models`; later, it does nothing. The modules imported here
    assume that torch.distributed is missing: a model can't be spread over processes, only over devices.
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
            # An import that fails here fails again where it is needed, and is reported there.
            with suppress(Exception):
                importlib.import_module(name)


@contextmanager
def compiler_put_off() -> Iterator[None]:
    """Replaces the decorators of torch's compiler, which control tracing, by functions without effect.

    Any other use of the compiler, by attribute or import, loads the real one for all that follows.
    """
    importlib.import_module("torch")
    if _COMPILER in sys.modules:
        yield
        return
    placeholders: dict[str, ModuleType] = {}

    def leave() -> None:
        if finder in sys.meta_path:
            sys.meta_path.remove(finder)
        for name, module in placeholders.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]

    finder = RealModules(lambda name: name.startswith(_COMPILER + "."), leave)
    # A path makes it a package: the import of a submodule reaches the finder, which imports the real one.
    decorators = {"allow_in_graph": _as_it_is, "assume_constant_result": _as_it_is, "disable": _disable, "__path__": []}
    placeholders[_COMPILER] = placeholder(_COMPILER, leave, decorators)
    # Used for masks created by vmap; the real class is imported at that point.
    late = {"TransformGetItemToIndex": lambda: importlib.import_module(_WRAPPED).TransformGetItemToIndex()}
    placeholders[_WRAPPED] = placeholder(_WRAPPED, leave, late)
    sys.meta_path.insert(0, finder)
    sys.modules.update(placeholders)
    try:
        yield
    finally:
        leave()


@contextmanager
def meta_without_sympy() -> Iterator[None]:
    """Creates models on the meta device without torch's Python kernels for it, whose import takes half a second.

    These kernels would draw random numbers that are discarded, and compute positions. Here the positions are real
    tensors, and loading fills the buffers computed from them again. A model that combines them with other tensors
    fails; the error names the meta device. For one thread at a time.
    """
    torch = importlib.import_module("torch")
    with torch.device("meta"):
        torch.empty(0)  # torch lists tensor constructors in the first such context; the replacements must not be listed

    def normal_of(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda tensor, *distribution, **named: tensor if tensor.is_meta else real(tensor, *distribution, **named)

    def arange_of(real: Callable[..., Any]) -> Callable[..., Any]:
        return lambda *bounds, **named: real(*bounds, **{"device": "cpu", **named})

    with _replaced(torch.nn.init, "normal_", normal_of), _replaced(torch, "arange", arange_of):
        yield


def empty_model(folder: Path, attention: str | None = None) -> Any:
    """Returns the transformers model of a folder's config; its weights take no memory and are not initialized.

    Initializing them would import sympy and torch's compiler, which takes 1.5 s.

    Args:
        folder: Contains config.json.
        attention: Attention implementation; default: chosen by transformers or the config.
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
    """Runs a load of transformers with only the parts of torch that it needs.

    Args:
        load: May be called a second time, if the first call failed before it read a weight.
        device: Device of the model; on a device other than a CPU, torch's meta kernels are needed to move buffers.
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
    """Runs `first`; if it needs missing kernels of the meta device, imports them and runs `again`."""
    try:
        return first()
    except RuntimeError as error:
        # torch's error does not always name the device.
        if not isinstance(error, NotImplementedError) and not _META.search(str(error)):
            raise
    all_meta_kernels()
    return again()


@contextmanager
def _replaced(module: ModuleType, name: str, by: Callable[[Any], Any]) -> Iterator[None]:
    """Temporarily replaces a module's attribute by the result of `by`; a missing attribute stays missing."""
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
