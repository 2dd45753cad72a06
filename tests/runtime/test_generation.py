"""One answer from prompt to report, with toy models whose answer is known and with random ones."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from specgen.core.errors import MemoryShortageError, NumericalError, PairError, SpecgenError
from specgen.core.events import FinalText, Finish, Prefill, Round, RoundText, TextEvent
from specgen.core.settings import DecodeSettings, ModelSettings, PairSettings, SamplingSettings
from specgen.engine.draft_length.cost_table import CostTable
from specgen.loading.memory import peak_memory_bytes
from specgen.models.decoder_model import DecoderModel
from specgen.models.static.model import StaticModel
from specgen.models.static.passes import DecoderPass
from specgen.models.static.recorder import PlainRecorder
from specgen.runtime import generation as generation_module
from specgen.runtime.generation import NUM_CALIBRATION_TOKENS, Generation, Request
from specgen.runtime.loaded_models import LoadedModels, load_models
from specgen.runtime.pair import resolve_pair
from specgen.text.chat_template import ChatTemplate, Message, encode_text
from tests.profiles import num_examples
from tests.toys import ANSWER, END, random_toy, save_toy, token_id, toy_tokenizer

GREEDY = SamplingSettings()
CHAT = ChatTemplate().encode(toy_tokenizer(), [Message("user", "hello")])
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 4.0}
Opener = Callable[..., LoadedModels]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """`target`, a `wrong` draft that errs after one word, a `short` one with a small window, and two random models."""
    root = tmp_path_factory.mktemp("generation")
    return {
        "target": save_toy(root / "target"),
        "wrong": save_toy(root / "wrong", fox=" quick"),
        "short": save_toy(root / "short", num_positions=30),
        "random": save_toy(root / "random", model=random_toy(0)),
        "other": save_toy(root / "other", model=random_toy(1)),
        "narrow": save_toy(root / "narrow", model=random_toy(0, max_position_embeddings=40)),
        "dynamic": save_toy(root / "dynamic", model=random_toy(0, max_position_embeddings=30, rope_parameters=DYNAMIC)),
    }


@pytest.fixture
def opened(folders: dict[str, Path]) -> Opener:
    """Loads a pair: `opened("target", "lookup")`, `opened("target", "wrong")`."""

    def open_it(target: str = "target", drafter: str = "none") -> LoadedModels:
        def model(name: str) -> ModelSettings:
            return exact(folders[name])

        if drafter in ("none", "lookup"):
            return load_models(resolve_pair(PairSettings(model(target), drafter)))
        return load_models(resolve_pair(PairSettings(model(target), "model", model(drafter))))

    return open_it


def exact(folder: Path) -> ModelSettings:
    return ModelSettings(str(folder), quant="none", dtype="float32", device="cpu")


def request(prompt: Sequence[int] = CHAT, *, sampling: SamplingSettings = GREEDY, **options: Any) -> Request:
    decode = DecodeSettings(
        max_new_tokens=options.pop("max_new_tokens", 64),
        num_draft_tokens=options.pop("num_draft_tokens", 5),
        end_ids=frozenset(options.pop("end_ids", {token_id(END)})),
        strict=options.pop("strict", False),
        num_tree_nodes=options.pop("num_tree_nodes", 0),
    )
    return Request(list(prompt), decode, sampling, **options)


def run(models: LoadedModels, **options: Any) -> Generation:
    generation = Generation(models, request(**options))
    for _ in generation:
        pass
    return generation


def prefill_of(events: Sequence[TextEvent]) -> Prefill:
    (only,) = [event for event in events if isinstance(event, Prefill)]
    return only


def collect(generation: Generation) -> tuple[list[TextEvent], Exception | None]:
    """Returns all events, and the error after them if there is one."""
    events: list[TextEvent] = []
    try:
        for event in generation:
            events.append(event)
    except (SpecgenError, RuntimeError) as error:
        return events, error
    return events, None


def break_model(cached: Any, number: int, failure: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """Makes one pass fail, by its number; 0 is the prefill."""
    run, calls = cached._run, iter(range(10**6))

    def broken(new: torch.Tensor, num_last: int) -> torch.Tensor:
        logits: torch.Tensor = run(new, num_last)
        return failure(logits) if next(calls) == number else logits

    cached._run = broken


def nan(logits: torch.Tensor) -> torch.Tensor:
    return torch.full_like(logits, float("nan"))


def raised(error: BaseException) -> Callable[[torch.Tensor], torch.Tensor]:
    def fail(logits: torch.Tensor) -> torch.Tensor:
        raise error

    return fail


# --- The answer and its figures ---------------------------------------------------------------------------------------


@pytest.mark.fault("F96")
@pytest.mark.parametrize("drafter", ["none", "lookup", "target"])
@pytest.mark.fast("target")
def test_tokens_that_the_target_forbids_are_in_no_answer_and_no_baseline(
    folders: dict[str, Path], tmp_path: Path, drafter: str
) -> None:
    first, *_ = run(
        load_models(resolve_pair(PairSettings(exact(folders["random"]), "none"))), max_new_tokens=1
    ).token_ids
    shutil.copytree(folders["random"], tmp_path / "model")
    (tmp_path / "model/generation_config.json").write_text(json.dumps({"suppress_tokens": [first]}))
    draft = exact(folders["random"]) if drafter == "target" else None
    settings = PairSettings(exact(tmp_path / "model"), "model" if draft else drafter, draft)  # type: ignore[arg-type]

    generation = run(load_models(resolve_pair(settings)), max_new_tokens=20)
    baseline = generation.measure_baseline("full")

    assert first not in generation.token_ids
    assert baseline is None or baseline.first_difference is None


@pytest.mark.parametrize("drafter", ["none", "lookup", "target", "wrong", "short"])
def test_the_answer_is_the_targets_with_any_drafter(opened: Opener, drafter: str) -> None:
    generation = run(opened(drafter=drafter))

    assert generation.text == ANSWER
    assert generation.finish_reason == "stop"


def test_the_events_texts_join_to_the_text_of_the_report(opened: Opener) -> None:
    generation = Generation(opened(drafter="wrong"), request())

    shown = "".join(e.kept if isinstance(e, RoundText) else e.text for e in generation if not isinstance(e, Prefill))

    assert shown == generation.report().text == ANSWER


def test_the_report_counts_accepted_tokens(opened: Opener) -> None:
    counts = run(opened(drafter="wrong")).report().counts

    # The quick brown fox [quick] drinks | caf Ã © at æ + Ĺ | ¥ ð Ł Ļ Ĥ + . | end
    assert (counts.num_rounds, counts.num_emitted, counts.num_drafted) == (4, 18, 16)
    assert (counts.num_accepted, counts.num_rejected, counts.num_discarded, counts.num_draft_passes) == (15, 1, 0, 20)
    assert counts.accepted_histogram == [0, 1, 0, 0, 1, 2]
    assert counts.num_prompt_tokens == len(CHAT)


def test_the_report_names_the_models(opened: Opener) -> None:
    report = run(opened(drafter="wrong"), sampling_source="model", num_draft_tokens=3).report()

    assert (report.info.target.name, report.info.target.dtype) == ("target", "float32")
    assert report.info.draft is not None
    assert (report.info.draft.name, report.info.drafter, report.info.num_draft_tokens) == ("wrong", "model", 3)
    assert (report.info.sampling_source, report.info.max_new_tokens) == ("model", 64)


def test_without_a_drafter_the_report_counts_no_draft_tokens(opened: Opener) -> None:
    info = run(opened()).report().info

    assert (info.drafter, info.num_draft_tokens, info.draft) == ("none", 0, None)


def test_a_tree_without_effect_is_reported_by_the_first_answer_only(opened: Opener) -> None:
    models = opened(drafter="lookup")

    first, second = (run(models, num_tree_nodes=4) for _ in range(2))

    assert any("--tree" in notice for notice in first.notices)
    assert not second.notices
    assert first.text == second.text


def test_the_times_of_the_report_are_consistent(opened: Opener) -> None:
    report = run(opened(drafter="wrong")).report()

    counts = report.counts
    assert 0 < counts.draft_seconds < counts.decode_seconds
    assert counts.prefill_seconds + counts.decode_seconds <= report.total_seconds
    assert report.peak_memory_bytes > 0


def test_max_new_tokens_ends_the_answer_with_reason_length_and_flushes_half_a_character(opened: Opener) -> None:
    generation = run(opened(), max_new_tokens=7)

    assert generation.finish_reason == "length"
    assert generation.text == "The quick brown fox drinks caf\ufffd"


def test_ignored_end_tokens_do_not_end_the_answer(opened: Opener) -> None:
    generation = run(opened(drafter="lookup"), end_ids=(), max_new_tokens=36)

    assert generation.text == ANSWER * 2
    assert generation.counts.num_accepted > 0


def test_a_raw_prompt_is_continued_within_its_sentence(opened: Opener) -> None:
    generation = run(opened(), prompt=encode_text(toy_tokenizer(), "The quick"), is_raw=True)

    assert generation.text == ANSWER.removeprefix("The quick")


def test_a_model_that_drafts_for_itself_is_always_accepted(opened: Opener) -> None:
    counts = run(opened("random", "random"), end_ids=(), max_new_tokens=40).counts

    assert counts.acceptance_rate == 1.0
    assert counts.block_efficiency == 40 / counts.num_rounds > 5


@pytest.mark.fault("F29", "F79")
def test_padding_rows_of_the_model_are_never_chosen(opened: Opener) -> None:
    models = opened("random")
    assert isinstance(models.target, DecoderModel)
    models.target.decoder.head.weight.data[len(toy_tokenizer()) :] *= 100

    generation = run(models, end_ids=(), max_new_tokens=40)

    assert max(generation.token_ids) < len(toy_tokenizer())


# F02


@pytest.mark.fault("F02")
def test_after_the_drafts_window_the_target_continues_alone(opened: Opener) -> None:
    models = opened(drafter="short")
    assert len(CHAT) < 30 < len(CHAT) + 18

    generation = Generation(models, request(num_draft_tokens=2))
    rounds = [event.round for event in generation if isinstance(event, RoundText)]

    assert generation.text == ANSWER
    assert len(generation.notices) == 1
    assert "30" in generation.notices[0]
    assert rounds[0].draft_ids
    assert not rounds[-1].draft_ids
    assert models.draft is not None
    assert models.draft.length <= 30


@pytest.mark.fault("F170")
@pytest.mark.parametrize("drafter", ["lookup", "random"])
@pytest.mark.fast("lookup")
def test_beyond_the_window_of_dynamic_scaling_the_target_continues_alone(opened: Opener, drafter: str) -> None:
    assert len(CHAT) < 30
    alone = run(opened("dynamic"), max_new_tokens=40)
    assert alone.notices == []
    models = opened("dynamic", drafter)

    for _ in range(2):
        generation = Generation(models, request(max_new_tokens=40, num_draft_tokens=2))
        rounds = [event.round for event in generation if isinstance(event, RoundText)]

        assert generation.token_ids == alone.token_ids
        assert len(generation.notices) == 1
        assert "30" in generation.notices[0]
        assert not rounds[-1].draft_ids


@pytest.mark.fault("F02")
def test_no_notice_of_a_window_that_is_not_exceeded(opened: Opener) -> None:
    assert run(opened(drafter="short"), num_draft_tokens=0).notices == []
    assert run(opened(drafter="short"), max_new_tokens=2).notices == []
    assert run(opened(drafter="wrong")).notices == []


# M1, M2, M7


@settings(max_examples=num_examples(12))
@given(
    words=st.lists(st.sampled_from(["The", " quick", " brown", "é", "日", "\n", "a"]), min_size=1, max_size=8),
    num_draft_tokens=st.integers(1, 8),
    drafter=st.sampled_from(["lookup", "random", "other", "narrow"]),
)
def test_every_drafter_gives_the_text_of_the_target_alone(
    shared: dict[str, LoadedModels], words: list[str], num_draft_tokens: int, drafter: str
) -> None:
    prompt = encode_text(toy_tokenizer(), "".join(words))
    plain = run(shared["none"], prompt=prompt, max_new_tokens=48)

    speculative = run(shared[drafter], prompt=prompt, max_new_tokens=48, num_draft_tokens=num_draft_tokens)

    assert speculative.token_ids == plain.token_ids
    assert speculative.text == plain.text
    assert speculative.finish_reason == plain.finish_reason


@pytest.fixture(scope="module")
def shared(folders: dict[str, Path]) -> dict[str, LoadedModels]:
    """Loads the random target with each drafter once; reusing their caches is part of the test."""

    def model(name: str) -> ModelSettings:
        return ModelSettings(str(folders[name]), quant="none", dtype="float32", device="cpu")

    target = model("random")
    made = {kind: load_models(resolve_pair(PairSettings(target, kind))) for kind in ("none", "lookup")}
    for name in ("random", "other", "narrow"):
        made[name] = load_models(resolve_pair(PairSettings(target, "model", model(name))))
    return made


@pytest.mark.thorough
def test_the_same_seed_gives_the_same_text_and_another_seed_another(opened: Opener) -> None:
    texts = [
        run(opened("random", "other"), sampling=SamplingSettings(temperature=1.5, seed=seed), end_ids=()).text
        for seed in (1, 1, 2)
    ]

    assert texts[0] == texts[1] != texts[2]


# --- Interrupts and errors --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drafter", ["none", "wrong"])
def test_an_interrupt_ends_the_answer_after_the_round_in_progress(opened: Opener, drafter: str) -> None:
    generation = Generation(opened(drafter=drafter), request())
    kept = ""
    events = []
    for event in generation:
        events.append(event)
        if isinstance(event, RoundText):
            kept += event.kept
            if event.round.index == 1:
                generation.interrupt()

    assert generation.counts.num_rounds == 2
    assert isinstance(events[-1], FinalText)
    assert events[-1].finish == Finish("interrupted")
    assert generation.report().finish_reason == "interrupted"
    assert generation.text == kept + events[-1].text
    assert ANSWER.startswith(kept)


def test_an_interrupt_in_the_prefill_ends_before_the_first_round(opened: Opener) -> None:
    generation = Generation(opened(), request())

    events = []
    for event in generation:
        events.append(event)
        generation.interrupt()

    assert [type(event) for event in events] == [Prefill, FinalText]
    assert (generation.text, generation.finish_reason) == ("", "interrupted")
    assert generation.report().counts.tokens_per_second is None


# M9


@pytest.mark.parametrize("drafter", ["none", "lookup", "random", "other"])
@pytest.mark.fast("none", "lookup")
def test_an_interrupted_answer_continues_where_it_stopped(opened: Opener, drafter: str) -> None:
    models = opened("random", drafter)
    whole = run(opened("random"), end_ids=(), max_new_tokens=40).token_ids
    first = Generation(models, request(end_ids=(), max_new_tokens=40))
    for event in first:
        if isinstance(event, RoundText) and len(first.token_ids) > 10:
            first.interrupt()
    so_far = [*CHAT, *first.token_ids]

    second = Generation(models, request(so_far, end_ids=(), max_new_tokens=40 - len(first.token_ids)))
    reused = prefill_of(list(second)).num_reused_tokens

    assert first.token_ids + second.token_ids == whole
    assert reused == len(so_far) - 1


@pytest.mark.parametrize(
    ("failure", "kind", "reason"),
    [
        (nan, NumericalError, "numerical"),
        (raised(torch.OutOfMemoryError("CUDA out of memory")), MemoryShortageError, "memory"),
        (raised(RuntimeError("DefaultCPUAllocator: can't allocate memory")), MemoryShortageError, "memory"),
        (raised(RuntimeError("CUDA error: device-side assert triggered")), RuntimeError, "error"),
    ],
    ids=["nan", "cuda memory", "cpu memory", "anything else"],
)
def test_a_failing_target_yields_the_text_before_the_error(
    opened: Opener, failure: Callable[[torch.Tensor], torch.Tensor], kind: type[Exception], reason: str
) -> None:
    models = opened()
    break_model(models.target, 8, failure)
    generation = Generation(models, request())

    events, error = collect(generation)

    assert type(error) is kind
    assert isinstance(events[-1], FinalText)
    assert events[-1].finish == Finish(reason)
    assert generation.text == "The quick brown fox drinks caf\ufffd"
    assert generation.report().finish_reason == reason


def test_the_models_work_after_an_error(opened: Opener) -> None:
    models = opened("random", "other")
    break_model(models.target, 5, nan)
    _, error = collect(Generation(models, request(end_ids=())))
    assert error is not None

    generation = run(models, end_ids=(), max_new_tokens=30)

    assert generation.token_ids == run(opened("random"), end_ids=(), max_new_tokens=30).token_ids


def test_an_error_in_the_prefill_leaves_an_empty_report(opened: Opener) -> None:
    models = opened()
    break_model(models.target, 0, raised(torch.OutOfMemoryError("CUDA out of memory")))
    generation = Generation(models, request())

    events, error = collect(generation)

    assert isinstance(error, MemoryShortageError)
    assert events == [FinalText("", Finish("memory"))]
    assert generation.report().counts.num_rounds == 0


def test_a_failing_draft_is_disabled_with_a_notice_and_the_text_stays(opened: Opener) -> None:
    models = opened(drafter="target")
    assert models.draft is not None
    break_model(models.draft, 8, raised(RuntimeError("planted")))

    generation = run(models)

    assert generation.text == ANSWER
    (notice,) = generation.notices
    assert "planted" in notice
    assert generation.report().notices == (notice,)
    assert generation.counts.num_accepted > 0


def test_the_next_answer_has_its_draft_again(opened: Opener) -> None:
    models = opened(drafter="target")
    assert models.draft is not None
    break_model(models.draft, 3, raised(RuntimeError("planted")))
    run(models)

    generation = run(models)

    assert generation.counts.acceptance_rate == 1.0
    assert generation.notices == []


def test_a_disabled_draft_leaves_a_consistent_cache(opened: Opener) -> None:
    models = opened("random", "random")
    assert models.draft is not None
    # The third token of a draft: two are in the draft's cache that the text will not have.
    break_model(models.draft, 3, nan)
    sampling = SamplingSettings(temperature=2.0, seed=3)
    first = run(models, sampling=sampling, end_ids=(), max_new_tokens=30)
    assert len(first.notices) == 1

    second = run(models, prompt=[*CHAT, *first.token_ids], end_ids=(), max_new_tokens=30)

    assert second.counts.acceptance_rate == 1.0


def test_strict_ends_with_the_drafts_error_after_the_text_so_far(opened: Opener) -> None:
    models = opened(drafter="target")
    assert models.draft is not None
    break_model(models.draft, 8, raised(RuntimeError("planted")))
    generation = Generation(models, request(strict=True))

    events, error = collect(generation)

    assert isinstance(error, PairError)
    assert isinstance(events[-1], FinalText)
    assert events[-1].finish == Finish("error")
    assert ANSWER.startswith(generation.text)
    assert generation.text


# --- Stop strings -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drafter", ["none", "wrong"])
@pytest.mark.parametrize("stop", ["quick", " brown fox", "é", "é at日", "日", "🙂.", "The", "x drinks c"])
@pytest.mark.fast("*-wrong", "quick-none")
def test_the_answer_ends_before_a_stop_string(opened: Opener, stop: str, drafter: str) -> None:
    generation = run(opened(drafter=drafter), stops=(stop,))

    report = generation.report()
    assert report.text == ANSWER[: ANSWER.index(stop)]
    assert (report.finish_reason, report.stop_text) == ("stop", stop)


def test_of_several_stop_strings_the_earliest_in_the_text_ends_it(opened: Opener) -> None:
    report = run(opened(drafter="wrong"), stops=("fox", "brown", "zebra")).report()

    assert (report.text, report.stop_text) == ("The quick ", "brown")


def test_an_incomplete_stop_string_is_part_of_the_text(opened: Opener) -> None:
    report = run(opened(drafter="wrong"), stops=("🙂.!",)).report()

    assert (report.text, report.finish_reason, report.stop_text) == (ANSWER, "stop", None)


# --- The baseline -----------------------------------------------------------------------------------------------------


def test_the_quick_baseline_times_a_few_steps_of_the_target_alone(opened: Opener) -> None:
    generation = run(opened(drafter="wrong"))

    baseline = generation.measure_baseline("calibrate")

    assert baseline is not None
    assert (baseline.method, baseline.num_tokens, baseline.compared) == ("calibrate", NUM_CALIBRATION_TOKENS, False)
    assert generation.report().baseline == baseline
    assert generation.report().speedup == baseline.tpot_seconds / (generation.counts.tpot_seconds or 0)


def test_a_short_answer_has_a_short_baseline(opened: Opener) -> None:
    baseline = run(opened(drafter="wrong"), max_new_tokens=3).measure_baseline("calibrate")

    assert baseline is not None
    assert baseline.num_tokens == 3


@pytest.mark.parametrize("drafter", ["lookup", "other", "random"])
@pytest.mark.fast("lookup", "random")
def test_the_full_baseline_generates_the_same_tokens(opened: Opener, drafter: str) -> None:
    generation = run(opened("random", drafter), end_ids=(), max_new_tokens=40)

    baseline = generation.measure_baseline("full")

    assert baseline is not None
    assert (baseline.num_tokens, baseline.compared, baseline.first_difference) == (40, True, None)


def test_the_full_baseline_names_the_first_token_that_differs(opened: Opener) -> None:
    generation = run(opened(drafter="wrong"))
    generation.token_ids[3] += 1

    baseline = generation.measure_baseline("full")

    assert baseline is not None
    assert baseline.first_difference == 3


def test_sampled_answers_are_not_compared(opened: Opener) -> None:
    generation = run(
        opened("random", "other"), sampling=SamplingSettings(temperature=1.0), end_ids=(), max_new_tokens=20
    )

    baseline = generation.measure_baseline("full")

    assert baseline is not None
    assert (baseline.compared, baseline.first_difference) == (False, None)


@pytest.mark.parametrize(("drafter", "method"), [("wrong", "off"), ("none", "calibrate"), ("none", "full")])
def test_there_is_no_baseline_without_anything_to_compare(opened: Opener, drafter: str, method: Any) -> None:
    generation = run(opened(drafter=drafter))

    assert generation.measure_baseline(method) is None
    assert generation.report().speedup is None


class SlowRecorder(PlainRecorder):
    """A recorder that needs 100 s for a recording, on a clock that advances by 1 s whenever it is read."""

    def __init__(self) -> None:
        self.now = 0.0

    def record(self, work: Callable[[], None]) -> Callable[[], None]:
        self.now += 100.0
        return super().record(work)

    def read(self) -> float:
        self.now += 1.0
        return self.now


@pytest.mark.parametrize("method", ["calibrate", "full"])
@pytest.mark.fast("calibrate")
def test_recordings_during_an_answer_are_in_its_time_and_not_in_its_speed(opened: Opener, method: Any) -> None:
    recorder, models = SlowRecorder(), opened("random", "other")
    models.target = StaticModel(DecoderPass(models.target.decoder), models.target.vocab_size, recorder)  # type: ignore[attr-defined]
    answer = Generation(models, request(end_ids=(), max_new_tokens=40))
    answer.clock = recorder.read
    rounds = [event.round for event in answer if isinstance(event, RoundText)]

    baseline, counts = answer.measure_baseline(method), answer.counts

    timed = [round_ for round_ in rounds if not round_.is_warmup]
    num_tokens, seconds = sum(len(r.token_ids) for r in timed), sum(r.seconds for r in timed)
    assert 0 < len(timed) < len(rounds)
    assert seconds == 3 * len(timed)
    assert counts.num_emitted == 40
    assert counts.decode_seconds == sum(round_.seconds for round_ in rounds) > 100
    assert counts.tokens_per_second == pytest.approx(num_tokens / seconds)
    assert baseline is not None
    # Without a drafter, a round reads the clock twice; with one, three times.
    assert baseline.tpot_seconds == pytest.approx(2)
    assert answer.report().speedup == pytest.approx(2 * num_tokens / seconds)


@pytest.mark.parametrize(("num_nodes", "tree"), [(0, "constant"), (6, "constant"), (6, "auto")])
@pytest.mark.parametrize("schedule", ["constant", "auto"])
@pytest.mark.fast("*-6-auto")
def test_each_round_teaches_its_costs_once(
    opened: Opener, monkeypatch: pytest.MonkeyPatch, schedule: Any, num_nodes: int, tree: Any
) -> None:
    models = opened("random", "other")
    learned: list[int] = []
    decode = DecodeSettings(40, 3, schedule, num_tree_nodes=num_nodes, tree_schedule=tree)
    generation = Generation(models, Request(list(CHAT), decode, GREEDY))
    monkeypatch.setattr(CostTable, "observe", lambda _, num_tokens, seconds: learned.append(num_tokens))

    rounds = [event.round for event in generation if isinstance(event, RoundText)]

    assert learned == [round_.num_fed for round_ in rounds if not round_.is_warmup]


def test_no_cost_is_learned_from_a_step_of_the_baseline_that_warms_up(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nor is it timed."""
    models = opened(drafter="wrong")
    steps = [Round(index, (), 0, 5, 0, 0.0, 9.0, 0.0, is_warmup=index < 2) for index in range(4)]
    learned: list[int] = []
    answer = run(models)
    monkeypatch.setattr(generation_module, "target_alone", lambda *_: steps)
    monkeypatch.setattr(CostTable, "observe", lambda _, num_tokens, seconds: learned.append(num_tokens))

    baseline = answer.measure_baseline("calibrate")

    assert baseline is not None
    assert (baseline.num_tokens, baseline.tpot_seconds) == (2, 9.0)
    assert learned == [1, 1]


