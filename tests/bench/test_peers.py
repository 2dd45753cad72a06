"""Other programs in a benchmark's table: their figures, their text, and that they are never recommended."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from specgen.bench.advice import best_speedup, recommend
from specgen.bench.figures import figures_by_setting
from specgen.bench.open_models import open_peers
from specgen.bench.peers import PeerAnswer, PeerRequest, TransformersPeer, answered
from specgen.bench.results import BenchSettings, Setting
from specgen.bench.runner import Benchmark
from specgen.core.errors import DeviceError, SettingsError
from specgen.core.settings import PairSettings
from specgen.runtime.pair import resolve_pair
from tests.bench.reports import SETTINGS, counts, report
from tests.bench.virtual import VirtualClock, benchmark, finished, model
from tests.toys import save_toy

SMALL = BenchSettings(num_tokens=12, num_repeats=2, num_warmups=1, stops_at_end=False)
PEER = Setting("peer", "other", "other program")


class ScriptedPeer:
    """Reads a prompt in 3 seconds, and writes a token in half a second."""

    setting = PEER

    def __init__(self, clock: VirtualClock, token_ids: list[int], *, has_target_weights: bool = True) -> None:
        self.has_target_weights = has_target_weights
        self._clock, self._token_ids = clock, token_ids
        self.num_answers = 0

    def generate(self, answer: PeerAnswer) -> None:
        self.num_answers += 1
        self._clock.now += 2.5
        for token in self._token_ids:
            self._clock.now += 0.5
            if answer.add(token):
                return


class BrokenPeer(ScriptedPeer):
    def generate(self, answer: PeerAnswer) -> None:
        answer.add(1)
        raise RuntimeError("no kernel")


@pytest.fixture(scope="module")
def toy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_toy(tmp_path_factory.mktemp("toys") / "target")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> VirtualClock:
    made = VirtualClock()
    made.install(monkeypatch)
    return made


def own_text(made: Benchmark) -> list[int]:
    for step in made:
        if step.run is not None:
            return list(step.run.token_ids)
    raise AssertionError("the baseline runs first")


def test_the_first_token_of_a_peer_ends_its_ttft(toy: Path, clock: VirtualClock) -> None:
    text = own_text(benchmark(clock, toy, {}, (), SMALL))
    made = benchmark(clock, toy, {}, (), SMALL)
    peer = ScriptedPeer(clock, [*text, 0, 0, 0])
    made.add_peers([peer])

    alone, other = figures_by_setting(finished(made))

    assert peer.num_answers == 1 + 2 * 2
    assert other.setting == PEER
    assert other.num_runs == alone.num_runs == 4
    assert other.ttft_seconds == pytest.approx(3.0)
    assert other.counts.num_emitted == 4 * 12
    assert other.counts.tokens_per_second == pytest.approx(2.0)
    assert other.speedup == pytest.approx(2.0)
    assert other.text_verdict == "same"
    assert (other.counts.acceptance_rate, other.counts.block_efficiency, other.forecast) == (None, None, None)


@pytest.mark.parametrize("has_target_weights", [True, False])
def test_only_the_text_of_the_same_weights_is_compared(
    toy: Path, clock: VirtualClock, has_target_weights: bool
) -> None:
    made = benchmark(clock, toy, {}, (), SMALL)
    made.add_peers([ScriptedPeer(clock, [5] * 12, has_target_weights=has_target_weights)])

    figures = figures_by_setting(finished(made))[1]

    assert figures.text_verdict == ("different" if has_target_weights else None)


def test_a_peer_that_fails_is_left_out(toy: Path, clock: VirtualClock) -> None:
    made = benchmark(clock, toy, {}, (), SMALL)
    made.add_peers([BrokenPeer(clock, [])])

    found = finished(made)

    assert [(failure.setting, failure.message) for failure in found.failures] == [(1, "other failed: no kernel")]
    assert {run.setting for run in found.runs} == {0}
    assert found.is_complete


def test_an_interrupted_answer_of_a_peer_does_not_count(toy: Path, clock: VirtualClock) -> None:
    made = benchmark(clock, toy, {}, (), replace(SMALL, num_warmups=0))

    class Interrupting(ScriptedPeer):
        def generate(self, answer: PeerAnswer) -> None:
            answer.add(1)
            made.interrupt()
            assert answer.add(2)

    made.add_peers([Interrupting(clock, [])])

    found = finished(made)

    assert [run.setting for run in found.runs] == [0]
    assert not found.is_complete


def test_a_peer_is_never_recommended_but_its_speed_is_shown() -> None:
    drafted = report()
    rows = [replace(run, setting=3, counts=counts(0.01)) for run in drafted.runs if run.setting == 0]
    figures = figures_by_setting(replace(drafted, settings=(*SETTINGS, PEER), runs=(*drafted.runs, *rows)))

    advice = recommend(figures)

    assert figures[3].speedup == pytest.approx(10)
    assert advice.figures is not None
    assert advice.figures.setting == SETTINGS[1]
    assert "other program: 100.0 tok/s" in advice.reason
    best = best_speedup(figures)
    assert best is not None
    assert best.setting == SETTINGS[1]


def test_transformers_writes_the_targets_own_text(tmp_path: Path, clock: VirtualClock) -> None:
    target = save_toy(tmp_path / "target")
    made = benchmark(clock, target, {}, (), SMALL)
    made.add_peers(open_peers(["transformers"], model(target), resolve_pair(PairSettings(model(target), "none"))))

    found = finished(made)

    assert [item.text_verdict for item in figures_by_setting(found)] == [None, "same"]
    assert len({run.token_ids for run in found.runs}) == 1
    assert all(len(run.token_ids) == SMALL.num_tokens for run in found.runs)


def test_transformers_ends_at_an_end_token(tmp_path: Path) -> None:
    target = model(save_toy(tmp_path / "target"))
    pair = resolve_pair(PairSettings(target, "none"))
    (peer,) = open_peers(["transformers"], target, pair)
    assert isinstance(peer, TransformersPeer)
    ids = pair.tokenizer.encode("\n")
    long = answered(peer, PeerRequest(ids, 9, frozenset(), lambda: 0.0, lambda: False)).token_ids

    short = answered(peer, PeerRequest(ids, 9, frozenset({long[3]}), lambda: 0.0, lambda: False)).token_ids

    assert short == long[:4]
    assert len(long) == 9


def test_a_peer_without_a_token_has_failed(clock: VirtualClock) -> None:
    with pytest.raises(DeviceError):
        answered(ScriptedPeer(clock, []), PeerRequest([1], 4, frozenset(), clock, lambda: False))


def test_llama_cpp_needs_a_file(toy: Path) -> None:
    with pytest.raises(SettingsError):
        open_peers(["llama-cpp"], model(toy), resolve_pair(PairSettings(model(toy), "none")))
