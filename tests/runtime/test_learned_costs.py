"""Learned costs are loaded by the same models only."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest

from specgen.core.baseline import Baseline
from specgen.core.draft_tree import ROOT, DraftTree
from specgen.core.events import Round
from specgen.core.metrics import Counts
from specgen.core.settings import DecodeSettings, ModelSettings, PairSettings, SamplingSettings
from specgen.loading import weights
from specgen.runtime import learned_costs
from specgen.runtime.generation import Generation, Request
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import _draft_cost, resolve_pair
from specgen.storage.cost_store import CostStore
from tests.cli.chat.scenes import converse, reply
from tests.models.static.recorder import TraceRecorder
from tests.toys import random_toy, save_toy


@pytest.fixture(scope="module")
def toys(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("toys")
    return {"target": save_toy(root / "target"), "draft": save_toy(root / "draft", fox=" quick")}


def open_models(toys: dict[str, Path], dtype: str = "float32", drafter: str = "model") -> LoadedModels:
    target, draft = (
        ModelSettings(str(toys[name]), quant="none", dtype=dtype, device="cpu")  # type: ignore[arg-type]
        for name in ("target", "draft")
    )
    settings = PairSettings(target, drafter, draft if drafter == "model" else None)  # type: ignore[arg-type]
    return load_models(resolve_pair(settings))


def learn(models: LoadedModels, draft_seconds: float = 0.006) -> None:
    """Observes passes of one token (20 ms) and of four (25 ms), and drafts of three tokens."""
    for _ in range(12):
        models.draft_length.costs.observe(1, 0.020)
        models.draft_length.costs.observe(4, 0.025)
        models.draft_length.draft_cost.observe(3, 3 * draft_seconds)


def test_costs_are_loaded_by_the_next_run(toys: dict[str, Path], tmp_path: Path) -> None:
    store, first, second = CostStore(tmp_path), open_models(toys), open_models(toys)
    learn(first)

    learned_costs.save(first, store)
    learned_costs.load(second, store)

    assert second.draft_length.costs.known == pytest.approx({1: 0.020, 4: 0.025})
    assert second.draft_length.draft_cost.seconds == pytest.approx(0.006)


@pytest.mark.parametrize(("draft_seconds", "is_stored"), [(0.006, True), (0.36, False)])
def test_costs_of_a_disturbed_answer_are_not_stored(
    toys: dict[str, Path], draft_seconds: float, is_stored: bool
) -> None:
    """While a compiler ran, drafts took 60 times as long as later, and these costs were stored."""
    first, second = open_models(toys), open_models(toys)
    generation = Generation(first, Request([1, 2, 3], DecodeSettings(8, 3), SamplingSettings()))
    rounds = [Round(at, (4, 5, 6), 3, 8, 0, 0.018, 0.025, 0.0, "model", num_passes=3) for at in range(4)]
    for round_ in rounds:
        generation.counts.observe(round_)
    baseline = Counts()
    baseline.observe(Round(0, (), 0, 3, 0, 0.0, 0.020, 0.0))
    learn(first, draft_seconds)
    generation.baseline = Baseline("calibrate", 1, 0.020)
    generation.forecast = learned_costs.predict(first, generation.counts, baseline)

    generation.finish()
    learned_costs.load(second)

    assert second.draft_length.costs.known == (pytest.approx({1: 0.020, 4: 0.025}) if is_stored else {})
    assert second.draft_length.draft_cost.is_supported == is_stored


@pytest.mark.parametrize(("draft_seconds", "is_stored"), [(0.006, True), (0.36, False)])
def test_costs_of_a_chat_whose_last_reply_was_disturbed_are_not_stored(
    toys: dict[str, Path], draft_seconds: float, is_stored: bool
) -> None:
    first, second = open_models(toys), open_models(toys)
    chat = converse(first)
    chat.say("hello")
    generation = chat.begin_reply()
    for at in range(4):
        generation.counts.observe(Round(at, (4, 5, 6), 3, 8, 0, 0.018, 0.025, 0.0, "model", num_passes=3))
    plain = Counts()
    plain.observe(Round(0, (), 0, 3, 0, 0.0, 0.020, 0.0))
    learn(first, draft_seconds)
    chat.baseline, chat._plain_counts = Baseline("calibrate", 1, 0.020), plain
    chat.end_reply(generation)

    chat.finish()
    learned_costs.load(second)

    assert second.draft_length.costs.known == (pytest.approx({1: 0.020, 4: 0.025}) if is_stored else {})


def test_a_chat_predicts_each_reply_after_the_target_alone_was_timed(toys: dict[str, Path]) -> None:
    models = open_models(toys)
    chat = converse(models)
    first = reply(chat, "hello")
    assert first.report().forecast is None
    assert chat.calibrate(first) is not None

    replies = [first.report(), reply(chat, "again").report()]

    assert all(report.forecast is not None and report.forecast.speedup is not None for report in replies)
    assert 1 in models.draft_length.costs.confirmed


def draft_in_trees(models: LoadedModels) -> list[Round]:
    """Observes rounds whose drafts took 6 ms a pass, and 1.5 ms for each further token of it."""
    tree = DraftTree((4, 5, 6), (ROOT, ROOT, 1))
    all_rows = [(1,), (2, 3), (1, 4), (2, 1, 2), (1, 1)] * 3
    times = [sum(0.006 + 0.0015 * (n - 1) for n in rows) for rows in all_rows]
    rounds = [
        Round(at, (4,), 1, 8, 0, time, 0.025, 0.0, "model", tree=tree, num_passes=len(rows), pass_rows=rows)
        for at, (rows, time) in enumerate(zip(all_rows, times, strict=True))
    ]
    for round_ in rounds:
        learned_costs.observe(models, round_)
    return rounds


def test_the_cost_of_further_tokens_in_a_tree_is_loaded_by_the_next_run(toys: dict[str, Path], tmp_path: Path) -> None:
    store, first, second = CostStore(tmp_path), open_models(toys), open_models(toys)
    draft_in_trees(first)

    learned_costs.save(first, store)
    learned_costs.load(second, store)

    cost = second.draft_length.draft_cost
    assert cost.seconds == pytest.approx(0.006)
    assert cost.rows.share == pytest.approx(0.25)
    assert cost.rows.is_supported
    assert not cost.rows.is_measured


def test_a_tree_is_predicted_by_the_tokens_of_the_drafts_passes(toys: dict[str, Path]) -> None:
    models = open_models(toys)
    learn(models)
    counts, baseline = Counts(), Counts()
    baseline.observe(Round(0, (), 0, 3, 0, 0.0, 0.020, 0.0))
    rounds = draft_in_trees(models)
    for round_ in rounds:
        counts.observe(round_)

    found = learned_costs.predict(models, counts, baseline)

    seconds = sum(round_.draft_seconds for round_ in rounds) + 0.025 * len(rounds)
    assert found.speedup == pytest.approx(2 * len(rounds) * 0.020 / seconds)


def test_each_compute_type_has_its_own_costs(toys: dict[str, Path], tmp_path: Path) -> None:
    store, first, second = CostStore(tmp_path), open_models(toys), open_models(toys, "bfloat16")
    learn(first)

    learned_costs.save(first, store)
    learned_costs.load(second, store)

    assert second.draft_length.costs.known == {}
    assert not second.draft_length.draft_cost.is_supported


def test_the_targets_costs_do_not_depend_on_the_drafter(toys: dict[str, Path], tmp_path: Path) -> None:
    store, first, second = CostStore(tmp_path), open_models(toys), open_models(toys, drafter="lookup")
    learn(first)

    learned_costs.save(first, store)
    learned_costs.load(second, store)

    assert second.draft_length.costs.known == pytest.approx({1: 0.020, 4: 0.025})
    assert not second.draft_length.draft_cost.is_supported


def test_a_replaced_draft_loads_its_cost_and_keeps_the_targets(toys: dict[str, Path], tmp_path: Path) -> None:
    store, first, second = CostStore(tmp_path), open_models(toys), open_models(toys, drafter="lookup")
    learn(first)
    learned_costs.save(first, store)
    second.draft_length.costs.observe(1, 0.020)
    costs = second.draft_length.costs

    second.replace_draft(first.pair)
    learned_costs.load_draft_costs(second, store)

    assert second.draft_length.costs is costs
    assert second.draft_length.draft_cost.seconds == pytest.approx(0.006)


def test_nothing_is_saved_without_measurements(toys: dict[str, Path], tmp_path: Path) -> None:
    store = CostStore(tmp_path / "costs")

    learned_costs.save(open_models(toys), store)

    assert not (tmp_path / "costs").exists()


# Values of a toy and of a random toy: head, layers, the last norm.
READ_OF_TARGET = 320 * 320 + (2 * 32 * 320 + 2 * 8 * 320 + 3 * 8 * 320 + 2 * 320) + 320
READ_OF_DRAFT = 320 * 32 + 2 * (2 * 32 * 32 + 2 * 16 * 32 + 3 * 64 * 32 + 2 * 32) + 32


@pytest.mark.parametrize("is_tied", [False, True])
def test_the_first_guess_of_a_drafts_cost_leaves_out_embeddings(tmp_path: Path, is_tied: bool) -> None:
    """A pass reads single rows of an embedding, unless it is the head."""
    small = save_toy(tmp_path / "small", model=random_toy(0, tie_word_embeddings=is_tied))
    store, models = CostStore(tmp_path), open_models({"target": save_toy(tmp_path / "target"), "draft": small})
    store.write(learned_costs.target_key(models), {"1": 0.020}, ["1"])

    learned_costs.load(models, store)

    assert models.pair.draft is not None
    assert _draft_cost(models.pair.target, models.pair.draft) == pytest.approx(READ_OF_DRAFT / READ_OF_TARGET)
    assert models.draft_length.draft_cost.seconds == pytest.approx(0.020 * READ_OF_DRAFT / READ_OF_TARGET)


def test_learned_costs_do_not_change_the_answer(toys: dict[str, Path], tmp_path: Path) -> None:
    store, cold, warm = CostStore(tmp_path), open_models(toys), open_models(toys)
    request = Request((1, 2, 3), DecodeSettings(24, 16, "auto"), SamplingSettings())

    first = Generation(cold, request)
    for _ in first:
        pass
    learn(cold)
    learned_costs.save(cold, store)
    learned_costs.load(warm, store)
    second = Generation(warm, request)
    for _ in second:
        pass

    assert second.token_ids == first.token_ids
    # The first round of a session that knows nothing is a plain one; this one drafts at once.
    assert first.counts.fed_histogram[1] >= 1
    assert warm.draft_length.costs.is_supported(1)


def test_costs_in_the_spelling_of_version_0_1_0_are_loaded(toys: dict[str, Path], tmp_path: Path) -> None:
    models = open_models(toys, drafter="lookup")
    now = learned_costs.target_key(models)
    facts = {
        "role": "target",
        **{name: now[name] for name in ("model", "parameters", "bytes")},
        "quant": "none",
        "dtype": "float32",
        "device": "cpu",
        "processor": now["processor"],
        "threads": now["threads"],
        "engine": "LeanModel EngineSettings(backend='auto', gpu_layers=None, context_size=None, threads=None)",
        "versions": now["versions"],
    }
    name = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:32]
    saved = {"format": 1, "facts": facts, "costs": {"1": [0.020, 0], "2": [0.022, 3]}}
    (tmp_path / f"{name}.json").write_text(json.dumps(saved))

    learned_costs.load(models, CostStore(tmp_path))

    assert models.draft_length.costs.known == pytest.approx({1: 0.020, 2: 0.022})


def test_costs_of_other_kernels_are_measured_again(
    toys: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    store, models = CostStore(tmp_path), open_models(toys)
    learn(models)
    learned_costs.save(models, store)

    monkeypatch.setattr(learned_costs, "KERNELS_VERSION", 10_000)
    learned_costs.load(models, store)

    assert models.draft_length.costs.known == {}
    assert not models.draft_length.draft_cost.is_supported


def test_costs_of_recorded_passes_are_learned_by_the_rows_that_they_compute(
    toys: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weights, "recorder_for", lambda _: TraceRecorder())
    store, models = CostStore(tmp_path), open_models(toys)
    for _ in range(2):
        models.draft_length.costs.observe(7, 2.0)
    assert models.draft_length.costs.known == {8: 2.0}

    learned_costs.save(models, store)
    learned_costs.load(models, store)

    assert models.draft_length.costs.known == {8: 2.0}
    assert models.draft_length.costs.is_supported(7)


def test_rounds_that_warm_up_teach_no_cost(toys: dict[str, Path]) -> None:
    """They recorded a pass of one of the two models: their times say nothing about later rounds."""
    models = open_models(toys)
    slow, fast = (
        Round(1, (5, 6, 7), 3, 8, 0, draft, verify, 0.0, source="model", is_warmup=is_warmup)
        for draft, verify, is_warmup in ((3.0, 9.0, True), (0.3, 0.9, False))
    )

    learned_costs.observe(models, slow)
    assert models.draft_length.costs.known == {}
    assert not models.draft_length.draft_cost.is_supported

    learned_costs.observe(models, fast)
    assert models.draft_length.costs.known == {4: 0.9}
    assert models.draft_length.draft_cost.is_measured