def test_a_baseline_that_is_shorter_than_its_warm_up_is_timed_with_it(
    opened: Opener, monkeypatch: pytest.MonkeyPatch
) -> None:
    answer = run(opened(drafter="wrong"))
    steps = [Round(index, (), 0, 5, 0, 0.0, 9.0, 0.0, is_warmup=True) for index in range(3)]
    monkeypatch.setattr(generation_module, "target_alone", lambda *_: steps)

    baseline = answer.measure_baseline("full")

    assert baseline is not None
    assert (baseline.num_tokens, baseline.tpot_seconds) == (3, 9.0)


def test_an_interrupted_baseline_is_none(opened: Opener) -> None:
    models = opened(drafter="wrong")
    generation = run(models)
    forward = models.target._forward

    def interrupting(*arguments: Any) -> Any:
        generation.interrupt()
        return forward(*arguments)

    models.target._forward = interrupting

    assert generation.measure_baseline("full") is None
    assert generation.report().finish_reason == "stop"


def test_a_baseline_in_the_last_position_of_the_window_stays_inside_it(opened: Opener) -> None:
    models = opened("narrow", "lookup")
    prompt = (CHAT * 2)[:39]

    generation = run(models, prompt=prompt, max_new_tokens=1, end_ids=())

    assert generation.measure_baseline("calibrate") is not None
    assert models.target.length <= 40


