"""Imports transformers' models without what only training, several processes or a compiler need of torch.

A third of a start on small models was such imports: torch.distributed.tensor, torch's compiler, sympy, scipy. Nothing
of them runs here. Whoever needs them later gets the real ones.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from types import ModuleType
from typing import Any

_COMPILER = "torch._dynamo"
_WRAPPED = "torch._dynamo._trace_wrapped_higher_order_op"
_MODELS = ("transformers.loss.loss_utils", "transformers.masking_utils", "transformers.modeling_utils")
# What brings torch.distributed.tensor (with sympy), and, by the losses of object detection, scipy.optimize.
_ANSWERED_NO = ("is_torch_distributed_available", "is_scipy_available")


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
                until_then.enter_context(_answered_no(module, question))
        until_then.enter_context(models_listed_once())
        until_then.enter_context(compiler_put_off())
        for name in _MODELS:
            # What is missing here, or needs more of the compiler, is imported by whoever wants it, as it always was.
            with suppress(ImportError, AttributeError):
                importlib.import_module(name)


@contextmanager
def compiler_put_off() -> Iterator[None]:
    """Let decorators for torch's compiler do nothing: they tell it how to trace a function, and nothing is traced.

    Who asks for more of it gets the real one, if by its name in torch; `import torch._dynamo.…` fails in here.
    """
    importlib.import_module("torch")
    if _COMPILER in sys.modules:
        yield
        return
    compiler, wrapped = ModuleType(_COMPILER), ModuleType(_WRAPPED)
    stand_ins: dict[str, Any] = {_COMPILER: compiler, _WRAPPED: wrapped}

    def leave() -> None:
        for name, module in stand_ins.items():
            if sys.modules.get(name) is module:
                del sys.modules[name]

    def real(name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        leave()
        return getattr(importlib.import_module(_COMPILER), name)

    vars(compiler).update(
        allow_in_graph=_as_it_is, assume_constant_result=_as_it_is, disable=_disable, __getattr__=real
    )
    # Used for masks that are made by vmap; made then, and then of the real class.
    vars(wrapped)["TransformGetItemToIndex"] = lambda: importlib.import_module(_WRAPPED).TransformGetItemToIndex()
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        leave()


@contextmanager
def _answered_no(module: Any, question: str) -> Iterator[None]:
    real = getattr(module, question, None)
    if real is None:
        yield
        return
    setattr(module, question, lambda: False)
    try:
        yield
    finally:
        setattr(module, question, real)


@contextmanager
def models_listed_once() -> Iterator[None]:
    """Let transformers take the list of its models that it made of 1,700 files a moment ago, under another path."""
    transformers: Any = importlib.import_module("transformers")
    utils: Any = importlib.import_module("transformers.utils.import_utils")
    real = getattr(utils, "create_import_structure_from_path", None)
    if real is None:
        yield
        return
    folder = Path(transformers.__file__).parent / "models"

    def listed(path: Any) -> Any:
        return real(folder if path == str(folder / "__init__.py") else path)

    utils.create_import_structure_from_path = listed
    try:
        yield
    finally:
        utils.create_import_structure_from_path = real


def _as_it_is(function: Callable[..., Any], *_: object, **__: object) -> Callable[..., Any]:
    return function


def _disable(function: Callable[..., Any] | None = None, *_: object, **__: object) -> Callable[..., Any]:
    return _as_it_is if function is None else function
