"""What a load leaves out of the libraries, and that it is there when it is needed later.

Most tests run code in a fork of a process that has imported torch and nothing else.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from specgen.loading.start.lean_import import loaded_lean, meta_without_sympy
from tests.loading.builders import make_folder
from tests.loading.start import snippet
from tests.processes.environment import environment
from tests.processes.forked import ForkedProcess, Pipes

_LOAD = """
from specgen.loading.resolve import find_files, resolve
from specgen.loading.transformers_weights import load_weights
from specgen.core.settings import ModelSettings
settings = ModelSettings(sys.argv[1], quant="none")
model = load_weights(resolve(find_files(settings), settings, "target")).model
"""


def _result(code: str, *arguments: object) -> object:
    """Runs code that prints JSON."""
    pipes = Pipes()
    words = [code, *map(str, arguments)]
    child = ForkedProcess(snippet.__name__, words, environment(), pipes.descriptors, libraries=["torch"])
    pipes.started()
    out, err = pipes.result()
    assert child.wait() == 0, err.decode()
    return json.loads(out)


def test_a_load_and_a_forward_leave_out_heavy_parts_that_are_there_when_they_are_needed(tmp_path: Path) -> None:
    code = """
import os
import torch
import transformers.models
from transformers.utils import import_utils
with torch.inference_mode():
    model(torch.tensor([[1, 2, 3]]))
