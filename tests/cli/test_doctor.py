"""`specgen doctor` on toys: the report, which needs no weights without --measure, and the exit codes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from specgen.core.errors import DeviceError, ModelFileError
from specgen.core.settings import BackendSettings, ModelSettings, PairSettings
from specgen.doctor import examine as examine_module
from specgen.doctor.results import TerminalState
from specgen.loading import resolve
from tests.cli.conftest import EXACT, Cli
from tests.loading.builders import make_gguf
from tests.toys import save_toy, toy_tokenizer


@pytest.fixture
def no_weights(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any, **__: Any) -> Any:
        raise ModelFileError("weights were read")

    monkeypatch.setattr("specgen.loading.load.load_weights", refuse)


def test_the_machine_is_reported_without_any_model(cli: Cli) -> None:
    ended = cli("doctor")

    assert ended.code == 0
    labels = {line.split()[0] for line in ended.out.decode().splitlines() if not line.startswith(" ")}
    assert {"system", "cpu", "memory", "cuda", "versions", "terminal", "cache"} <= labels


def test_a_llama_cpp_that_would_end_the_program_is_not_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(examine_module, "llama_cpp_state", lambda: "ends the program with SIGILL in its first pass")
    monkeypatch.setattr(resolve, "has_llama_cpp", lambda: True)
    monkeypatch.setattr(resolve, "llama_cpp_fault", lambda: "ends the program with SIGILL in its first pass")
    model = ModelSettings(str(make_gguf(tmp_path / "tiny.gguf")), backend=BackendSettings("llama.cpp"))

    found = examine_module.examine(PairSettings(model, "none"), TerminalState(False, 80, "none", "utf-8", None))

    assert found.pair is None
    assert isinstance(found.error, DeviceError)
    assert "SIGILL" in found.error.message


@pytest.mark.usefixtures("no_weights")
def test_a_pair_is_examined_from_files_and_tokenizers_alone(cli: Cli, toys: dict[str, Path]) -> None:
    ended = cli("doctor", "-t", toys["target"], "-d", toys["64"], *EXACT, "--json")

    assert ended.code == 0
    pair = json.loads(ended.out)["pair"]
    assert [model["role"] for model in pair["models"]] == ["target", "draft"]
    assert pair["num_shared_tokens"] == 292
    assert pair["window"] == 64
    assert pair["devices"][0]["fits"] is True
    # Embedding and head of 320 x 320, a layer of small matrices; float32.
    assert 2 * 320 * 320 * 4 < pair["models"][0]["memory"]["weights"] < 3 * 320 * 320 * 4


@pytest.mark.parametrize(
    ("draft", "drafter"), [("none", "none"), ("lookup", "lookup"), ("{64}+lookup", "model+lookup")]
)
@pytest.mark.usefixtures("no_weights")
@pytest.mark.fast("{64}*")
def test_the_drafter_is_reported(cli: Cli, toys: dict[str, Path], draft: str, drafter: str) -> None:
    arguments = ("doctor", "-t", toys["target"], "-d", draft.replace("{64}", str(toys["64"])), *EXACT)

    assert json.loads(cli(*arguments, "--json").out)["pair"]["drafter"] == drafter
    text = cli(*arguments)
    assert (text.code, "lookup" in text.out.decode()) == (0, "lookup" in drafter)


@pytest.mark.usefixtures("no_weights")
def test_incompatible_tokenizers_are_an_error_after_the_machine_is_reported(
    cli: Cli, toys: dict[str, Path], tmp_path: Path
) -> None:
    from tokenizers.normalizers import Lowercase

    other = toy_tokenizer(normalizer=Lowercase())
    other = save_toy(tmp_path / "other", tokenizer=_shifted(other))
    arguments = ("doctor", "-t", toys["target"], "-d", other, *EXACT)
    ended = cli(*arguments, "--draft-vocab", "same")

    assert ended.code == 4
    assert ended.out.decode().startswith("system")
    # The plan of the target is still reported.
    document = json.loads(cli(*arguments, "--draft-vocab", "same", "--json").out)
    assert [model["role"] for model in document["pair"]["models"]] == ["target"]
    assert (document["error"]["exit_code"], document["error"]["code"]) == (4, "draft_incompatible")
    # Without the option, the draft is translated.
    translated = json.loads(cli(*arguments, "--json").out)
    assert translated["error"] is None
    assert translated["pair"]["draft_vocab"] == "shared"
    assert translated["pair"]["num_shared_tokens"] == 292


def _shifted(tokenizer: Any) -> Any:
    """Returns a tokenizer with the same tokens in another order."""
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    state = json.loads(tokenizer.backend_tokenizer.to_str())
    vocab = state["model"]["vocab"]
    first, second = sorted(vocab, key=vocab.get)[5:7]
    vocab[first], vocab[second] = vocab[second], vocab[first]
    raw = Tokenizer.from_str(json.dumps(state))
    return PreTrainedTokenizerFast(tokenizer_object=raw, eos_token="<|im_end|>")


@pytest.mark.usefixtures("no_weights")
def test_models_that_do_not_fit_are_an_error_with_the_figures(
    cli: Cli, toys: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specgen.doctor.examine.free_bytes", lambda _: 1000)

    ended = cli("doctor", "-t", toys["target"], *EXACT, "--json")

    document = json.loads(ended.out)
    assert (ended.code, document["error"]["code"]) == (5, "memory")
    assert (document["pair"]["devices"][0]["free"], document["pair"]["devices"][0]["fits"]) == (1000, False)
    assert "cpu" in document["error"]["message"]


def test_a_missing_model_is_an_error_in_the_document(cli: Cli) -> None:
    ended = cli("doctor", "-t", "/no/model", "--json")

    assert ended.code == 3
    document = json.loads(ended.out)
    assert document["pair"] is None
    assert document["error"]["exit_code"] == 3


def test_measuring_reports_costs_and_the_best_length(cli: Cli, toys: dict[str, Path]) -> None:
    ended = cli("doctor", "-t", toys["target"], "-d", toys["wrong"], *EXACT, "--measure", "--json")

    costs = json.loads(ended.out)["pair"]["costs"]
    assert {"1", "2", "9", "13"} <= costs["verify_s"].keys()
    assert costs["draft_token_s"] > 0
    assert costs["best_length_by_alpha"].keys() == {"0.5", "0.6", "0.7", "0.8", "0.9"}


@pytest.mark.parametrize("arguments", [["--measure"], ["-d", "lookup"]])
def test_a_pair_needs_a_target(cli: Cli, arguments: list[str]) -> None:
    ended = cli("doctor", *arguments)

    assert ended.code == 2
    assert "-t" in ended.err
