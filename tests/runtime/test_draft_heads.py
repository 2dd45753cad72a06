"""Draft heads in a pair: chosen, refused, reported, kept between turns; the text is always the target's own."""

from __future__ import annotations

import re
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from specgen.bench.open_models import open_configurations
from specgen.bench.results import Setting
from specgen.cli.bench.benchmark import draft_pairs, settings_of
from specgen.cli.bench.inputs import parse_drafts
from specgen.cli.chat.session import transcript_of
from specgen.cli.chat.settings import ChatSettings
from specgen.cli.options.groups import SamplingOptions
from specgen.core.draft_name import AUTO_DRAFT, DraftName
from specgen.core.errors import ModelFileError, PairError, SettingsError
from specgen.core.progress import SILENT
from specgen.core.settings import BackendSettings, DecodeSettings, ModelSettings, PairSettings, SamplingSettings
from specgen.doctor.examine import examine_pair
from specgen.loading.safetensors_check import WeightFile, check_safetensors
from specgen.models.draft_head import DraftHeadModel
from specgen.models.formats import has_float16_matmul
from specgen.runtime.generation import Generation, Request
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import Pair, resolve_pair
from specgen.runtime.pass_costs import measure_pass_costs
from tests.cli.chat.scenes import SHORT, converse, reply
from tests.draft_heads import SlowDraft, write_draft
from tests.loading.builders import fails
from tests.profiles import thorough_except
from tests.toys import draft_named_by, random_toy, save_toy, toy_tokenizer