heavy = ("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "scipy", "sympy", "torch._meta_registrations")
imported = [name for name in heavy if name in sys.modules]

folder = os.path.dirname(transformers.models.__file__)
num_folders = sum(entry.is_dir() for entry in os.scandir(folder))
num_listed = import_utils.create_import_structure_from_path.cache_info().misses
again = import_utils.define_import_structure(transformers.models.__file__)
modules = {name for names in again.values() for name in names}
listing = [num_listed < 1.5 * num_folders, num_folders > 100, modules <= set(transformers.models._modules)]

import torch._dynamo
from torch._dynamo._trace_wrapped_higher_order_op import trace_wrapped
from transformers import masking_utils, utils
sizes = {"batch_size": 1, "q_length": 3, "kv_length": 3, "allow_is_causal_skip": False}
masks = [masking_utils.sdpa_mask(**sizes, use_vmap=use_vmap) for use_vmap in (False, True)]
with torch.device("meta"):
    made = torch.arange(4)
later = [
    torch._dynamo.__file__ is not None,
    torch.compiler.disable(abs) is not abs,
    torch.equal(*masks),
    utils.is_scipy_available(),
    utils.is_torch_distributed_available(),
    utils.import_utils.is_torch_distributed_available(),
    made.is_meta,
    float(torch.nn.init.normal_(torch.zeros(4)).abs().sum()) > 0,
]
print(json.dumps([imported, listing, later]))
"""

    assert _result(_LOAD + code, make_folder(tmp_path / "model")) == [[], [True] * 3, [True] * 8]


def test_an_import_of_a_part_of_the_compiler_gets_the_real_one_once() -> None:
    code = """
from specgen.loading.start.lean_import import compiler_put_off
with compiler_put_off():
    placeholder = sys.modules["torch._dynamo"]
    from torch._dynamo.utils import is_compile_supported
    import torch._dynamo.repro.aoti
    import torch._dynamo as real
print(json.dumps([
    real is not placeholder,
    real is sys.modules["torch._dynamo"],
    real.utils is sys.modules["torch._dynamo.utils"],
    real.utils.is_compile_supported is is_compile_supported,
    real.repro.aoti is sys.modules["torch._dynamo.repro.aoti"],
    all(type(sys.modules[name].__spec__.loader).__name__ == "SourceFileLoader" for name in sys.modules
        if name.startswith("torch._dynamo") and sys.modules[name].__spec__),
    not any(type(finder).__name__ == "RealModules" for finder in sys.meta_path),
]))
"""

    assert _result(code) == [True] * 7


def test_another_name_of_the_compiler_gets_the_real_one() -> None:
    code = """
from specgen.loading.start.lean_import import compiler_put_off
with compiler_put_off():
    import torch
    function = torch._dynamo.mark_static
print(json.dumps([function is torch._dynamo.mark_static, torch._dynamo.__file__.endswith("__init__.py")]))
"""

    assert _result(code) == [True, True]


def test_another_name_of_the_wrapped_operator_gets_the_real_one() -> None:
    code = """
from specgen.loading.start.lean_import import compiler_put_off
with compiler_put_off():
    from torch._dynamo._trace_wrapped_higher_order_op import trace_wrapped
import torch._dynamo._trace_wrapped_higher_order_op as real
print(json.dumps(trace_wrapped is real.trace_wrapped))
"""

    assert _result(code) is True


def test_shapes_on_the_meta_device_are_computed_after_an_import_of_the_kernels() -> None:
    code = """
import torch
def where():
    tensor = torch.empty(2, device="meta")
    return torch.where(tensor > 0, tensor, tensor)
told = []
try:
    where()
except NotImplementedError as error:
    told.append("meta" in str(error).lower())
import torch._decomp
told.append(where().is_meta)
told.append(torch.rand(2, generator=torch.Generator().manual_seed(1)).tolist())
print(json.dumps(told))
"""

    assert _result(code) == [True, True, torch.rand(2, generator=torch.Generator().manual_seed(1)).tolist()]


def test_modules_left_out_are_available_by_name_in_torch() -> None:
    code = """
import torch
told = [
    list(torch.broadcast_shapes((2, 1), (1, 3))),
    torch._decomp is sys.modules["torch._decomp"],
    torch._meta_registrations.meta_index_Tensor.__module__,
]
print(json.dumps(told))
"""

    assert _result(code) == [[2, 3], True, "torch._meta_registrations"]


@pytest.mark.parametrize("name", ["_refs", "_meta_registrations"])
def test_each_name_alone_imports_the_real_module(name: str) -> None:
    code = f"""
import torch
from torch import {name} as early
told = [hasattr(early, "no_such_thing"), early.torch is torch, sys.modules["torch.{name}"] is torch.{name}]
tensor = torch.empty(2, device="meta")
print(json.dumps([*told, torch.where(tensor > 0, tensor, tensor).is_meta]))
"""

    assert _result(code) == [False, True, True, True]


def test_a_torch_that_is_built_otherwise_is_imported_as_it_is() -> None:
    code = """
import json, sys
from specgen.loading.libraries import prepare_libraries
from specgen.loading.start import meta_kernels
prepare_libraries(False)
def renamed(torch):
    raise ImportError("no such part any more")
meta_kernels._finish_generators = renamed
import torch
print(json.dumps([torch.rand(1, generator=torch.Generator()).shape[0], "torch._meta_registrations" in sys.modules]))
"""

    # The one test that needs a new interpreter: it changes what happens around the import of torch.
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True, env=environment()).stdout

    assert json.loads(out) == [1, True]


@pytest.mark.parametrize(
    ("message", "num_calls"),
    [
        ("Tensor.item() cannot be called on meta tensors", 2),
        ("aten::eig: attempted to run this operator with Meta tensors", 2),
        ("found at least two devices, meta and cpu!", 2),
        ("/models/Meta-Llama-3/metadata.json is damaged", 1),
    ],
)
def test_only_what_is_about_the_meta_device_is_begun_again(message: str, num_calls: int) -> None:
    calls = []

    def load() -> None:
        calls.append(message)
        raise RuntimeError(message)

    with pytest.raises(RuntimeError):
        loaded_lean(load, "cpu")
    assert len(calls) == num_calls


@pytest.mark.parametrize("step", [4, pytest.param(1, marks=pytest.mark.slow)])
def test_any_part_that_was_left_out_can_be_imported_first(step: int) -> None:
    """Each part costs 1.5 s, so that the usual run takes every fourth."""
    code = """
import gc
import importlib
import os
gc.disable()
import torch
from specgen.loading.start.meta_kernels import META_KERNELS, _PARTS
before = set(sys.modules)
def works(name):
    importlib.import_module(name)
    tensor = torch.empty(2, device="meta")
    assert torch.where(tensor > 0, tensor, tensor).is_meta, name
    assert len(torch._decomp.decomposition_table) > 1000, name
    assert all(sys.modules[one].__spec__.name == one for one in set(sys.modules) - before if one.startswith("torch."))
def child(name):
    pid = os.fork()
    if pid == 0:
        try:
            works(name)
            os._exit(0)
        except BaseException as error:
            print(name, error, file=sys.stderr, flush=True)
            os._exit(1)
    return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
reader, writer = os.pipe()
if os.fork() == 0:
    importlib.import_module("torch._meta_registrations")
    found = sorted(name for name in set(sys.modules) - before if name.startswith("torch."))
    os.write(writer, json.dumps(found).encode())
    os._exit(0)
os.close(writer)
with open(reader) as file:
    names = json.loads(file.read())
guarded = tuple(f"{part}." for part in (META_KERNELS, *_PARTS))
unguarded = [name for name in names if not f"{name}.".startswith(guarded)]
failed = [name for name in (META_KERNELS, *_PARTS)[:: int(sys.argv[1])] if child(name)]
print(json.dumps([len(names) > 10, unguarded, failed]))
"""

    assert _result(code, step) == [True, [], []]


def test_a_load_that_computes_shapes_without_memory_is_begun_again_with_all_of_torch() -> None:
    code = """
import torch
from specgen.loading.start.lean_import import loaded_lean
calls = []
def load():
    calls.append(1)
    tensor = torch.empty(2, device="meta")
    return torch.where(tensor > 0, tensor, tensor).is_meta
print(json.dumps([loaded_lean(load, "cpu"), len(calls)]))
"""

    assert _result(code) == [True, 2]


def test_a_device_gets_all_of_torch_at_once() -> None:
    code = """
import torch
from specgen.loading.start.lean_import import loaded_lean
loaded_lean(lambda: None, "cuda:0")
print(json.dumps("torch._meta_registrations" in sys.modules))
"""

    assert _result(code) is True


def test_a_failed_import_is_reported_where_it_is_needed() -> None:
    code = """
class Broken:
    def find_spec(self, name, path=None, target=None):
        if name == "transformers.loss.loss_utils":
            raise RuntimeError("operator torchvision::nms does not exist")
sys.meta_path.insert(0, Broken())
from specgen.loading.start.lean_import import import_models_alone
import_models_alone()
import transformers
told = []
try:
    import transformers.loss.loss_utils
except RuntimeError as error:
    told.append(str(error))
told.append("torch._dynamo" in sys.modules)
told.append(transformers.utils.is_torch_distributed_available())
print(json.dumps(told))
"""

    assert _result(code) == ["operator torchvision::nms does not exist", False, True]


_PROPORTIONAL = {"rope_type": "proportional", "rope_theta": 1e4, "partial_rotary_factor": 0.5}


def _made(folder: Path, kind: str, **more: object) -> Path:
    sizes = {"vocab_size": 96, "hidden_size": 64, "num_hidden_layers": 2, "pad_token_id": 0}
    sizes |= {"num_attention_heads": 4, "num_key_value_heads": 2}
    with torch.random.fork_rng():
        AutoModelForCausalLM.from_config(AutoConfig.for_model(kind, **sizes, **more)).save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        *((kind, {}) for kind in ("llama", "qwen3", "gemma2", "gemma3_text", "phi3", "gpt2", "gpt_neox", "bloom")),
        ("llama", {"rope_parameters": _PROPORTIONAL}),
        ("mamba", {}),
    ],
)
def test_a_model_loaded_lean_has_the_numbers_of_transformers_own(
    tmp_path: Path, kind: str, more: dict[str, object]
) -> None:
    folder = _made(tmp_path, kind, **more)

    own = AutoModelForCausalLM.from_pretrained(folder)
    ours = loaded_lean(lambda: AutoModelForCausalLM.from_pretrained(folder), "cpu")

    for tensors in ("named_parameters", "named_buffers"):
        wanted, found = (dict(getattr(model, tensors)()) for model in (own, ours))
        assert wanted.keys() == found.keys()
        assert [name for name in wanted if not torch.equal(wanted[name], found[name])] == []
    ids = torch.tensor([[1, 2, 3]])
    assert torch.equal(ours(ids).logits, own(ids).logits)


def test_what_a_load_raises_but_for_the_meta_device_is_raised_at_once() -> None:
    calls = []

    def load() -> None:
        calls.append(torch.zeros(2))
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        loaded_lean(load, "cpu")
    assert len(calls) == 1


def test_only_meta_tensors_get_no_random_numbers() -> None:
    with meta_without_sympy():
        assert torch.nn.Linear(4, 4).weight.abs().sum() > 0
        assert torch.nn.Embedding(4, 4).weight.abs().sum() > 0
        assert torch.nn.Embedding(4, 4, device="meta").weight.is_meta
