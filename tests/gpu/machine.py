"""Parts 0, 1 and 8: the machine, whether specgen runs on it at all, and memory."""

from __future__ import annotations

import os
import subprocess
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from importlib import metadata
from io import BytesIO, TextIOWrapper
from pathlib import Path
from time import perf_counter
from typing import Any

import torch

from specgen.models.static.model import StaticModel
from tests.gpu.models import num_recorded, random_decoder, spec_of, static_model
from tests.gpu.report import Context, Say
from tests.gpu.timing import Timer

PACKAGES = ("torch", "transformers", "bitsandbytes", "tokenizers", "safetensors", "accelerate", "gguf")
TEST_DEVICE = "SPECGEN_GPU_TESTS"
"""Environment variable: device of the tests with the marker `gpu`."""


def examine(context: Context) -> None:
    """Part 0: versions, the card, the bandwidth of a copy, the cost of a launch and of a node of a graph."""
    versions = {name: _version(name) for name in PACKAGES}
    context.say("versions", **versions, cuda=str(torch.version.cuda))
    device, timer = context.device, Timer(context.device, context.pick(20, 3))
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        context.say(
            "card",
            card=card.name,
            multiprocessors=card.multi_processor_count,
            memory_gb=card.total_memory / 1e9,
            capability=f"{card.major}.{card.minor}",
            cudnn=torch.backends.cudnn.version(),
            driver=_driver(),
        )
    else:
        context.say("card", card="cpu")
    size = context.pick(2**30, 2**20)
    origin, copy = (torch.empty(size, dtype=torch.uint8, device=device) for _ in range(2))
    context.say("bandwidth", gb_per_s=2 * size / 1e6 / timer.replay_ms(lambda: copy.copy_(origin)))
    number, count = torch.zeros(8, device=device), context.pick(1000, 10)

    def launch() -> None:
        for _ in range(count):
            number.add_(1)

    context.say(
        "launch", eager_us=1000 * timer.call_ms(launch) / count, graph_us=1000 * timer.replay_ms(launch) / count
    )


def _driver() -> str:
    """Returns what the driver says about itself and the limits of the card."""
    command = ["nvidia-smi", "--query-gpu=driver_version,power.limit,clocks.max.sm", "--format=csv,noheader"]
    try:
        return subprocess.run(command, capture_output=True, text=True, timeout=10).stdout.strip()
    except (OSError, subprocess.TimeoutExpired):
        return "unknown"


def _version(name: str) -> str:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return "missing"


def run_tests(context: Context) -> None:
    """Part 1: the program itself on toys in all weight formats, then the tests with the marker `gpu`."""
    codes = []
    for quant in context.pick(("none", "nf4", "int8"), ("nf4",)):
        found = _verified(quant, context.device.type)
        context.say("verify_toys", quant=quant, **found)
        codes.append(found["exit_code"])
    codes.append(_run_pytest(context))
    assert not any(codes), f"exit codes of verify and of the tests: {codes}"


def _run_pytest(context: Context) -> int:
    import pytest

    # In this process: it was made for this part, and everything is imported already.
    os.environ[TEST_DEVICE] = context.device.type
    outcomes = Outcomes(context.say)
    options = ["-p", "no:cacheprovider", "--noconftest", "-o", "addopts=", "-o", "filterwarnings=default", "-m", "gpu"]
    code = pytest.main([*options, str(Path(__file__).with_name("test_gpu.py"))], plugins=[outcomes])
    context.say("tests", exit_code=int(code), **{kind: len(names) for kind, names in outcomes.names.items()})
    return int(code)


class Outcomes:
    """A plugin of pytest that collects which tests passed, failed and were skipped.

    Args:
        say: Reports a failed test at once: the deadline may come before the last test.
    """

    def __init__(self, say: Say) -> None:
        self._say = say
        self.names: dict[str, list[str]] = {"passed": [], "failed": [], "skipped": []}

    def pytest_runtest_logreport(self, report: Any) -> None:
        if report.when == "call" or report.outcome != "passed":
            self.names[report.outcome].append(report.nodeid.rpartition("::")[2])
        if report.outcome == "failed":
            crash = getattr(report.longrepr, "reprcrash", None)
            error = str(crash.message if crash is not None else report.longrepr).partition("\n")[0][:300]
            self._say("failed_test", test=self.names["failed"][-1], when=report.when, error=error)


def _verified(quant: str, device: str) -> dict[str, Any]:
    """Runs `specgen verify` on two toys. Returns its exit code, and what it wrote if that is not 0."""
    from specgen.cli.app import run
    from tests.toys import random_toy, save_toy

    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"SPECGEN_CACHE": f"{folder}/cache", "SPECGEN_STATE": f"{folder}/state", "HF_HUB_OFFLINE": "1"}
        paths = [
            str(save_toy(Path(folder) / str(seed), model=random_toy(seed, hidden_size=64, intermediate_size=128)))
            for seed in range(2)
        ]
        options = ["-t", paths[0], "-d", paths[1], "--device", device, "--quant", quant, "-n", "32"]
        written = BytesIO()
        stream = TextIOWrapper(written, encoding="utf-8", write_through=True)
        with redirect_stdout(stream), redirect_stderr(stream):
            code = run(["verify", *options])
    return {"exit_code": code, **({"output": written.getvalue().decode()[-500:]} if code else {})}


def measure_memory(context: Context) -> None:
    """Part 8: memory and time of the recordings of a model, and whether later answers record again."""
    device = context.device
    for shape in ("7B", "0.5B"):
        decoder = random_decoder(spec_of(shape, is_tiny=context.is_tiny), device)
        before = _reserved(device)
        model = static_model(decoder)
        ids = torch.randint(0, 500, (context.pick(2000, 700),)).tolist()
        seconds = _answer(model, ids, 200)
        context.say(
            "recording",
            shape=shape,
            num_recorded=num_recorded(model),
            seconds=seconds,
            reserved_mb=(_reserved(device) - before) / 1e6,
        )
        again = _answer(model, ids, 200)
        context.say("second_answer", shape=shape, num_recorded=num_recorded(model), seconds=again)
        longer = _answer(model, ids, len(ids) - 100)
        context.say(
            "longer_answer",
            shape=shape,
            num_recorded=num_recorded(model),
            seconds=longer,
            reserved_mb=(_reserved(device) - before) / 1e6,
        )
        del model, decoder


def _answer(model: StaticModel, ids: list[int], length: int) -> float:
    """Runs passes of all sizes after a text, three of each. Returns their seconds."""
    model.rewind(0)
    model.feed(ids[:length])
    started = perf_counter()
    for rows in (1, 2, 3, 4, 5, 6, 8, 12, 17):
        for _ in range(3):
            model.logits(ids[: length + rows], rows)
            model.rewind(length)
    if model.device.type == "cuda":
        torch.cuda.synchronize(model.device)
    return perf_counter() - started


def _reserved(device: torch.device) -> int:
    return torch.cuda.memory_reserved(device) if device.type == "cuda" else 0
