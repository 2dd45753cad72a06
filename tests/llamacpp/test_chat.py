"""A chat on llama.cpp whose drafter changes: to another backend, to none, to lookup, and back."""

from __future__ import annotations

import gc
import weakref
from pathlib import Path

import pytest
import torch

from specgen.cli.chat.local import replace_draft
from specgen.cli.streams import Messages
from specgen.core.events import Prefill
from specgen.core.settings import ReplySettings, SamplingSettings
from specgen.loading.llama_cpp import default_num_threads
from specgen.models.decoder_model import DecoderModel
from specgen.models.llama_cpp import LlamaCppModel
from specgen.runtime.conversation import Conversation
from specgen.runtime.generation import Generation
from tests.cli.chat.scenes import OWN_TEMPLATE
from tests.llamacpp.test_models import named, opened, save_toy_gguf
from tests.toys import ANSWER, save_toy


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("toys")
    return {"gguf": save_toy_gguf(root / "toy.gguf", num_positions=2048), "folder": save_toy(root / "toy")}


class Chatting:
    """Runs turns of a chat and records the last prefill."""

    def __init__(self, target: Path, draft: Path) -> None:
        models = opened(named(target), named(draft))
        settings = ReplySettings(SamplingSettings(), max_new_tokens=64, num_draft_tokens=5)
        self.conversation = Conversation(models, settings, OWN_TEMPLATE)
        # As with no --backend: a draft in a folder runs on transformers.
        self.like = named(draft, name="auto")

    def turn(self) -> tuple[Generation, Prefill]:
        self.conversation.say("hello")
        generation = self.conversation.begin_reply()
        prefills = [event for event in self.conversation.stream(generation) if isinstance(event, Prefill)]
        self.conversation.end_reply(generation)
        assert generation.text == ANSWER
        return generation, prefills[0]

    def draft(self, name: object) -> None:
        assert replace_draft(self.conversation, self.like, Messages("never", True), str(name)) == []


@pytest.mark.thorough
def test_the_drafter_changes_and_comes_back_while_the_targets_cache_stays(files: dict[str, Path]) -> None:
    chat = Chatting(files["gguf"], files["gguf"])
    models = chat.conversation.models
    held = 0
    kinds, rates = [], []
    for name in (files["gguf"], files["folder"], "none", "lookup", files["gguf"], files["folder"], files["gguf"]):
        chat.draft(name)
        generation, prefill = chat.turn()
        assert prefill.num_reused_tokens >= held, "the target reads only what is new"
        held = len(models.text_ids) - 2
        kinds.append(type(models.draft))
        rates.append(generation.counts.acceptance_rate)

    assert kinds == [LlamaCppModel, kinds[1], type(None), type(None), LlamaCppModel, kinds[1], LlamaCppModel]
    assert issubclass(kinds[1], DecoderModel)
    assert rates[0] == rates[1] == rates[4] == rates[5] == rates[6] == 1.0
    assert rates[2] is None


@pytest.mark.thorough
def test_a_replaced_draft_frees_its_memory(files: dict[str, Path]) -> None:
    chat = Chatting(files["gguf"], files["gguf"])
    chat.turn()
    draft = chat.conversation.models.draft
    assert isinstance(draft, LlamaCppModel)
    gone = [weakref.ref(draft), weakref.ref(draft._owner), weakref.ref(draft._weights)]
    del draft

    chat.draft("lookup")
    chat.turn()
    gc.collect()

    assert [reference() for reference in gone] == [None, None, None]


@pytest.mark.thorough
def test_torchs_threads_depend_on_the_drafter(files: dict[str, Path]) -> None:
    chat = Chatting(files["gguf"], files["gguf"])
    cores = default_num_threads()
    try:
        found = []
        for name in (files["gguf"], files["folder"], files["gguf"]):
            chat.draft(name)
            found.append(torch.get_num_threads())
    finally:
        torch.set_num_threads(1)

    assert found == [1, cores, 1]


def test_a_draft_that_fails_to_load_leaves_the_old_one(files: dict[str, Path], tmp_path: Path) -> None:
    from specgen.core.errors import ModelFileError

    chat = Chatting(files["gguf"], files["gguf"])
    chat.turn()
    before = chat.conversation.models.draft
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(files["gguf"].read_bytes()[:2000])

    with pytest.raises(ModelFileError):
        chat.draft(broken)

    assert chat.conversation.models.draft is before
    assert chat.turn()[0].counts.acceptance_rate == 1.0