GREEDY = SamplingSettings()
PROMPT = [17, 40, 17, 40, 9, 88, 3]
DRAFTS: dict[str, dict[str, Any]] = {
    "layers": {"kind": "layers", "num_layers": 2},
    "features": {"kind": "features", "num_layers": 1},
    "subset": {"kind": "features", "draft_ids": range(0, 280, 2)},
    "oracle": {"kind": "features", "num_layers": 2, "copies_target": True},
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A random target, draft heads made for it, and other targets."""
    root = tmp_path_factory.mktemp("shallow")
    target = random_toy(0)
    made = {name: write_draft(root / name, target, **shape) for name, shape in DRAFTS.items()}
    return {
        **made,
        "target": save_toy(root / "target", model=target),
        "other": save_toy(root / "other", model=random_toy(1)),
    }


def model(path: Path, **changes: Any) -> ModelSettings:
    return replace(ModelSettings(str(path), "none", "float32", "cpu"), **changes)


def pair_of(folders: dict[str, Path], draft: str, **changes: Any) -> Pair:
    return resolve_pair(PairSettings(model(folders["target"]), "model", model(folders[draft], **changes)))


def run(models: LoadedModels, prompt: list[int] = PROMPT, **options: Any) -> Generation:
    limits = DecodeSettings(options.pop("max_new_tokens", 40), options.pop("num_draft_tokens", 4), strict=True)
    generation = Generation(models, Request(prompt, limits, options.pop("sampling", GREEDY)))
    for _ in generation:
        pass
    return generation


@pytest.fixture(scope="module")
def alone(folders: dict[str, Path]) -> LoadedModels:
    return load_models(resolve_pair(PairSettings(model(folders["target"]), "none")))


# --- The text ---------------------------------------------------------------------------------------------------------


@cache
def turns(alone: LoadedModels) -> list[tuple[list[int], list[int]]]:
    """Returns prompts and the target's own answers: on and on, back to the first, a bit off the second, the last again.

    Two prompts in a row are the same.
    """
    texts: list[list[int]] = [PROMPT]
    for _ in range(3):
        texts.append([*texts[-1], *run(alone, texts[-1]).token_ids, 5, 6])
    prompts = [*texts, texts[0], [*texts[1][:-4], 9], texts[2], texts[2]]
    return [(prompt, run(alone, prompt).token_ids) for prompt in prompts]


@pytest.mark.parametrize("name", thorough_except(["subset", "oracle"], DRAFTS))
@pytest.mark.fast("oracle")
def test_answers_turns_and_retries_are_the_targets_own(
    folders: dict[str, Path], alone: LoadedModels, name: str
) -> None:
    models = load_models(pair_of(folders, name))
    for prompt, expected in turns(alone):
        generation = run(models, prompt)
        assert generation.token_ids == expected
        assert generation.counts.num_drafted > 0
        if name == "oracle":
            assert generation.counts.acceptance_rate == 1.0


@pytest.mark.parametrize("name", ["features", "subset"])
@pytest.mark.fast("subset")
def test_a_draft_depends_only_on_the_text(folders: dict[str, Path], name: str) -> None:
    """After turns, a baseline and a retry, its cache and target features match the text."""
    models = load_models(pair_of(folders, name))
    first = run(models)
    first.measure_baseline("full")
    second = run(models, [*PROMPT, *first.token_ids, 7])
    text = [*PROMPT, *first.token_ids, 7, *second.token_ids, 11]
    models.reuse_prefix(text)
    models.target.feed(text[:-1])
    assert isinstance(models.draft, DraftHeadModel)
    slow = SlowDraft(folders[name], random_toy(0))

    found = models.draft.logits(text, 1)

    assert models.draft.start == 0
    assert (found - slow.logits(text)[:, : found.shape[1]]).abs().max() < 1e-3


def test_same_text_with_and_without_it(folders: dict[str, Path], alone: LoadedModels) -> None:
    sampling = SamplingSettings(temperature=0.9, seed=4, same_text=True)
    drafted = run(load_models(pair_of(folders, "subset")), sampling=sampling)

    assert drafted.token_ids == run(alone, sampling=sampling).token_ids


def test_a_chat_keeps_its_caches_between_turns(folders: dict[str, Path]) -> None:
    conversation = converse(load_models(pair_of(folders, "features")))
    reply(conversation, "hello")
    draft = conversation.models.draft
    assert draft is not None
    held = draft.length
    reply(conversation, "and now?")

    assert held > 0
    assert conversation.models.draft is draft
    assert draft.length > held


@pytest.mark.thorough
def test_a_draft_changed_in_a_chat_starts_after_the_cached_text(folders: dict[str, Path], alone: LoadedModels) -> None:
    models = load_models(pair_of(folders, "layers"))
    first = run(models)
    models.replace_draft(models.pair.with_draft(*draft_named_by(model(folders["features"]))))
    text = [*PROMPT, *first.token_ids, 7]

    second = run(models, text)

    assert second.token_ids == run(alone, text).token_ids
    assert second.counts.num_drafted > 0
    assert isinstance(models.draft, DraftHeadModel)
    assert models.draft.start == len(text) - 2


def test_a_target_that_transformers_runs_is_refused(folders: dict[str, Path]) -> None:
    target = model(folders["target"], backend=BackendSettings("transformers"))

    fails(
        PairError,
        lambda: resolve_pair(PairSettings(target, "model", model(folders["features"]))),
        *("--backend transformers", "--draft lookup"),
    )


@pytest.mark.parametrize("name", ["features", "subset"])
@pytest.mark.thorough
def test_it_runs_with_a_quantized_target(folders: dict[str, Path], name: str) -> None:
    target = model(folders["target"], quant="int8", dtype="float32")
    pair = resolve_pair(PairSettings(target, "model", model(folders[name])))
    models = load_models(pair)
    plain = load_models(resolve_pair(PairSettings(target, "none")))

    generation = run(models)

    assert models.target_info.quant == "int8"
    assert generation.counts.num_drafted > 0
    assert generation.token_ids[:8] == run(plain).token_ids[:8]


@pytest.mark.thorough
@pytest.mark.skipif(not has_float16_matmul(), reason="needs FBGEMM's kernels")
@pytest.mark.parametrize(("is_tied", "quant"), [(False, "none"), (True, "none"), (False, "int8"), (True, "auto")])
def test_it_runs_with_a_target_of_packed_weights(tmp_path: Path, quant: Any, is_tied: bool) -> None:
    made = random_toy(0, tie_word_embeddings=is_tied)
    target = model(save_toy(tmp_path / "target", model=made), dtype="float16")
    expected = run(load_models(resolve_pair(PairSettings(target, "none")))).token_ids
    for name, shape in DRAFTS.items():
        draft = model(write_draft(tmp_path / name, made, **shape), quant=quant)
        models = load_models(resolve_pair(PairSettings(target, "model", draft)))
        generation = run(models)
        assert generation.token_ids == expected
        assert models.draft_info is not None
        if quant != "auto":
            assert models.draft_info.quant == quant
        if name == "oracle" and quant == "none":
            assert generation.counts.acceptance_rate == 1.0


# --- What is told -----------------------------------------------------------------------------------------------------


def test_the_report_describes_it(folders: dict[str, Path]) -> None:
    info = run(load_models(pair_of(folders, "subset"))).report().info

    assert info.draft is not None
    assert (info.drafter, info.draft.name, info.draft.dtype) == ("model", "subset", "float32")
    assert re.findall(r"\d+|features", info.draft.remark) == ["1", "features", "140"]
    assert 0 < info.draft.num_bytes < info.target.num_bytes


def test_doctor_plans_its_memory_without_reading_it(folders: dict[str, Path]) -> None:
    pair_report = examine_pair(pair_of(folders, "subset"), 512)

    target, draft = pair_report.models
    assert (draft.role, draft.device, draft.dtype, draft.quant) == ("draft", "cpu", "float32", "none")
    assert 0 < draft.memory.weights < target.memory.weights
    assert pair_report.num_shared_tokens == len(toy_tokenizer())


@pytest.mark.thorough
def test_bench_measures_several_draft_heads(folders: dict[str, Path]) -> None:
    baseline = resolve_pair(PairSettings(model(folders["target"]), "none"))
    names = ("features", "subset", "layers")
    pairs = {name: baseline.with_draft(*draft_named_by(model(folders[name]))) for name in names}
    configurations = open_configurations(baseline, pairs, [Setting("model", name, name, 4) for name in names])

    costs = measure_pass_costs(
        {name: lane.models for name, lane in zip(names, configurations[1:], strict=True)}, PROMPT, 4
    )

    assert [lane.setting.label for lane in configurations[1:]] == [f"{name} float32" for name in names]
    assert set(costs.draft_seconds) == set(names)
    for lane in configurations:
        lane.models.clear_caches()
        assert run(lane.models).token_ids == run_alone(configurations[0].models)


def test_the_cost_of_a_draft_token_contains_its_confidence(
    folders: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = PairSettings(model(folders["target"]), "model", model(folders["features"]))
    computed: list[object] = []
    monkeypatch.setattr("specgen.engine.drafters.model._confidence", lambda *given: computed.append(given) or 0.5)

    measure_pass_costs({"features": load_models(resolve_pair(pair))}, PROMPT, 4)

    assert computed


def run_alone(models: LoadedModels) -> list[int]:
    models.clear_caches()
    return run(models).token_ids


# --- What is refused --------------------------------------------------------------------------------------------------


def test_a_draft_of_another_target_is_refused_before_weights_are_read(folders: dict[str, Path]) -> None:
    settings = PairSettings(model(folders["other"]), "model", model(folders["features"]))

    error = fails(PairError, lambda: resolve_pair(settings), "features", "toy", "-t")

    assert re.search(r"\bother\b", error.message)

    assert error.exit_code == 4


def test_it_can_not_be_a_target(folders: dict[str, Path]) -> None:
    fails(ModelFileError, lambda: resolve_pair(PairSettings(model(folders["features"]))), "--draft")


def test_a_target_of_llama_cpp_is_refused(folders: dict[str, Path]) -> None:
    pair = resolve_pair(PairSettings(model(folders["target"]), "none"))
    gguf: Any = object()
    files = replace(pair.target.files, gguf=gguf)
    pair = replace(pair, target=replace(pair.target, files=files))

    fails(PairError, lambda: pair.with_draft(*draft_named_by(model(folders["layers"]))), "llama.cpp", "--backend")


@pytest.mark.parametrize(("name", "value"), [("quant", "fp4"), ("device", "cuda:0")])
def test_it_uses_its_targets_device_and_type(folders: dict[str, Path], name: str, value: str) -> None:
    fails(SettingsError, lambda: pair_of(folders, "layers", **{name: value}), f"--draft-{name} {value}")


def test_a_draft_for_tokens_outside_the_targets_vocabulary_is_refused(tmp_path: Path) -> None:
    target = random_toy(0)
    folder = save_toy(tmp_path / "target", model=target)
    # The toy has 320 rows, its tokenizer fewer tokens: the rest is padding.
    draft = write_draft(tmp_path / "draft", target, draft_ids=[1, 319])

    fails(PairError, lambda: load_models(resolve_pair(PairSettings(model(folder), "model", model(draft)))), "319")


# --- The draft that comes with the package ----------------------------------------------------------------------------


@pytest.fixture
def shipped(folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes the package contain a draft for `target`."""
    monkeypatch.setattr("specgen.loading.names.SHIPPED", tmp_path / "drafts")
    return write_draft(tmp_path / "drafts" / "toy", random_toy(0), **DRAFTS["subset"])


def chosen(target: Path, draft: str = "auto") -> Pair:
    return resolve_pair(PairSettings(model(target)).with_draft(DraftName(draft), ModelSettings("", device="cpu")))


def test_auto_uses_the_draft_shipped_for_a_target(folders: dict[str, Path], shipped: Path) -> None:
    pair = chosen(folders["target"])

    assert pair.settings.drafter == "model+lookup"
    assert pair.draft is not None
    assert (pair.draft.path, pair.draft.name) == (shipped, "toy-draft")
    assert run(load_models(pair)).counts.num_drafted > 0


def test_auto_checks_the_shipped_draft_once(
    folders: dict[str, Path], shipped: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checked: list[Path] = []

    def check(path: Path) -> WeightFile:
        checked.append(path)
        return check_safetensors(path)

    monkeypatch.setattr("specgen.loading.draft_head_folder.check_safetensors", check)

    assert chosen(folders["target"]).draft is not None
    assert checked == [shipped / "model.safetensors"]


def test_auto_is_lookup_for_a_target_that_transformers_runs(folders: dict[str, Path], shipped: Path) -> None:
    target = model(folders["target"], backend=BackendSettings("transformers"))

    pair = resolve_pair(PairSettings(target).with_draft(AUTO_DRAFT, ModelSettings("", device="cpu")))

    assert (pair.settings.drafter, pair.draft) == ("lookup", None)


def test_auto_is_lookup_for_every_other_target(folders: dict[str, Path], shipped: Path) -> None:
    pair = chosen(folders["other"])

    assert (pair.settings.drafter, pair.settings.draft, pair.draft) == ("lookup", None, None)


def test_auto_is_lookup_without_a_shipped_draft(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("specgen.loading.names.SHIPPED", tmp_path / "nothing")

    assert chosen(folders["target"]).settings.drafter == "lookup"


@pytest.mark.parametrize("drafter", ["lookup", "none"])
def test_another_drafter_can_be_chosen_by_name(folders: dict[str, Path], shipped: Path, drafter: str) -> None:
    assert chosen(folders["target"], drafter).settings.drafter == drafter


def test_bench_measures_what_auto_means(folders: dict[str, Path], shipped: Path) -> None:
    choices = parse_drafts([AUTO_DRAFT], "none")
    for target, wanted in (("target", ("model+lookup", "toy-draft float32+lookup")), ("other", ("lookup", "lookup"))):
        baseline = resolve_pair(PairSettings(model(folders[target]), "none"))
        pairs = draft_pairs(baseline, choices, ModelSettings("", dtype="float32", device="cpu"), SILENT)
        (_, lane) = open_configurations(baseline, {"auto": replace_quant(pairs["auto"])}, settings_of(choices, ["4"]))
        assert (lane.setting.drafter, lane.setting.label) == wanted


def replace_quant(pair: Pair) -> Pair:
    """Without a weight format, so that the label is the same on all machines."""
    draft = pair.settings.draft
    return pair if draft is None else pair.with_draft(AUTO_DRAFT, replace(draft, quant="none"))


def test_a_saved_chat_does_not_name_a_draft_that_was_not_requested(folders: dict[str, Path], shipped: Path) -> None:
    settings = ChatSettings(SamplingOptions(None, None, None, None, None, None), 8, "auto")
    path = str(shipped)
    for asked, drafter, saved in (
        ("auto", "model+lookup", None),
        (path, "model", path),
        (f"{path}+lookup", "model+lookup", path),
    ):
        conversation = converse(load_models(chosen(folders["target"], asked)), SHORT)
        transcript = transcript_of(conversation, settings, "2026-01-01")
        assert transcript.drafter == drafter
        assert (transcript.draft and transcript.draft.name) == saved
