"""Checks that rollbacks, failing drafts and many runs in one process leave memory and open files flat.

`python -m pytest -m slow tests/test_soak.py -s` makes longer runs and prints figures. Three hundred turns of a chat are
in `tests/cli/chat/test_growth.py`.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from specgen.core.errors import DraftError
from specgen.core.events import Round
from specgen.core.settings import DecodeSettings
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.drafters.base import NoDrafter
from specgen.loading import libraries
from specgen.models.decoder_model import DecoderModel
from specgen.models.kv_slots import FIRST_CAPACITY
from specgen.models.transformers_model import TransformersModel
from tests.cli.chat.test_growth import Levels, levels
from tests.cli.conftest import Cli, clean_environment, cli, toy_arguments, toys
from tests.fakes import FailingDrafter, ScriptedDrafter, cached, ids_of, sampler, tiny_model
from tests.toys import ANSWER

__all__ = ["clean_environment", "cli", "toy_arguments", "toys"]
MIB = 2**20
pytestmark = pytest.mark.thorough


def long(count: int) -> object:
    return pytest.param(count, marks=[pytest.mark.slow, pytest.mark.timeout(1800)])


# L1


@pytest.mark.parametrize("name", ["decoder", "transformers"])
@pytest.mark.parametrize("num_rollbacks", [150, long(5000)])
def test_rollbacks_leave_the_cache_exact_and_memory_flat(num_rollbacks: int, name: str) -> None:
    # The drafter is always wrong: each round rejects four tokens. Two layers, two heads of 8, keys and values.
    num_text = 100 if num_rollbacks == 150 else 2000
    inner = tiny_model(max_position_embeddings=4096)
    model = cached(inner) if name == "decoder" else TransformersModel(inner, 96)
    bytes_per_token = 2 * 2 * 2 * 8 * 4
    drafter = ScriptedDrafter(lambda ids, limit: [3, 5, 7, 11][:limit])
    done, warm = 0, None
    while done < num_rollbacks:
        events = decode(model, drafter, [1, 2, 3], sampler(), DecodeOptions(DecodeSettings(num_text, 4)))
        for event in events:
            if isinstance(event, Round):
                done += event.num_rejected
                if done == num_rollbacks // 3 and warm is None:
                    warm = levels()
        if isinstance(model, DecoderModel):
            num_bytes = sum(tensor.nbytes for slots in model._slots for tensor in (*slots._keys, *slots._values))
            # The capacity doubles; the longest pass had four tokens more than the text.
            assert num_bytes % bytes_per_token == 0
            assert num_bytes // bytes_per_token <= max(FIRST_CAPACITY, 2 * (model.length + 4))
        else:
            num_bytes = sum(layer.keys.nbytes + layer.values.nbytes for layer in model._cache.layers)
            assert num_bytes == model.length * bytes_per_token
        model.reset()
    last = levels()

    assert warm is not None
    print(f"\n{done} rollbacks: {_growth(warm, last)}")
    assert_flat(warm, last, 16 * MIB + num_text * bytes_per_token)


# L3


@pytest.mark.parametrize("num_runs", [12, long(200)])
def test_many_runs_in_one_process_keep_memory_and_files_flat(
    cli: Cli, toy_arguments: list[str], toys: dict[str, Path], num_runs: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    if num_runs >= 200:
        # Tests switch the collections of loading off. A short run is collected by `levels` only.
        monkeypatch.setattr(libraries, "gc", gc)
    sizes, warm = [], None
    for number in range(num_runs):
        ended = cli("generate", "hello", *toy_arguments, "-d", toys["wrong"], "--no-stats", "--baseline", "off")
        assert ended.out == f"{ANSWER}\n".encode()
        if number == num_runs // 2:
            warm = levels()
        if num_runs >= 200:
            sizes.append(levels().resident)
    last = levels()

    assert warm is not None
    print(f"\n{num_runs} runs: {_growth(warm, last)}")
    # Each run loads its models again: a tensor that stays would be a megabyte per run.
    assert_flat(warm, last, 8 * MIB)
    if sizes:
        slope = _slope(sizes[num_runs // 2 :])
        print(f"slope {slope / 1024:.1f} KiB a run")
        assert slope < 20 * 1024


@pytest.mark.parametrize("num_runs", [24, long(1000)])
def test_failing_drafts_keep_memory_and_files_flat(num_runs: int) -> None:
    model, warm = cached(tiny_model()), None
    plain = ids_of(list(_run(model, NoDrafter)))
    for number in range(num_runs):
        assert ids_of(list(_run(model, lambda: FailingDrafter(2)))) == plain
        if number == num_runs // 2:
            warm = levels()

    assert warm is not None
    assert issubclass(DraftError, Exception)
    assert_flat(warm, levels(), 4 * MIB)


def _run(model: object, make: Callable[[], object]) -> object:
    model.reset()  # type: ignore[attr-defined]
    return decode(model, make(), [1, 2, 3], sampler(), DecodeOptions(DecodeSettings(12, 3)))  # type: ignore[arg-type]


def assert_flat(warm: Levels, last: Levels, num_bytes: int) -> None:
    assert last.files <= warm.files
    assert last.threads <= warm.threads
    assert warm.objects > 10_000, "too few objects are counted to see growth"
    assert last.objects - warm.objects < warm.objects // 50
    assert last.resident - warm.resident < num_bytes


def _growth(warm: Levels, last: Levels) -> str:
    sizes = " → ".join(f"{level.resident / MIB:.0f}" for level in (warm, last))
    return (
        f"resident {sizes} MiB; files {warm.files} → {last.files}; "
        f"threads {warm.threads} → {last.threads}; objects {warm.objects} → {last.objects}; process {os.getpid()}"
    )


def _slope(values: list[int]) -> float:
    """Returns the slope of the least-squares line, per step."""
    middle = (len(values) - 1) / 2
    mean = sum(values) / len(values)
    above = sum((index - middle) * (value - mean) for index, value in enumerate(values))
    return above / sum((index - middle) ** 2 for index in range(len(values)))
