"""A resolved pair: windows, tokenizers, end tokens; without reading weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from specgen.core.errors import ModelFileError, ModelNotFoundError, PairError, PromptError
from specgen.core.settings import ModelSettings, PairSettings, SamplingSettings
from specgen.loading.resolved_model import ModelFiles
from specgen.runtime.pair import Pair, resolve_pair
from tests.loading.builders import RecordedProgress, edit_json, make_folder
from tests.toys import END, draft_named_by, save_toy, token_id, toy_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A toy with a window of 64 tokens."""
    return save_toy(tmp_path_factory.mktemp("pair") / "small-window", num_positions=64)


def pair_of(target: Path, draft: Path | None = None) -> Pair:
    if draft is None:
        return resolve_pair(PairSettings(ModelSettings(str(target))))
    return resolve_pair(PairSettings(ModelSettings(str(target)), "model", ModelSettings(str(draft))))


# F01


@pytest.mark.parametrize(("num_prompt", "max_new", "budget"), [(63, 1, 1), (63, None, 1), (62, None, 2), (1, 63, 63)])
@pytest.mark.fault("F01")
def test_prompt_and_answer_may_fill_the_window(folder: Path, num_prompt: int, max_new: int | None, budget: int) -> None:
    assert pair_of(folder).resolve_max_new_tokens(num_prompt, max_new, 256) == budget


@pytest.mark.parametrize(("num_prompt", "max_new"), [(63, 2), (64, 1), (64, None), (65, None), (65, 1), (1, 10**12)])
@pytest.mark.fault("F01")
def test_more_than_the_window_is_refused_with_the_sum(folder: Path, num_prompt: int, max_new: int | None) -> None:
    with pytest.raises(PromptError) as caught:
        pair_of(folder).resolve_max_new_tokens(num_prompt, max_new, 256)

    for value in (num_prompt, max_new or 1, 64):
        assert str(value) in caught.value.message
    assert caught.value.exit_code == 2


def test_the_default_is_used_if_it_fits(folder: Path) -> None:
    assert pair_of(folder).resolve_max_new_tokens(10, None, 20) == 20


def test_a_model_without_a_window_sets_no_limit(tmp_path: Path) -> None:
    folder = save_toy(tmp_path / "toy")
    edit_json(folder / "config.json", max_position_embeddings=None)

    assert pair_of(folder).resolve_max_new_tokens(10**6, 10**6, 256) == 10**6


def test_a_missing_draft_is_reported_before_tokenizers_are_loaded(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specgen.loading.resolve.load_tokenizer", lambda *_: pytest.fail("too early"))
    monkeypatch.setattr("specgen.loading.resolve.check_config", lambda *_: pytest.fail("too early"))

    with pytest.raises(ModelNotFoundError, match="nowhere"):
        pair_of(folder, tmp_path / "nowhere")


def test_resolving_reads_no_weights(tmp_path: Path) -> None:
    folder = save_toy(tmp_path / "toy")
    path = folder / "model.safetensors"
    size = int.from_bytes(path.read_bytes()[:8], "little") + 8
    header = path.read_bytes()[:size]
    # The file keeps its length, as a hole: no data block is there to be read.
    length = path.stat().st_size
    path.write_bytes(header)
    with path.open("r+b") as file:
        file.truncate(length)

    assert pair_of(folder).target.config.num_parameters == sum(
        _product(entry["shape"]) for name, entry in json.loads(header[8:]).items() if name != "__metadata__"
    )


def _product(shape: list[int]) -> int:
    size = 1
    for side in shape:
        size *= side
    return size


def test_a_pair_has_the_targets_end_tokens(folder: Path) -> None:
    assert pair_of(folder).end_ids == {token_id(END)}


def test_a_pair_has_the_targets_sampling_defaults(tmp_path: Path) -> None:
    folder = save_toy(tmp_path / "toy")
    edit_json(folder / "generation_config.json", do_sample=True, temperature=0.7, top_k=20)

    assert pair_of(folder).defaults.sampling == SamplingSettings(temperature=0.7, top_k=20)
    assert pair_of(save_toy(tmp_path / "plain")).defaults.sampling is None


@pytest.mark.fault("F95")
@pytest.mark.parametrize("content", ['{"top_k": -1, "do_sample": true}', '{"top_k": 5,}', "[]"])
def test_a_pair_with_unusable_defaults_is_ready_to_load(folder: Path, content: str) -> None:
    (folder / "generation_config.json").write_text(content)

    pair = pair_of(folder)

    assert len(pair.notices) == 1
    assert pair.end_ids == {token_id(END)}


def test_a_pair_of_one_family_shares_its_tokens(folder: Path, tmp_path: Path) -> None:
    pair = pair_of(folder, save_toy(tmp_path / "draft"))

    assert pair.shared is not None
    assert pair.shared.num_shared == len(toy_tokenizer())
    assert (pair.window, pair.draft_window) == (64, 512)


def test_a_draft_with_another_vocabulary_is_refused_on_request_only(folder: Path, tmp_path: Path) -> None:
    stranger = ModelSettings(str(make_folder(tmp_path / "stranger")), draft_vocab="same")

    with pytest.raises(PairError) as caught:
        pair_of(folder).with_draft(*draft_named_by(stranger))

    assert caught.value.exit_code == 4
    assert "--draft-vocab" in str(caught.value.hint)
    pairing = pair_of(folder).with_draft(*draft_named_by(replace(stranger, draft_vocab="auto"))).shared
    assert pairing is not None
    assert pairing.kind == "text"


def test_a_damaged_draft_is_an_error_about_its_file(folder: Path, tmp_path: Path) -> None:
    draft = save_toy(tmp_path / "draft")
    (draft / "model.safetensors").write_bytes(b"short")

    with pytest.raises(ModelFileError, match=r"model\.safetensors"):
        pair_of(folder, draft)


def test_resolving_reports_one_stage(folder: Path) -> None:
    report = RecordedProgress()

    pair = resolve_pair(PairSettings(ModelSettings(str(folder))), report)

    assert len(report.stages) == 1
    assert pair.target.files == ModelFiles(folder, "small-window")
