"""Tests what a run on a card computes: the aims, the models, the oracle, the gaps, what is packed for it."""

from __future__ import annotations

import json
import subprocess
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from specgen.core.settings import DecodeSettings, SamplingSettings
from specgen.engine.decoding import DecodeOptions, decode
from specgen.engine.drafters.model import ModelDrafter
from specgen.engine.sampling import Sampler
from specgen.engine.transfer import HostCopy
from specgen.models.static.model import StaticModel
from specgen.models.static.passes import DecoderPass
from specgen.models.static.recorder import PlainRecorder
from tests.decoders import decoder_of
from tests.fake_cuda import FAKE, FakeCuda, fake_cuda
from tests.fakes import CPU, ScriptedDrafter, cached, ids_of, tiny_model
from tests.gpu import attention, correctness, gates, machine, models, on_card, passes, peers, prepare, products, timing
from tests.gpu.correctness import gaps, greedy_text
from tests.gpu.loop import PROMPT, Loop, OracleDrafter
from tests.gpu.models import (
    bytes_per_token,
    config_of,
    dense_weight,
    random_decoder,
    spec_of,
    static_model,
    transformers_model,
)
from tests.gpu.report import Context, Figure
from tests.models.static.recorder import TraceRecorder
from tests.profiles import thorough_except

# aims


def figures_of(card: str) -> list[Figure]:
    """Figures of a card whose 7B in nf4 takes 3 ms, 3.9 ms for five rows."""
    rows = [
        {"name": "pass", "model": "7B", "quant": "nf4", "runner": "static", "rows": 1, "ms": 3.0, "call_ms": 3.0},
        {"name": "pass", "model": "7B", "quant": "nf4", "runner": "static", "rows": 5, "ms": 3.9, "call_ms": 3.9},
        {"name": "pass", "model": "7B", "quant": "nf4", "runner": "eager", "rows": 1, "ms": 30.0, "call_ms": 30.0},
        {"name": "bytes", "model": "7B", "quant": "nf4", "gb": 4.76},
        {"name": "loop", "quant": "nf4", "alpha": 0.8, "k": 4, "tokens_per_s": 300.0, "speedup": 1.0, "busy": 0.95},
        {"name": "loop", "quant": "nf4", "alpha": 0.8, "k": 2, "tokens_per_s": 400.0, "speedup": 1.3, "busy": 0.9},
        {"name": "loop", "quant": "nf4", "alpha": 0.9, "k": 2, "tokens_per_s": 600.0, "speedup": 1.9},
        {"name": "loop", "quant": "none", "error": "RuntimeError"},
    ]
    return [{"part": 0, "name": "card", "card": card}, *({"part": 4, **row} for row in rows)]


def test_the_aims_of_a_card_are_judged() -> None:
    judged = {one.gate.what: (one.value, one.verdict) for one in gates.judge(figures_of("NVIDIA H100 80GB HBM3"))}

    assert judged["7B nf4: v(5)"] == (pytest.approx(1.3), "good")
    assert judged["7B nf4: recorded over eager"] == (pytest.approx(10), "excellent")
    assert judged["7B nf4: share of the bandwidth, plain"] == (pytest.approx(4.76 / 3350 / 0.003), "good")
    assert judged["nf4: tokens/s, α 0.8"] == (400, "good")
    assert judged["nf4: GPU busy in a round, k 4"] == (0.95, "good")
    assert judged["7B bf16: v(5)"] == (None, "not measured")


def test_other_cards_have_other_aims() -> None:
    judged = {one.gate.what: one.verdict for one in gates.judge(figures_of("NVIDIA GeForce RTX 4090"))}

    assert judged["7B nf4: v(5)"] == "missed"
    assert judged["nf4: speedup over recorded plain, α 0.8"] == "missed"
    assert judged["nf4: tokens/s, α 0.8"] == "excellent"
    assert gates.judge(figures_of("cpu")) == []


