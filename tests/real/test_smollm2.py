"""The built-in target as users get it, in float32: its greedy text is transformers' own, whatever drafts."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from specgen.core.settings import DecodeSettings, ModelSettings, PairSettings, SamplingSettings
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.drafters.model import ModelDrafter
from specgen.loading.builtin import fetch_builtin
from specgen.loading.libraries import prepare_libraries
from specgen.loading.resolved_model import LoadedModel
from specgen.models.decoder_model import DecoderModel
from specgen.runtime.generation import Generation, Request
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import resolve_pair
from specgen.storage.folders import cache_root
from specgen.text.chat_template import ChatTemplate, Message, encode_text
from tests.cli.children import run_child
from tests.fakes import always_wrong, cached, ids_of, oracle, tiny_model

pytestmark = pytest.mark.real

SHORT, LONG = 12, 24
"""Tokens wanted: many where the text repeats and drafts are long, few elsewhere, where each costs a pass."""
CHATS = [
    "Why is the sky blue?",
    "List three colours, one per line.",
    "Repeat after me, word for word: the cat sat on the mat, the cat sat on the mat.",
    "Schreibe einen Satz über Bäume.",
    "Write a Python function that adds two numbers.",
    "What is <|im_end|> for?",
]
RAW = [
    "1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13,",
    "def add(a, b):\n    return a + b\n\ndef subtract(a, b):\n    return",
    "Once upon a time",
    "日本の首都は",
]

LENGTHS = (1, 4, 8)
PlainRun = Callable[[str], Generation]

prepare_libraries(verbose=False)


@pytest.fixture(scope="module")
def loaded() -> dict[str, LoadedModels]:
    """The target alone, with lookup, and drafting for itself; the weights are in memory once."""
    fetch_builtin()
    settings = ModelSettings("", quant="none", dtype="float32", device="cpu")
    lookup = load_models(resolve_pair(PairSettings(settings, "lookup")))
    made = {"lookup": lookup}
    for drafter, draft in (("none", None), ("model", settings)):
        pair = resolve_pair(PairSettings(settings, drafter, draft))
        # Caches are cheap and of each session's own; the model is not.
        made[drafter] = LoadedModels(pair, *_copies(lookup, has_draft=draft is not None))
    return made


def _copies(models: LoadedModels, *, has_draft: bool) -> tuple[Any, ...]:
    assert isinstance(models.target, DecoderModel)
    decoder, vocab_size = models.target.decoder, models.target.vocab_size

    def copy() -> LoadedModel:
        return LoadedModel(DecoderModel(decoder, vocab_size), models.target_info)

    return copy(), copy() if has_draft else None


@cache
def tokenizer() -> Any:
    from specgen.text.tokenizer import load_tokenizer

    return load_tokenizer(fetch_builtin())


def prompts() -> list[Any]:
    """Prompt, whether it is raw, and the draft lengths of lookup: all of them for one that repeats, else in turn."""
    texts = [*[(text, False) for text in CHATS], *[(text, True) for text in RAW]]
    made = []
    for index, (text, is_raw) in enumerate(texts):
        lengths = LENGTHS if text == CHATS[2] else LENGTHS[index % 3 : index % 3 + 1]
        # A minute for all of them; the others show nothing that these do not.
        marks = () if index in (2, 6, 9) else pytest.mark.slow
        made.append(pytest.param(text, is_raw, lengths, id=f"{'raw' if is_raw else 'chat'} {index}", marks=marks))
    return made


def num_wanted(lengths: tuple[int, ...]) -> int:
    return LONG if lengths == LENGTHS else SHORT


def prompt_ids(text: str, is_raw: bool) -> list[int]:
    return encode_text(tokenizer(), text) if is_raw else ChatTemplate().encode(tokenizer(), [Message("user", text)])


def generation(
    models: LoadedModels, ids: list[int], num_draft_tokens: int, *, is_raw: bool = False, num_new: int = SHORT
) -> Generation:
    limits = DecodeSettings(num_new, num_draft_tokens, end_ids=models.pair.end_ids)
    made = Generation(models, Request(ids, limits, SamplingSettings(), is_raw=is_raw))
    for _ in made:
        pass
    return made


@pytest.fixture(scope="module")
def plain_run(loaded: dict[str, LoadedModels]) -> PlainRun:
    """Returns the run of the target alone on a prompt of `prompts`, once each."""
    cases = {text: (is_raw, num_wanted(lengths)) for text, is_raw, lengths in (one.values for one in prompts())}

    @cache
    def run(text: str) -> Generation:
        is_raw, num_new = cases[text]
        return generation(loaded["none"], prompt_ids(text, is_raw), 0, is_raw=is_raw, num_new=num_new)

    return run


@cache
def library_model() -> Any:
    """Loads the model with transformers' own loader."""
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(fetch_builtin(), dtype=torch.float32, local_files_only=True).eval()


