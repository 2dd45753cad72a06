"""The libraries: silent, without foreign code, and never given more trust than they need."""

from __future__ import annotations

import ast
import gc
import json
import logging
import os
import re
import subprocess
import sys
import weakref
from collections.abc import Iterator
from pathlib import Path

import pytest

import specgen
from specgen.core.errors import SettingsError
from specgen.loading import libraries
from specgen.loading.libraries import check_hub_variables, freeze_imported_objects, gc_paused
from tests.fakes import QuickCollector
from tests.loading.builders import fails, make_folder
from tests.structure import nodes_of

ROOT = Path(specgen.__file__).parent
SOURCES = sorted(ROOT.rglob("*.py"))

CHILD = """
import json, sys
from pathlib import Path
import socket

attempts = []

def refuse(*args, **options):
    attempts.append(repr(args[-1:]))  # a library may swallow the error
    raise AssertionError("the network was used")

from specgen.loading.libraries import prepare_libraries
prepare_libraries(verbose=False)
from specgen.core.errors import SpecgenError
from specgen.loading.resolve import find_files, resolve
from specgen.loading.weights import load_weights
from specgen.core.settings import BackendSettings, ModelSettings

for name in ("connect", "connect_ex", "sendto", "bind"):
    setattr(socket.socket, name, refuse)
for name in ("getaddrinfo", "gethostbyname", "create_connection"):
    setattr(socket, name, refuse)
results = []
for name, quant, backend in json.loads(sys.argv[1]):
    try:
        settings = ModelSettings(name, quant=quant, backend=BackendSettings(backend))
        loaded = load_weights(resolve(find_files(settings), settings, "target"), 64)
        results.append(loaded.info.quant)
    except SpecgenError as error:
        results.append([error.exit_code, error.message])
kernels = "kernels" in sys.modules and sys.modules["kernels"] is None
found = {"results": results, "stdin": sys.stdin.read(), "kernels": kernels, "attempts": attempts}
Path(sys.argv[2]).write_text(json.dumps(found))
"""


BACKENDS = ("torch", "transformers")
FOLDERS = (
    *((name, "none") for name in ("whole", "known-model-code", "generate", "tokenizer-code")),
    ("whole", "nf4"),
    *((name, "none") for name in ("model-code", "slow-tokenizer-code", "kernel", "pickle")),
)


