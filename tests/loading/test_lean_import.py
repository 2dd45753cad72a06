"""What a load leaves out of the libraries, and that whoever needs it later finds it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from tests.loading.builders import make_folder

_LOAD = """
import json
import sys
from specgen.loading.libraries import prepare_libraries
prepare_libraries(False)
from specgen.loading.sources import prepare_folder
from specgen.loading.weights import load_model
from specgen.settings import ModelSettings
settings = ModelSettings(sys.argv[1], quant="none")
found = prepare_folder(settings)
model = load_model(found.path, settings, role="target", from_gguf=False).model
"""


def _told_after(folder: Path, code: str) -> object:
    done = subprocess.run([sys.executable, "-c", _LOAD + code, folder], capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def test_a_load_and_a_forward_import_no_compiler_nothing_distributed_and_no_scipy(tmp_path: Path) -> None:
    code = """
import torch
with torch.inference_mode():
    model(torch.tensor([[1, 2, 3]]))
heavy = ("torch._dynamo", "torch._inductor", "torch.distributed.tensor", "scipy")
print(json.dumps([name for name in heavy if name in sys.modules]))
"""

    assert _told_after(make_folder(tmp_path / "model"), code) == []


def test_what_a_load_left_out_is_there_for_whoever_needs_it_later(tmp_path: Path) -> None:
    code = """
import torch
import torch._dynamo
from torch._dynamo._trace_wrapped_higher_order_op import trace_wrapped
from transformers import masking_utils, utils
sizes = {"batch_size": 1, "q_length": 3, "kv_length": 3, "allow_is_causal_skip": False}
masks = [masking_utils.sdpa_mask(**sizes, use_vmap=use_vmap) for use_vmap in (False, True)]
print(json.dumps([
    torch._dynamo.__file__ is not None,
    torch.compiler.disable(abs) is not abs,
    torch.equal(*masks),
    utils.is_scipy_available(),
    utils.is_torch_distributed_available(),
    utils.import_utils.is_torch_distributed_available(),
]))
"""

    assert _told_after(make_folder(tmp_path / "model"), code) == [True] * 6