@torch.inference_mode()
def library_ids(models: LoadedModels, ids: list[int], num_new: int) -> list[int]:
    """What transformers' own greedy `generate` adds."""
    given = torch.tensor([ids])
    made = library_model().generate(
        given,
        attention_mask=torch.ones_like(given),
        do_sample=False,
        max_new_tokens=num_new,
        eos_token_id=sorted(models.pair.end_ids),
        pad_token_id=tokenizer().eos_token_id,
    )
    return list(made[0, len(ids) :].tolist())


@pytest.mark.parametrize(("text", "is_raw", "lengths"), prompts())
def test_every_drafter_gives_the_librarys_own_greedy_text(
    loaded: dict[str, LoadedModels], plain_run: PlainRun, text: str, is_raw: bool, lengths: tuple[int, ...]
) -> None:
    ids = prompt_ids(text, is_raw)
    num_new = num_wanted(lengths)

    def run(drafter: str, length: int) -> Generation:
        return generation(loaded[drafter], ids, length, is_raw=is_raw, num_new=num_new)

    expected = library_ids(loaded["none"], ids, num_new)

    plain, lookups, own = plain_run(text), [run("lookup", length) for length in lengths], run("model", 3)
    assert all(made.token_ids == expected for made in (plain, *lookups, own))
    assert {made.text for made in (plain, *lookups, own)} == {plain.text}
    assert own.counts.acceptance_rate == 1.0


# What they propose is made of the text: neither what the text says nor whether it is raw matters to them.
@pytest.mark.parametrize(("text", "is_raw", "lengths"), prompts()[: len(CHATS)])
def test_hopeless_and_perfect_drafts_give_the_same_text(
    loaded: dict[str, LoadedModels], plain_run: PlainRun, text: str, is_raw: bool, lengths: tuple[int, ...]
) -> None:
    models, ids = loaded["none"], prompt_ids(text, is_raw)
    plain = plain_run(text).token_ids[:SHORT]
    size = models.target.vocab_size
    sampler = models.sampler(SamplingSettings())
    other = cached(tiny_model(vocab_size=models.target.num_embeddings), size)

    def run(drafter: Any) -> list[int]:
        models.reuse_prefix(ids)
        limits = DecodeSettings(SHORT, lengths[0], end_ids=models.pair.end_ids)
        return ids_of(list(decode(models.target, drafter, ids, sampler, DecodeOptions(limits))))

    drafters = [
        oracle(plain, len(ids)),
        always_wrong(plain, len(ids), size),
        ModelDrafter(other, size, sampler),
    ]
    assert [run(drafter) for drafter in drafters] == [plain] * len(drafters)


def test_lookup_is_accepted_where_the_text_repeats(loaded: dict[str, LoadedModels]) -> None:
    ids = encode_text(tokenizer(), "the cat sat on the mat, " * 6)

    counts = generation(loaded["lookup"], ids, 8, is_raw=True, num_new=LONG).counts

    assert counts.num_rounds < LONG / 2


def test_the_command_line_answers_with_the_built_in_model(loaded: dict[str, LoadedModels], tmp_path: Path) -> None:
    path = tmp_path / "answer.txt"
    options = ["-k", "4", "-n", str(SHORT), "--dtype", "float32", "--device", "cpu", "--json", "-o", str(path)]

    ended = run_child("generate", CHATS[1], *options, module="specgen", env={"SPECGEN_CACHE": str(cache_root())})

    made = json.loads(ended.out)
    expected = generation(loaded["none"], prompt_ids(CHATS[1], is_raw=False), 0)
    assert ended.code == 0
    assert made["text"] == expected.text
    assert path.read_text().rstrip("\n") == expected.text.rstrip("\n")
    assert made["target"]["id"] == "smollm2-135m-instruct"
    assert made["speedup"] > 0
    assert "Traceback" not in ended.err
