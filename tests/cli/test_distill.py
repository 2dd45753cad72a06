"""`specgen distill` on a toy: a draft that loads, one whose run was interrupted, and what is refused."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from specgen.text.chat_template import ChatTemplate, Message
from specgen.text.tokenizer import load_tokenizer
from tests.cli.conftest import Cli
from tests.toys import random_toy, save_toy

SMALL = [
    *("--num-prompts", 6, "-n", 8, "--batch-size", 3, "--vocab", 100, "--epochs", 2, "--batch-tokens", 64),
    *("--device", "cpu"),
]
PROMPTS = "hello\nfox\nquick brown\nat the caf\nlat\ndrinks\n"


@pytest.fixture(scope="module")
def target(tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = random_toy(1, num_hidden_layers=3, hidden_size=64, intermediate_size=64, num_attention_heads=4)
    return save_toy(tmp_path_factory.mktemp("distill") / "target", model=model)


@pytest.fixture
def distill(cli: Cli, target: Path, tmp_path: Path) -> Any:
    (tmp_path / "prompts.txt").write_text(PROMPTS)
    (tmp_path / "held-out.txt").write_text("brown\nThe quick\n")

    def call(*arguments: object, model: Path = target) -> Any:
        prompts = ["--prompts", tmp_path / "prompts.txt", "--held-out", tmp_path / "held-out.txt"]
        return cli("distill", model, "-o", tmp_path / "draft", *prompts, *SMALL, *arguments)

    return call


@pytest.mark.thorough
def test_a_draft_comes_out_that_generates_the_targets_own_text(
    distill: Any, cli: Cli, target: Path, tmp_path: Path
) -> None:
    ended = distill()

    assert ended.code == 0, ended.err
    assert ended.out == b""
    draft = tmp_path / "draft"
    assert sorted(path.name for path in draft.iterdir()) == ["README.md", "config.json", "model.safetensors"]
    exact = ["--quant", "none", "--draft-quant", "none", "--dtype", "float32", "--device", "cpu"]
    words = ["generate", "hello", "-t", target, *exact, "-n", 20, "--temperature", 0, "--json"]
    alone, drafted = (json.loads(cli(*words, "-d", name).out) for name in ("none", draft))
    assert "text" in drafted, drafted
    assert drafted["text"] == alone["text"]
    assert drafted["stats"]["num_draft_tokens"] > 0
    ranking = json.loads(cli("drafts", target, *exact, "-d", draft, "--json").out)
    assert [one["source"] for one in ranking["drafts"] if one["draft"] == str(draft)] == ["draft head"]


@pytest.mark.thorough
@pytest.mark.fault("F98")
def test_variables_of_the_template_are_used_and_recorded(distill: Any, tmp_path: Path) -> None:
    ended = distill("--chat-template-kwargs", '{"enable_thinking": false}')

    assert ended.code == 0, ended.err
    assert '"enable_thinking": false' in (tmp_path / "draft" / "README.md").read_text()


@pytest.mark.fault("F111")
def test_the_target_answers_whole_conversations_of_a_prompt_file(
    distill: Any, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specgen.distill.text_folder import TextFolder

    roles = (("system", "Be brief."), ("user", "hello"), ("assistant", "hi"), ("user", "fox"))
    messages = [{"role": role, "content": content} for role, content in roles]
    (tmp_path / "chats.jsonl").write_text(json.dumps({"messages": messages}) + "\n")
    encode, seen = TextFolder.encode, []
    monkeypatch.setattr(TextFolder, "encode", lambda self, prompt: seen.append(encode(self, prompt)) or seen[-1])

    ended = distill("--prompts", tmp_path / "chats.jsonl", "--held-out", tmp_path / "chats.jsonl")

    assert ended.code == 0, ended.err
    expected = ChatTemplate().encode(load_tokenizer(target), [Message(role, content) for role, content in roles])
    assert seen == [expected, expected]


def test_the_card_reports_data_loss_acceptance_and_cost(distill: Any, tmp_path: Path) -> None:
    distill("--kind", "layers", "--num-layers", 2)

    card = (tmp_path / "draft" / "README.md").read_text()

    assert "6 texts" in card
    for part in ("## Data", "## Loss", "## Measured", "predicted speedup", "c = ", '"num_layers": 2', "layers 0, 2"):
        assert part in card, part


@pytest.mark.parametrize(("flags", "dtype"), [({"avx2"}, "float32"), ({"avx2", "avx512_bf16"}, "bfloat16")])
@pytest.mark.thorough
def test_texts_and_training_are_in_bfloat16_where_the_cpu_multiplies_it_fast(
    distill: Any, monkeypatch: pytest.MonkeyPatch, flags: set[str], dtype: str
) -> None:
    from specgen.distill import training
    from specgen.distill.text_generation import BatchGenerator
    from specgen.loading import placement

    used: set[torch.dtype] = set()
    generate, train = BatchGenerator.generate, training.Trainer._train_on
    monkeypatch.setattr(placement, "cpu_flags", lambda: frozenset(flags))
    monkeypatch.setattr(
        BatchGenerator, "generate", lambda self, *rest: used.add(self.target.dtype) or generate(self, *rest)
    )
    monkeypatch.setattr(
        training.Trainer, "_train_on", lambda self, batch: used.add(self.shared.head.dtype) or train(self, batch)
    )

    assert distill().code == 0
    assert used == {getattr(torch, dtype)}


@pytest.mark.thorough
@pytest.mark.parametrize("place", ["writing", "training"])
def test_an_interrupted_run_continues_and_makes_the_same_draft(
    distill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    from specgen.distill import text_generation, training

    assert distill().code == 0
    whole = load_file(tmp_path / "draft" / "model.safetensors")
    (tmp_path / "draft").rename(tmp_path / "whole")
    monkeypatch.setattr(training, "CHECKPOINT_SECONDS", 0.0)
    written: list[int] = []
    with monkeypatch.context() as killer:
        # A kill leaves what is on disk at that moment; nothing cleans up after this error.
        owner, name = (
            (text_generation.BatchGenerator, "generate") if place == "writing" else (training.Trainer, "_train_on")
        )
        original = getattr(owner, name)

        def die(*arguments: Any) -> Any:
            written.append(1)
            if len(written) == 3:
                signal.raise_signal(signal.SIGINT)
            return original(*arguments)

        killer.setattr(owner, name, die)
        stopped = distill()
    assert stopped.code == 130
    left = list((tmp_path / "draft" / ".distill").rglob("*.safetensors"))
    assert left
    times = {path: path.stat().st_mtime_ns for path in left}
    calls = count_writes(monkeypatch)

    ended = distill()

    assert ended.code == 0, ended.err
    again = load_file(tmp_path / "draft" / "model.safetensors")
    assert whole.keys() == again.keys()
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    # Held-out texts and two batches in all: existing files are not generated again.
    assert len(calls) == 3 - len(times)


def count_writes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    from specgen.distill.text_generation import BatchGenerator

    calls: list[int] = []
    original = BatchGenerator.generate

    def counted(*arguments: Any) -> Any:
        calls.append(1)
        return original(*arguments)

    monkeypatch.setattr(BatchGenerator, "generate", counted)
    return calls


def test_other_options_do_not_continue_an_unfinished_draft(
    distill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specgen.distill.training import Trainer

    def die(*_: Any) -> Iterator[float]:
        raise KeyboardInterrupt

    with monkeypatch.context() as killer:
        killer.setattr(Trainer, "run", die)
        assert distill().code == 130

    ended = distill("--seed", 5)

    assert ended.code == 2
    assert str(tmp_path / "draft") in ended.err


@pytest.mark.thorough
def test_another_draft_is_trained_on_saved_texts(distill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = tmp_path / "texts"
    assert distill("--texts", kept).code == 0
    (tmp_path / "draft").rename(tmp_path / "first")
    calls = count_writes(monkeypatch)

    ended = distill("--texts", kept, "--layers", "0,2", "--epochs", 1)

    assert ended.code == 0, ended.err
    assert len(calls) == 1, "only the held-out texts are generated again"
    about = json.loads((tmp_path / "draft" / "config.json").read_text())["specgen_draft"]
    assert about["target_layers"] == [0, 2]
    (tmp_path / "draft").rename(tmp_path / "second")
    calls.clear()
    assert distill("--texts", kept).code == 0
    assert len(calls) == 1
    whole, again = (load_file(tmp_path / name / "model.safetensors") for name in ("first", "draft"))
    assert all(torch.equal(whole[name], again[name]) for name in whole), "saved texts make the same draft"


@pytest.mark.thorough
def test_texts_of_another_model_of_the_same_name_are_refused(distill: Any, tmp_path: Path) -> None:
    assert distill("--texts", tmp_path / "texts").code == 0
    (tmp_path / "draft").rename(tmp_path / "first")
    model = random_toy(2, num_hidden_layers=3, hidden_size=64, intermediate_size=64, num_attention_heads=4)
    namesake = save_toy(tmp_path / "other" / "target", model=model)

    ended = distill("--texts", tmp_path / "texts", model=namesake)

    assert (ended.code, str(tmp_path / "texts") in ended.err) == (2, True)


@pytest.mark.parametrize("texts", ["draft", "draft/texts", "draft/.distill/mine", "."])
def test_nested_folders_of_texts_and_draft_are_refused(distill: Any, tmp_path: Path, texts: str) -> None:
    before = sorted(tmp_path.rglob("*"))

    ended = distill("--texts", tmp_path / texts)

    assert (ended.code, str(tmp_path / texts) in ended.err) == (2, True)
    assert sorted(tmp_path.rglob("*")) == before, "the refused run left something"


def test_a_file_in_place_of_a_folder_is_an_error(distill: Any, tmp_path: Path) -> None:
    (tmp_path / "notes").write_text("mine")

    for words in (["--texts", tmp_path / "notes"], ["--texts", tmp_path / "notes" / "texts"]):
        ended = distill(*words)

        assert (ended.code, str(words[1]) in ended.err) == (7, True), ended.err
    assert (tmp_path / "notes").read_text() == "mine"


@pytest.mark.parametrize("state", [None, "", '{"target"'])
@pytest.mark.fast(without=("None",))
def test_a_run_that_was_killed_at_its_start_can_be_repeated(distill: Any, tmp_path: Path, state: str | None) -> None:
    work = tmp_path / "draft" / ".distill"
    work.mkdir(parents=True)
    if state is not None:
        (work / "settings.json").write_text(state)

    ended = distill()

    assert ended.code == (0 if state is None else 2), ended.err


@pytest.mark.thorough
def test_two_processes_do_not_write_into_the_same_texts(distill: Any, tmp_path: Path) -> None:
    from specgen.distill.folders import lock_folder

    assert distill("--texts", tmp_path / "texts").code == 0
    (tmp_path / "draft").rename(tmp_path / "first")

    with lock_folder(tmp_path / "texts"):
        ended = distill("--texts", tmp_path / "texts")

    assert (ended.code, f"process {os.getpid()}" in ended.err) == (2, True)
    assert distill("--texts", tmp_path / "texts").code == 0


@pytest.mark.thorough
def test_texts_of_other_settings_are_refused(distill: Any, tmp_path: Path) -> None:
    assert distill("--texts", tmp_path / "texts").code == 0
    (tmp_path / "draft").rename(tmp_path / "first")

    ended = distill("--texts", tmp_path / "texts", "--num-prompts", 5)

    assert ended.code == 2
    assert str(tmp_path / "texts") in ended.err
    assert not (tmp_path / "draft").exists()


@pytest.mark.parametrize(
    ("layers", "value"),
    [("2,0", "2,0"), ("-1", "-1"), ("1,1", "1,1"), ("0,3", "3"), ("0;1", "0;1"), ("", "--layers")],
)
def test_layers_that_the_target_does_not_have_are_refused(
    distill: Any, tmp_path: Path, layers: str, value: str
) -> None:
    before = sorted(tmp_path.rglob("*"))

    ended = distill("--layers", layers)

    assert (ended.code, value in ended.err) == (2, True), ended.err
    assert sorted(tmp_path.rglob("*")) == before, "the refused run left something"


def test_a_folder_with_something_in_it_is_refused(distill: Any, tmp_path: Path) -> None:
    (tmp_path / "draft").mkdir()
    (tmp_path / "draft" / "mine.txt").write_text("keep")

    ended = distill()

    assert (ended.code, str(tmp_path / "draft") in ended.err) == (2, True)
    assert (tmp_path / "draft" / "mine.txt").read_text() == "keep"


def test_an_unknown_architecture_is_refused_before_its_weights_are_read(
    distill: Any, tmp_path: Path, target: Path
) -> None:
    from transformers import GPT2Config, GPT2LMHeadModel

    model = GPT2LMHeadModel(GPT2Config(vocab_size=320, n_embd=32, n_layer=1, n_head=2, n_positions=64))
    other = save_toy(tmp_path / "gpt2", model=model)

    ended = distill(model=other)

    assert ended.code == 3
    assert "gpt2" in ended.err
    assert not (tmp_path / "draft").exists()


def test_too_little_disk_space_is_an_error_before_any_work(
    distill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specgen.distill import folders

    usage = folders.shutil.disk_usage(tmp_path)
    monkeypatch.setattr(folders.shutil, "disk_usage", lambda _: usage._replace(free=1000))

    ended = distill()

    assert ended.code == 7
    assert "1 KiB" in ended.err
    assert not (tmp_path / "draft").exists()


def test_a_disk_that_fills_up_during_the_work_is_an_error(
    distill: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from specgen.distill import target_texts

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(target_texts, "save_file", full)

    ended = distill()

    assert ended.code == 7
    assert "No space left on device" in ended.err
    assert not list((tmp_path / "draft" / ".distill").rglob(".*safetensors*")), "a temporary file was left"


@pytest.mark.parametrize("content", ["", "\n \n", '{"text": "x"}'])
def test_a_file_without_prompts_is_refused(distill: Any, tmp_path: Path, content: str) -> None:
    (tmp_path / "prompts.txt").write_text(content)

    ended = distill()

    assert ended.code == 2
    assert "prompts.txt" in ended.err
    assert not (tmp_path / "draft").exists()


@pytest.mark.parametrize(
    "wrong",
    [
        ["--num-layers", 0],
        ["--num-layers", 9],
        ["--num-layers", 1, "--layers", "0,1"],
        ["--num-layers", 3, "--layers", "0,1"],
        ["--epochs", 0],
        ["--unroll", 5],
        ["--greedy-share", 2],
        ["--vocab", -1],
    ],
)
def test_a_setting_out_of_range_is_refused(distill: Any, wrong: list[object]) -> None:
    assert distill(*wrong).code == 2


def test_more_layers_than_the_target_has_are_refused(distill: Any) -> None:
    ended = distill("--num-layers", 4)

    assert (ended.code, "--num-layers 4" in ended.err) == (2, True)


@pytest.mark.thorough
def test_the_bundled_prompts_are_the_default(cli: Cli, target: Path, tmp_path: Path) -> None:
    ended = cli("distill", target, "-o", tmp_path / "draft", *SMALL)

    assert ended.code == 0, ended.err