@pytest.mark.parametrize("method", ["calibrate", "full"])
@pytest.mark.fast("full")
def test_a_baseline_changes_nothing_about_the_next_answer(opened: Opener, method: Any) -> None:
    models = opened("random", "other")
    first = run(models, end_ids=(), max_new_tokens=20)
    first.measure_baseline(method)
    prompt = [*CHAT, *first.token_ids]

    second = run(models, prompt=prompt, end_ids=(), max_new_tokens=20)

    assert second.token_ids == run(opened("random"), prompt=prompt, end_ids=(), max_new_tokens=20).token_ids


# --- Caches from one answer to the next -------------------------------------------------------------------------------


@pytest.mark.parametrize("drafter", ["none", "lookup", "random", "other"])
@pytest.mark.fast("none", "lookup")
def test_the_common_prefix_of_two_prompts_is_computed_once(opened: Opener, drafter: str) -> None:
    models = opened("random", drafter)
    first = run(models, end_ids=(), max_new_tokens=12)
    prompt = [*CHAT, *first.token_ids[:5], *CHAT]

    second = Generation(models, request(prompt, end_ids=(), max_new_tokens=30))
    events, _ = collect(second)

    fresh = run(opened("random"), prompt=prompt, end_ids=(), max_new_tokens=30)
    assert prefill_of(events).num_reused_tokens >= len(CHAT) + 5
    assert second.token_ids == fresh.token_ids


