"""A whole session on the built-in model, on a real terminal: what a person types, and what is on disk afterwards."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from specgen.core.errors import ModelNotFoundError
from specgen.core.settings import ModelSettings, PairSettings
from specgen.loading.builtin import fetch_builtin
from specgen.runtime.pair import resolve_pair
from specgen.storage.folders import STATE_VARIABLE
from specgen.storage.transcript import from_json
from tests.cli.chat.terminals import Terminal, logged

pytestmark = pytest.mark.real
EXACT = ("-n", "6", "--temperature", "0", "--dtype", "float32", "--device", "cpu", "--quant", "none")


def test_five_turns_undone_retried_saved_and_resumed_are_each_a_fresh_prefill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    try:
        fetch_builtin(offline=True)
    except ModelNotFoundError as error:
        pytest.skip(str(error))
    state, log = tmp_path / "state", tmp_path / "log"
    monkeypatch.setenv(STATE_VARIABLE, str(state))
    environment = {"SPECGEN_CACHE": os.environ.get("SPECGEN_CACHE", "")}
    chat = Terminal(*EXACT, state=state, log=log, env=environment, fresh=True)
    chat.screen.timeout = 200
    try:
        chat.prompt()
        chat.say("What is the capital of France?")
        chat.say("What is the capital of Peru?")
        chat.say("/undo")
        chat.say("And of Italy?")
        chat.say("/retry max-new-tokens=4")
        chat.say("/system Answer in one word.")
        chat.say("Name a colour.")
        chat.say("Another one?")
        chat.say("/save trip")
        chat.type("/exit\r")
        assert chat.ended() == 0
    finally:
        chat.close()
    again = Terminal("--resume", "last", *EXACT, state=state, log=log, env=environment, fresh=True)
    again.screen.timeout = 200
    try:
        resumed = again.prompt()
        again.say("Thank you.")
        again.type("\x04")
        assert again.ended() == 0
    finally:
        again.close()

    transcript = from_json((state / "sessions" / "trip.json").read_bytes())
    assert "8 messages" in resumed
    assert [m.content for m in transcript.messages if m.role == "user"] == [
        "What is the capital of France?",
        "And of Italy?",
        "Name a colour.",
        "Another one?",
        "Thank you.",
    ]
    replies = logged(log)
    assert len(replies) == 7
    settings = ModelSettings("", "none", "float32", "cpu", offline=True)
    pair = resolve_pair(PairSettings(settings, drafter="none"))
    library = AutoModelForCausalLM.from_pretrained(pair.target.path, dtype=torch.float32, local_files_only=True)
    for prompt, reply in replies:
        whole = library.generate(
            torch.tensor([prompt]),
            do_sample=False,
            max_new_tokens=len(reply),
            eos_token_id=list(pair.end_ids),
            pad_token_id=0,
        )
        assert reply == whole[0, len(prompt) :].tolist()
