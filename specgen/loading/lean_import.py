"""Imports transformers' models without what only training, several processes or a compiler need of torch.

A quarter of a start on small models was such imports: torch.distributed.tensor, torch's compiler, scipy. Nothing of
them runs here. Whoever needs them later gets the real ones.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

_COMPILER = "torch._dynamo"
_WRAPPED = "torch._dynamo._trace_wrapped_higher_order_op"
_META_KERNELS = "torch._meta_registrations"
_META_PARTS = (
    *("torch._decomp", "torch._prims", "torch._prims_common.wrappers", "torch._refs"),
    *("torch.testing._internal.common_dtype", "torch.utils._content_store"),
)
_MODELS = ("transformers.loss.loss_utils", "transformers.masking_utils", "transformers.modeling_utils")
# What brings torch.distributed.tensor, and, by the losses of object detection, scipy.optimize.
_ANSWERED_NO = ("is_torch_distributed_available", "is_scipy_available")

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
        until_then.enter_context(models_listed_once())
        until_then.enter_context(compiler_put_off())
        for name in _MODELS:
            # What fails here fails again for whoever wants it, where the error is told as what it is.
            with suppress(Exception):
                importlib.import_module(name)


@contextmanager
def meta_kernels_put_off(torch: ModuleType) -> Iterator[None]:
    """Around the import of torch: leave out what computes shapes in Python, for a device without memory, half a second.

    Most operations know their shapes without. Compilers and whatever else works on shapes import the rest themselves;
    what is made on the meta device here asks for it where that fails.
    """
    stand_in = ModuleType(_META_KERNELS)
    sys.modules[_META_KERNELS] = stand_in
    try:
        yield
    finally:
        if sys.modules.get(_META_KERNELS) is stand_in:
            del sys.modules[_META_KERNELS]

    def leave() -> None:
        sys.meta_path.remove(finder)
        importlib.import_module(_META_KERNELS)

    # These import one another in a circle that can be entered in one place only.
    finder = _RealParts(lambda name: name in _META_PARTS, leave)
    sys.meta_path.insert(0, finder)
    # They also finish the class of random generators, and do so once more when they are imported.
    if finish := getattr(torch._C, "_set_generator_metaclass", None):
        finish(importlib.import_module("torch._opaque_base").OpaqueBaseMeta)


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

    def add_stand_in(module_name: str, **kept: Any) -> None:
        def real(name: str) -> Any:
            if name.startswith("__"):
                raise AttributeError(name)
            leave()
            return getattr(importlib.import_module(module_name), name)

        stand_ins[module_name] = ModuleType(module_name)
        vars(stand_ins[module_name]).update(kept, __getattr__=real)

    finder = _RealParts(lambda name: name.startswith(_COMPILER + "."), leave)
    # A path makes it a package: an import of a part goes to the finder, which has the real one.
    add_stand_in(_COMPILER, allow_in_graph=_as_it_is, assume_constant_result=_as_it_is, disable=_disable, __path__=[])
    # Used for masks that are made by vmap; made then, and then of the real class.
    add_stand_in(_WRAPPED, TransformGetItemToIndex=lambda: importlib.import_module(_WRAPPED).TransformGetItemToIndex())
    sys.meta_path.insert(0, finder)
    sys.modules.update(stand_ins)
    try:
        yield
    finally:
        leave()


class _RealParts(MetaPathFinder, Loader):
    """Answers an import of what was left out with the real part, after the stand-ins have left.

    Args:
        is_left_out: Told the name of a module.
        leave: Takes the stand-ins away, and this.
    """

    def __init__(self, is_left_out: Callable[[str], bool], leave: Callable[[], None]) -> None:
        self._is_left_out = is_left_out
        self._leave = leave

    def find_spec(self, fullname: str, *_: object) -> ModuleSpec | None:
        return ModuleSpec(fullname, self) if self._is_left_out(fullname) else None

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        # Not as it is looked for: what then is there already would be executed a second time.
        self._leave()
        part = importlib.import_module(spec.name)
        self._spec = part.__spec__
        return part

    def exec_module(self, module: ModuleType) -> None:
        # It was executed by its own loader, and is to be found there again.
        module.__spec__ = self._spec


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
        return lambda tensor, *law, **named: tensor if tensor.is_meta else real(tensor, *law, **named)

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
            importlib.import_module(_META_KERNELS)
            return load()
        return _or_with_all_of_torch(without_sympy, load)


def _or_with_all_of_torch(first: Callable[[], T], again: Callable[[], T]) -> T:
    """`first`, and where it needs more of the meta device than there is, `again` with all there can be."""
    try:
        return first()
    except RuntimeError as error:
        # What torch can't do there is not always told with the device's name.
        if not isinstance(error, NotImplementedError) and "meta" not in str(error).lower():
            raise
    importlib.import_module(_META_KERNELS)
    return again()


@contextmanager
def models_listed_once() -> Iterator[None]:
    """Let transformers take the list of its models that it made of 1,700 files a moment ago, under another path."""
    transformers: Any = importlib.import_module("transformers")
    folder = Path(transformers.__file__).parent / "models"

    def listed_by(real: Callable[[Any], Any]) -> Callable[[Any], Any]:
        return lambda path: real(folder if path == str(folder / "__init__.py") else path)

    utils = importlib.import_module("transformers.utils.import_utils")
    with _replaced(utils, "create_import_structure_from_path", listed_by):
        yield


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