def test_another_prompt_reuses_nothing(opened: Opener) -> None:
    models = opened("random", "other")
    run(models, end_ids=(), max_new_tokens=20)
    prompt = [token_id("a"), *CHAT]

    second = Generation(models, request(prompt, end_ids=(), max_new_tokens=20))
    events, _ = collect(second)

    assert prefill_of(events).num_reused_tokens == 0
    assert second.token_ids == run(opened("random"), prompt=prompt, end_ids=(), max_new_tokens=20).token_ids


def test_a_repeated_prompt_computes_only_its_last_token(opened: Opener) -> None:
    models = opened("random", "random")
    first = run(models, end_ids=())

    second = Generation(models, request(end_ids=()))
    events, _ = collect(second)

    assert prefill_of(events).num_reused_tokens == len(CHAT) - 1
    assert second.token_ids == first.token_ids


@pytest.mark.fault("F109")
def test_special_tokens_are_shown_on_request(opened: Opener) -> None:
    models = opened("target", "wrong")

    hidden, shown = run(models), run(models, show_special_tokens=True)

    assert (hidden.text, shown.text) == (ANSWER, ANSWER + END)
    assert hidden.report().token_ids == shown.report().token_ids
    assert toy_tokenizer().decode(list(hidden.report().token_ids or ())) == ANSWER + END


@pytest.mark.fault("F109")
def test_a_shown_special_token_can_be_a_stop_string(opened: Opener) -> None:
    shown = run(opened(), show_special_tokens=True, stops=(END,))

    assert (shown.text, shown.finish_reason) == (ANSWER, "stop")


def test_peak_memory_of_cuda_is_what_torch_reserved(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "max_memory_reserved", lambda index: (300, 40)[index])
    monkeypatch.setattr(torch.cuda, "max_memory_allocated", lambda index: 1)

    assert peak_memory_bytes([torch.device("cuda:0")]) == 340