@pytest.fixture(scope="module")
def traps(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole folder beside folders that try to run code of their own; the code would leave a file `marker`."""
    home = tmp_path_factory.mktemp("traps")
    code = f"open({str(home / 'marker')!r}, 'w').close()\n"
    for name in {name for name, _ in FOLDERS}:
        folder = make_folder(home / name, hidden_size=64)  # nf4 on a CPU wants blocks of 64
        (folder / "evil.py").write_text(code + "class Evil: pass\n")
    edits = {
        "model-code": {
            "model_type": "evil",
            "auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"},
        },
        "known-model-code": {"auto_map": {"AutoConfig": "evil.Evil", "AutoModelForCausalLM": "evil.Evil"}},
        "kernel": {"_attn_implementation_internal": "evil/kernel"},
    }
    for name, edit in edits.items():
        path = home / name / "config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **edit}))
    evil = {"tokenizer_class": "Evil", "auto_map": {"AutoTokenizer": ["evil.Evil", None]}}
    for name in ("tokenizer-code", "slow-tokenizer-code"):
        path = home / name / "tokenizer_config.json"
        path.write_text(json.dumps({**json.loads(path.read_text()), **evil}))
    (home / "slow-tokenizer-code" / "tokenizer.json").rename(home / "slow-tokenizer-code" / "vocab.json")
    (home / "generate" / "custom_generate").mkdir()
    (home / "generate" / "custom_generate" / "generate.py").write_text(code)
    (home / "pickle" / "model.safetensors").unlink()
    pickled = b"cbuiltins\nexec\n(V" + code.strip().encode() + b"\ntR."
    (home / "pickle" / "pytorch_model.bin").write_bytes(pickled)
    return home


@pytest.fixture(scope="module")
def child(traps: Path, tmp_path_factory: pytest.TempPathFactory) -> subprocess.CompletedProcess[bytes]:
    """One fresh program that loads all of them, with `y` on its stdin."""
    requests = [[str(traps / name), quant, backend] for backend in BACKENDS for name, quant in FOLDERS]
    command = [sys.executable, "-c", CHILD, json.dumps(requests), str(traps / "result.json")]
    return subprocess.run(command, input=b"y\ny\n", capture_output=True, cwd=ROOT.parent, timeout=200)


def result(traps: Path) -> dict[str, object]:
    value: dict[str, object] = json.loads((traps / "result.json").read_text())
    return value


@pytest.mark.fault("F37")
def test_loading_writes_nothing_to_stdout_or_stderr(child: subprocess.CompletedProcess[bytes]) -> None:
    assert (child.stdout, child.stderr, child.returncode) == (b"", b"", 0)


def test_loading_never_uses_the_network(child: object, traps: Path) -> None:
    assert result(traps)["attempts"] == []


def test_a_message_of_a_library_is_not_shown() -> None:
    for name in ("bitsandbytes.backends.cpu.ops", "bitsandbytes.cextension", "torch", "accelerate.utils"):
        assert logging.getLogger(name).getEffectiveLevel() == logging.CRITICAL


def test_telemetry_is_off() -> None:
    assert os.environ["HF_HUB_DISABLE_TELEMETRY"] == "1"


# F22, F23


@pytest.mark.fault("F22", "F23")
def test_each_trap_is_refused_and_the_rest_is_loaded(child: object, traps: Path) -> None:
    results = result(traps)["results"]

    assert isinstance(results, list)
    assert len(results) == len(BACKENDS) * len(FOLDERS)
    for first in (0, len(FOLDERS)):
        # A tokenizer.json is complete without the class that its config names.
        assert results[first : first + 5] == ["none", "none", "none", "none", "nf4"]
        refused = results[first + 5 : first + len(FOLDERS)]
        assert [entry[0] for entry in refused] == [3, 3, 3, 3]
        for value, entry in zip(("evil", "Evil", "evil/kernel", "pytorch_model.bin"), refused, strict=True):
            assert value in entry[1]


@pytest.mark.fault("F21", "F22")
def test_no_code_of_a_model_ran(child: object, traps: Path) -> None:
    assert not (traps / "marker").exists()


@pytest.mark.fault("F22")
def test_stdin_is_never_taken_as_consent(child: object, traps: Path) -> None:
    assert result(traps)["stdin"] == "y\ny\n"


@pytest.mark.fault("F23")
def test_the_kernels_package_can_not_be_imported(child: object, traps: Path) -> None:
    assert result(traps)["kernels"] is True


# by reading our own source


def sources_with(words: str) -> list[Path]:
    """Returns our files that contain one of the words, a pattern: to read the syntax of all of them takes a second."""
    return [path for path in SOURCES if re.search(words, path.read_text(encoding="utf-8"))]


def calls(path: Path) -> list[ast.Call]:
    return [node for node in nodes_of(path) if isinstance(node, ast.Call)]


def called_name(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def test_every_from_pretrained_says_trust_remote_code_false() -> None:
    found = 0
    for path in sources_with("from_pretrained"):
        for call in calls(path):
            if called_name(call) == "from_pretrained":
                trust = [word.value for word in call.keywords if word.arg == "trust_remote_code"]
                local = [word.value for word in call.keywords if word.arg == "local_files_only"]
                assert [ast.unparse(value) for value in trust] == ["False"], f"{path}:{call.lineno}"
                assert [ast.unparse(value) for value in local] == ["True"], f"{path}:{call.lineno}"
                found += 1
    assert found >= 5


def test_nothing_unpickles_or_evaluates() -> None:
    unpicklers = {"pickle", "marshal", "shelve", "yaml", "dill", "cloudpickle", "joblib"}
    forbidden = ("eval", "exec", "torch.load", "os.system", "jinja2.Environment")
    found = []
    for path in sources_with("|".join([*unpicklers, *(name.rpartition(".")[2] for name in forbidden), "shell"])):
        imported = {alias.name for node in nodes_of(path) if isinstance(node, ast.Import) for alias in node.names}
        imported |= {node.module or "" for node in nodes_of(path) if isinstance(node, ast.ImportFrom)}
        found += [(path, name) for name in unpicklers & imported]
        for call in calls(path):
            is_forbidden = any(name.endswith(called_name(call)) for name in forbidden) and (
                ast.unparse(call.func) in forbidden
            )
            if is_forbidden or any(word.arg == "shell" for word in call.keywords):
                found.append((path, ast.unparse(call)))

    assert found == []


@pytest.mark.parametrize(
    "module",
    [
        *("loading.names", "loading.gguf.header", "loading.builtin", "loading.config_check", "loading.libraries"),
        *("loading.decoder_families", "loading.draft_head_folder", "storage.folders", "core.progress"),
        "text.template_sandbox",
    ],
)
def test_light_modules_import_no_heavy_library(module: str) -> None:
    heavy = {"torch", "transformers", "gguf", "huggingface_hub", "numpy", "rich", "typer"}
    seen: set[str] = set()
    pending = [f"specgen.{module}"]
    assert (ROOT / (module.replace(".", "/") + ".py")).exists()
    while pending:  # follows the imports at the top of our modules, without starting a program for each
        name = pending.pop()
        path = ROOT.parent / (name.replace(".", "/") + ".py")
        if name in seen or not path.exists():
            continue
        seen.add(name)
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ImportFrom) and node.module:
                pending.append(node.module)
                assert node.module.split(".")[0] not in heavy, f"{name} imports {node.module}"
            elif isinstance(node, ast.Import):
                assert not heavy & {alias.name.split(".")[0] for alias in node.names}, name


class Cycle:
    """Lives until the collector finds it."""


def make_garbage() -> weakref.ref[Cycle]:
    one = Cycle()
    one.itself = one  # type: ignore[attr-defined]
    return weakref.ref(one)


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(libraries, "gc", gc)
    yield
    gc.enable()
    gc.freeze()  # as `tests/fixtures.py` does for all tests


@pytest.mark.thorough
def test_the_collector_rests_while_models_load_and_works_again(
    monkeypatch: pytest.MonkeyPatch, collector: None
) -> None:
    monkeypatch.setattr(libraries, "gc", QuickCollector())
    with gc_paused():
        freeze_imported_objects()
        garbage = make_garbage()
        assert not gc.isenabled()
    assert gc.isenabled()
    assert garbage() is None, "what reading weights dropped must be gone"
    with pytest.raises(RuntimeError, match="a load that fails"), gc_paused():
        raise RuntimeError("a load that fails")
    assert gc.isenabled()
    monkeypatch.setattr(gc, "isenabled", lambda: False)
    with gc_paused():
        pass
    monkeypatch.undo()
    assert not gc.isenabled(), "one that was off stays off"


@pytest.mark.thorough
def test_what_was_set_aside_is_looked_at_before_the_next_load(collector: None) -> None:
    with gc_paused():
        garbage = make_garbage()
        freeze_imported_objects()
    assert garbage() is not None, "set aside"
    with gc_paused():
        assert garbage() is None, "the model before must be gone when the next is read"


def test_where_the_collector_works_nothing_is_set_aside(collector: None) -> None:
    gc.unfreeze()
    freeze_imported_objects()

    assert gc.get_freeze_count() == 0


@pytest.mark.fault("F166")
@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("HF_HUB_DOWNLOAD_TIMEOUT", "abc"),
        ("HF_HUB_ETAG_TIMEOUT", "1.5"),
        ("HF_ENDPOINT", "http://[::1"),
        ("HF_ENDPOINT", "https://hub.example:99999"),
    ],
)
def test_a_variable_that_the_hub_client_can_not_read_is_named(
    name: str, value: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, value)
    fails(SettingsError, check_hub_variables, name)

    monkeypatch.setenv(name, "")
    check_hub_variables()
    assert name not in os.environ


@pytest.mark.fault("F166")
@pytest.mark.process
@pytest.mark.parametrize("variable", ["TORCH_LOGS=banana", "TORCH_LOGS_FORMAT=%q", "TORCH_LOGS_OUT=/nonexistent/log"])
def test_a_variable_with_which_torch_can_not_be_imported_is_named(variable: str) -> None:
    code = "from specgen.loading.libraries import prepare_libraries; prepare_libraries(verbose=False)"
    name, _, value = variable.partition("=")

    made = subprocess.run(
        [sys.executable, "-c", code], env={**os.environ, name: value}, capture_output=True, text=True, check=False
    )

    assert f"{name}={value!r}" in made.stderr.partition("SettingsError: ")[2]