def test_the_table_is_made_from_the_files_of_both_commands(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    figures = figures_of("NVIDIA H100 80GB HBM3")
    paths = [tmp_path / "first.jsonl", tmp_path / "second.jsonl"]
    for path, part in zip(paths, (figures[:4], figures[4:]), strict=True):
        path.write_text("".join(f"{json.dumps(figure)}\n" for figure in part))

    assert on_card.main(["--table", *map(str, paths)]) == 0

    assert "| 7B nf4: v(5) | 1.3 | 1.4 | 1.25 | good |" in capsys.readouterr().out


# packing


def test_bitsandbytes_is_packed_with_one_library(tmp_path: Path) -> None:
    wheel = tmp_path / "bitsandbytes-1.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        for name in (
            "__init__.py",
            "libbitsandbytes_cpu.so",
            "libbitsandbytes_cuda129.so",
            "libbitsandbytes_cuda130.so",
        ):
            archive.writestr(f"bitsandbytes/{name}", "")
        archive.writestr("bitsandbytes-1.dist-info/METADATA", "")

    prepare.unpack_bitsandbytes(wheel, tmp_path / "packed", "130")

    packed = {path.name for path in (tmp_path / "packed").rglob("*") if path.is_file()}
    assert packed == {"__init__.py", "libbitsandbytes_cuda130.so", "METADATA"}
    with pytest.raises(SystemExit, match="has no libbitsandbytes_cuda131"):
        prepare.unpack_bitsandbytes(wheel, tmp_path / "other", "131")


def test_what_is_packed_is_hidden_from_git_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)

    for _ in range(2):
        prepare.exclude(Path(".gpu"))

    lines = (tmp_path / ".git/info/exclude").read_text().splitlines()
    assert lines.count("/.gpu/") == 1


