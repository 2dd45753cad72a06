"""Checks that threads, the view and the length of a run do not change the text, and that damaged files are errors.

The comments name the promises M8, M10, L4, L7 and L8; the others are in `tests/engine/test_properties.py` and
`tests/test_soak.py`.
"""

from __future__ import annotations

import io
import json
import random
import time
from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer

from specgen.core.events import Piece, Round, RoundText, TokenState
from specgen.core.settings import DecodeSettings
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.drafters.base import NoDrafter
from specgen.engine.drafters.model import ModelDrafter
from specgen.models.transformers_model import TransformersModel
from specgen.render.views import PlainView
from specgen.text.detokenizer import Detokenizer
from tests.cli.conftest import Cli, clean_environment, cli, toy_arguments, toys
from tests.fakes import ScriptedDrafter, cached, ids_of, random_tokens, run_events, sampler, threads, tiny_model
from tests.toys import ANSWER, toy_tokenizer

__all__ = ["clean_environment", "cli", "toy_arguments", "toys"]


# M8


@pytest.mark.thorough
@pytest.mark.parametrize("has_draft", [False, True], ids=["alone", "with a draft"])
def test_one_thread_or_two_give_one_text(has_draft: bool) -> None:
    texts = []
    for num_threads in (1, 2):
        with threads(num_threads):
            draft = cached(tiny_model(seed=1))
            drafter = ModelDrafter(draft, 96, sampler()) if has_draft else NoDrafter()
            texts.append(ids_of(run_events(cached(tiny_model()), drafter, [1, 2, 3], max_new_tokens=40)))

    assert texts[0] == texts[1]
    assert len(texts[0]) == 40


# M10


def test_a_view_changes_no_id_and_no_count(
    cli: Cli, toy_arguments: list[str], toys: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    from specgen.runtime.generation import Generation

    seen: list[tuple[list[int], tuple[int, ...]]] = []
    report = Generation.report

    def noting(generation: Generation, *arguments: object, **options: object) -> object:
        counts = generation.counts
        numbers = (
            counts.num_drafted,
            counts.num_accepted,
            counts.num_rejected,
            counts.num_draft_passes,
            counts.num_rounds,
        )
        seen.append((list(generation.token_ids), numbers))
        return report(generation, *arguments, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(Generation, "report", noting)
    options = ["-d", toys["wrong"], "-k", "5", "--baseline", "off"]
    for view in ("inline", "live", "steps", "text", "off"):
        before = len(seen)
        assert cli("generate", "hello", *toy_arguments, *options, "--view", view, "--color", "always").code == 0
        assert len(seen) > before

    assert len({(tuple(ids), numbers) for ids, numbers in seen}) == 1
    assert seen[0][1][1] > 0


# L4


@pytest.mark.parametrize("num_tokens", [20_000, pytest.param(100_000, marks=pytest.mark.slow)])
def test_the_thousandth_and_the_last_token_cost_the_same_to_show(num_tokens: int) -> None:
    tokenizer: Tokenizer = toy_tokenizer().backend_tokenizer
    ids = tokenizer.encode(ANSWER, add_special_tokens=False).ids
    detokenizer, view, stream = Detokenizer(tokenizer), None, io.BytesIO()
    view = PlainView(stream)
    step = num_tokens // 10
    seconds, text = [], 0
    for part in range(10):
        started = time.process_time()
        for index in range(part * step, (part + 1) * step):
            said = detokenizer.commit(ids[index % len(ids)])
            text += len(said)
            round_ = Round(index, (), 0, ids[index % len(ids)], 0, 0.0, 0.0, 0.0)
            view.show(RoundText(round_, (Piece(ids[index % len(ids)], said, TokenState.TARGET),)))
        seconds.append(time.process_time() - started)

    assert len(stream.getvalue().decode()) == text
    # Decoding the text again from its beginning would make the last part twice the median, and 19 times the first. The
    # decoder is a library's, so only its processor time can be counted: hence the wide bound.
    assert min(seconds[-3:]) < 5 * min(seconds[:3])


# L7


@pytest.mark.thorough
def test_twenty_windows_of_sliding_attention_equal_a_fresh_prefill() -> None:
    window, length = 16, 20 * 16
    plain = run_events(cached(tiny_model("mistral")), NoDrafter(), [1], max_new_tokens=length, num_draft_tokens=0)
    expected = ids_of(plain)
    target, drafter = cached(tiny_model("mistral")), random_tokens(3, 96)
    text: list[int] = [1]
    for event in decode(target, drafter, [1], sampler(), DecodeOptions(DecodeSettings(length, 5))):
        if not isinstance(event, Round):
            continue
        text += event.token_ids
        if event.index % 50 == 0 and len(text) > 2 * window:
            fresh = TransformersModel(tiny_model("mistral"), 96).logits(text, 1)
            again = target.logits(text, 1)
            target.rewind(min(len(text) - 1, target.length))
            torch.testing.assert_close(again, fresh, rtol=1e-4, atol=1e-4)

    assert text[1:] == expected


@pytest.mark.thorough
def test_an_always_wrong_draft_over_twenty_windows_changes_nothing() -> None:
    length = 20 * 16
    wrong = ScriptedDrafter(lambda ids, limit: [(ids[-1] + 1) % 96] * limit)
    texts = [
        ids_of(run_events(cached(tiny_model("mistral")), drafter, [1], max_new_tokens=length, num_draft_tokens=k))
        for drafter, k in ((NoDrafter(), 0), (wrong, 4))
    ]

    assert texts[0] == texts[1]


# L8


@pytest.mark.parametrize("num_files", [25, pytest.param(200, marks=pytest.mark.slow)])
@pytest.mark.fault("F16", "F20", "F24")
def test_no_damaged_file_ends_in_a_traceback(
    cli: Cli, toy_arguments: list[str], toys: dict[str, Path], tmp_path: Path, num_files: int
) -> None:
    random_ = random.Random(0)
    names = ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json"]
    codes = []
    for number in range(num_files):
        folder = tmp_path / str(number)
        folder.mkdir()
        for path in toys["target"].iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        broken = folder / names[number % len(names)]
        data = bytearray(broken.read_bytes())
        for _ in range(random_.choice((1, 8, 200))):
            data[random_.randrange(len(data))] = random_.randrange(256)
        broken.write_bytes(data[: random_.choice((len(data), random_.randrange(len(data))))])
        options = [str(folder) if option == str(toys["target"]) else option for option in toy_arguments]
        ended = cli("generate", "hello", *options, "--json", "-n", "4", "-d", "none")
        codes.append(ended.code)
        # 1 would be an internal error; a file that can still be read gives some text.
        assert ended.code in (0, 2, 3, 4, 5, 8), (broken.name, ended.err)
        assert "Traceback" not in ended.err
        assert json.loads(ended.out)["type"] in ("result", "error")

    assert codes.count(3) > num_files // 4