@pytest.mark.parametrize(("limit", "code"), [(1000, 0), (999, 1)])
def test_the_folder_and_the_repository_fit_into_one_transfer(
    limit: int, code: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def download(names: list[str], folder: Path) -> None:
        if "bitsandbytes" in names:
            with zipfile.ZipFile(folder / "bitsandbytes-1.whl", "w") as archive:
                archive.writestr("bitsandbytes/libbitsandbytes_cuda130.so", b"0" * 300)
        else:
            (folder / "one.whl").write_bytes(b"0" * 200)

    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_bytes(b"0" * 500)
    (tmp_path / "unknown to git").write_bytes(b"0" * 500)
    subprocess.run(["git", "add", "file"], check=True)
    monkeypatch.setattr(prepare, "_download", download)
    monkeypatch.setattr(prepare, "MAX_BYTES", limit)

    assert prepare.main([]) == code


# models and figures


@pytest.mark.thorough
def test_what_is_timed_can_be_recorded(monkeypatch: pytest.MonkeyPatch) -> None:
    """A trace, like a CUDA graph, can't contain host reads, and computes on the tensors it was recorded with."""
    said: list[tuple[str, dict[str, Any]]] = []
    monkeypatch.setattr(models, "recorder_for", lambda device: TraceRecorder())
    monkeypatch.setattr(timing, "recorder_for", lambda device: TraceRecorder())
    context = Context(CPU, True, lambda name, **fields: said.append((name, fields)))

    for part in (machine.examine, attention.measure, products.measure, correctness.compare):
        part(context)

    assert [found for found in said if "error" in found[1]] == []
    replays = [fields for name, fields in said if name == "replay_equals_plain"]
    assert [(one["num_unequal"], one["failure"]) for one in replays] == [(0, None)] * 3
    assert all(one["num_recorded"] for one in replays)


def test_a_failed_test_is_reported_at_once() -> None:
    said: list[dict[str, Any]] = []
    outcomes = machine.Outcomes(lambda name, **fields: said.append({"name": name, **fields}))
    crash = SimpleNamespace(reprcrash=SimpleNamespace(message="AssertionError: 1\n + 2"))
    for outcome, longrepr in (("passed", None), ("failed", crash)):
        outcomes.pytest_runtest_logreport(
            SimpleNamespace(when="call", outcome=outcome, nodeid=f"file.py::{outcome}", longrepr=longrepr)
        )

    assert said == [{"name": "failed_test", "test": "failed", "when": "call", "error": "AssertionError: 1"}]
    assert outcomes.names == {"passed": ["passed"], "failed": ["failed"], "skipped": []}


def test_work_that_cannot_be_recorded_spoils_no_later_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class FailsForGood(TraceRecorder):
        """As `CudaRecorder`."""

        has_failed = False

        def record(self, work: Any) -> Any:
            if self.has_failed:
                raise RuntimeError("an earlier recording failed")
            self.has_failed = True
            replay = super().record(work)
            self.has_failed = False
            return replay

    monkeypatch.setattr(timing, "recorder_for", lambda device: FailsForGood())
    timer, numbers = timing.Timer(CPU, 1), torch.ones(2)
    with pytest.raises(RuntimeError):
        timer.replay_ms(lambda: numbers.sum().item())

    assert timer.replay_ms(lambda: numbers.add_(1)) > 0


def test_a_steady_model_counts() -> None:
    decoder = random_decoder(spec_of("7B", is_tiny=True), CPU, is_steady=True)

    assert greedy_text(static_model(decoder), PROMPT, 6) == [132, 133, 134, 135, 136, 137]


def test_transformers_computes_the_same_on_the_same_tensors() -> None:
    decoder = random_decoder(spec_of("8B", is_tiny=True), CPU, dtype=torch.float32)
    model = transformers_model(config_of("8B", is_tiny=True), decoder)
    ids = list(range(20))

    with torch.inference_mode():
        expected = model(torch.tensor([ids])).logits[0, -1]

    torch.testing.assert_close(static_model(decoder).logits(ids, 1)[0], expected, rtol=1e-4, atol=1e-5)
    assert model.lm_head.weight.data_ptr() == dense_weight(decoder.head).data_ptr()


@pytest.mark.thorough
def test_peers_in_nf4_have_the_weights_of_specgens_model() -> None:
    context = Context(CPU, True, lambda name, **fields: None)
    decoder = random_decoder(spec_of("7B", is_tiny=True), CPU, is_steady=True)
    own, model = peers.nf4_pair(context, decoder)
    given = torch.randn(2, 256, generator=torch.Generator().manual_seed(0)).bfloat16()

    with torch.inference_mode():
        found, dense = (one.layers[0].mlp.down_proj(given) for one in (own, decoder))
        expected = model.model.layers[0].mlp.down_proj(given)

    assert torch.equal(found, expected)
    assert not torch.equal(dense, expected)


def test_a_peer_is_compared_with_the_same_text_in_the_same_process() -> None:
    said: list[dict[str, Any]] = []
    context = Context(CPU, True, lambda name, **fields: said.append({"name": name, **fields}))
    found = peers.Peers(context, "none", random_decoder(spec_of("7B", is_tiny=True), CPU, is_steady=True))
    text = [PROMPT[-1] + 1 + index for index in range(found.num_tokens)]

    found.compare("same", lambda: text)
    found.compare("other", lambda: [*text[:3], 0, *text[4:]])
    found.compare("broken", lambda: text[len(text) :][0:1] or 1 // 0)  # type: ignore[arg-type,return-value]

    rates = {one["runner"]: one["tokens_per_s"] for one in said if one["name"] == "own"}
    by_peer = {one["peer"]: one for one in said if one["name"] == "peer"}
    assert (by_peer["same"]["num_same"], by_peer["other"]["num_same"]) == (found.num_tokens, 3)
    assert "ZeroDivisionError" in by_peer["broken"]["error"]
    for runner, rate in rates.items():
        assert by_peer["same"][f"{runner}_over_it"] == pytest.approx(rate / by_peer["same"]["tokens_per_s"])


# host reads


class Stopped:
    """Work on the fake device that reads it in all ways."""

    def __init__(self) -> None:
        self.values = torch.zeros(3, device=FAKE)
        self.first, self.second = HostCopy(self.values), HostCopy(self.values)

    def __call__(self) -> None:
        self.first.start()
        self.second.start()
        self.second.read()  # waits
        self.first.read()  # is over by now
        self.first.start()
        self.values.tolist()  # waits
        self.first.read()  # is over by now
        self.first.start()
        self.first.read()  # waits
        self.first.read()


def test_waits_for_events_are_host_reads(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch) as device:
        warn_of_reads(monkeypatch, device)
        found = timing.num_host_reads(FAKE, Stopped())

    assert found == len(device.reads) == 3


def warn_of_reads(patch: pytest.MonkeyPatch, device: FakeCuda) -> None:
    """Makes the fake device warn as torch does: of reads, not of waits for events."""
    note = device.note_read

    def warning(what: str) -> None:
        note(what)
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)

    patch.setattr(device, "note_read", warning)
    patch.setattr(torch.cuda, "set_sync_debug_mode", lambda mode: None)


@pytest.mark.thorough
def test_the_loop_reads_once_a_round(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch) as device:
        warn_of_reads(monkeypatch, device)
        monkeypatch.setattr(torch.cuda, "synchronize", lambda device: None)
        target, draft = (
            StaticModel(
                DecoderPass(decoder_of(tiny_model(seed=seed, num_hidden_layers=1, vocab_size=160)).to(FAKE)),
                160,
                PlainRecorder(),
            )
            for seed in (0, 1)
        )
        loop = Loop(Context(FAKE, True, lambda name, **fields: None), target, draft, 16)
        text = [*PROMPT, *range(132, 160)]
        found = loop.reads_per_round(target, loop.oracle(text, 0.8), 4)

    assert found == 1


def test_the_pass_behind_the_busy_share_is_timed_without_a_read(monkeypatch: pytest.MonkeyPatch) -> None:
    with fake_cuda(monkeypatch) as device:
        decoder = decoder_of(tiny_model(num_hidden_layers=1)).to(FAKE)
        model = StaticModel(DecoderPass(decoder), 96, PlainRecorder())
        timer = timing.Timer(FAKE, 2)
        monkeypatch.setattr(timer, "_marked", lambda work: work())
        device.reads.clear()
        passes.verify_ms(timer, model, 4)
        passes.draft_step_ms(timer, model)

    assert device.reads == []


def test_the_bytes_of_a_token_leave_out_an_embedding_that_is_no_head() -> None:
    tied, own = (random_decoder(spec_of(shape, is_tiny=True), CPU) for shape in ("0.5B", "7B"))  # type: ignore[arg-type]
    whole = [sum(one.nbytes for one in {id(p): p for p in d.parameters()}.values()) for d in (tied, own)]

    assert bytes_per_token(tied) == whole[0] - tied.embedding.nbytes  # counted twice above
    assert bytes_per_token(own) == whole[1] - own.embedding.nbytes


@pytest.mark.parametrize("alpha", thorough_except([0.7], [0.0, 0.7, 1.0]))
def test_the_oracle_accepts_as_often_as_it_is_asked_to(alpha: float) -> None:
    target, draft = (cached(tiny_model(seed=seed)) for seed in (0, 1))
    sampler = Sampler.seeded(SamplingSettings(), CPU, 96)
    prompt = [1, 17, 40]
    text = greedy_text(target, prompt, 200)
    target.rewind(0)
    drafter = OracleDrafter(ModelDrafter(draft, 96, sampler), [*prompt, *text], alpha, CPU)

    events = list(decode(target, drafter, prompt, sampler, DecodeOptions(DecodeSettings(200, 4))))

    rounds = [event for event in events if hasattr(event, "num_accepted")]
    tested = sum(one.num_accepted + one.num_rejected for one in rounds)
    assert ids_of(events) == text
    assert sum(one.num_accepted for one in rounds) / tested == pytest.approx(alpha, abs=0.1)
    assert draft.num_forwards > len(rounds)


def test_a_plain_drafter_can_stand_behind_the_oracle() -> None:
    drafter = OracleDrafter(ScriptedDrafter(lambda ids, limit: [5] * limit), [1, 2, 3, 4], 1.0, CPU)

    draft = drafter.propose([1, 2], 2, None)  # type: ignore[arg-type]

    assert draft.ids.tolist() == [3, 4]


def test_gaps_are_counted_in_steps_of_bfloat16() -> None:
    one_row = torch.tensor([[4.0, 3.9, 0.0], [1.0, 0.5, 0.0], [2.0, 0.0, 1.0]])
    several = torch.tensor([[4.0, 4.0625, 0.0], [1.0, 0.5, 0.0], [2.0, 0.0, 1.03125]])

    found = gaps(one_row, several)

    assert found["num_positions"] == 3
    assert found["num_flips"] == 1
    assert found["largest_gap_at_flips"] == pytest.approx(0.1 / 2**-5)
    assert found["largest_steps"] == pytest.approx(0.1625 / 2**-5)
    assert found["num_gaps_beyond_promise"] == 0
