"""The command lines of engines, word for word, and what is refused."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from specgen.bench.results import Setting
from specgen.core.errors import PromptError, SettingsError
from specgen.render.bench.documents import bench_document
from specgen.runtime.servers.launch import EngineName
from specgen.runtime.servers.launch.bench_results import read_bench_results
from specgen.runtime.servers.launch.command import LAUNCHERS, launch_command
from specgen.runtime.servers.launch.values import LaunchRequest, ServerPlacement, Speculation
from tests.bench.reports import LABEL, SETTINGS, report

MODEL = Speculation("acme/tiny", False, 3)
LOOKUP = Speculation(None, True, 4)
BOTH = Speculation("acme/tiny", True, 3)
GGUF = Speculation("/m/d.gguf", False, 3)
GGUF_BOTH = Speculation("/m/d.gguf", True, 5)

VLLM_METRICS = "--per-request-spec-decode-metrics detailed --enable-per-request-metrics"
EXPECTED = [
    ("vllm", LaunchRequest("acme/big", None), "vllm serve acme/big --enable-per-request-metrics"),
    (
        "vllm",
        LaunchRequest("acme/big", None, ServerPlacement(port=8001)),
        "vllm serve acme/big --port 8001 --enable-per-request-metrics",
    ),
    (
        "vllm",
        LaunchRequest("acme/big", MODEL, ServerPlacement(8)),
        "vllm serve acme/big --tensor-parallel-size 8 --speculative-config "
        '\'{"method":"draft_model","model":"acme/tiny","num_speculative_tokens":3}\' ' + VLLM_METRICS,
    ),
    (
        "vllm",
        LaunchRequest("acme/big", BOTH),
        "vllm serve acme/big --speculative-config "
        '\'{"method":"draft_model","model":"acme/tiny","num_speculative_tokens":3}\' ' + VLLM_METRICS,
    ),
    (
        "vllm",
        LaunchRequest("acme/big", LOOKUP, ServerPlacement(8, 2)),
        "vllm serve acme/big --tensor-parallel-size 16 --nnodes 2 --node-rank 0 --master-addr HEAD "
        "--speculative-config "
        '\'{"method":"ngram","num_speculative_tokens":4,"prompt_lookup_min":2,"prompt_lookup_max":5}\' ' + VLLM_METRICS,
    ),
    (
        "vllm",
        LaunchRequest("acme/big", Speculation("mtp", False, 2)),
        'vllm serve acme/big --speculative-config \'{"method":"mtp","num_speculative_tokens":2}\' ' + VLLM_METRICS,
    ),
    (
        "sglang",
        LaunchRequest("acme/big", MODEL, ServerPlacement(8, 2)),
        "python -m sglang.launch_server --model-path acme/big --tp 16 --nnodes 2 --node-rank 0 --dist-init-addr "
        "HEAD:50000 --speculative-algorithm STANDALONE --speculative-draft-model-path acme/tiny "
        "--speculative-num-steps 3 --speculative-eagle-topk 1 --speculative-num-draft-tokens 4",
    ),
    (
        "sglang",
        LaunchRequest("acme/big", LOOKUP),
        "python -m sglang.launch_server --model-path acme/big --speculative-algorithm NGRAM "
        "--speculative-num-draft-tokens 4",
    ),
    ("sglang", LaunchRequest("acme/big", None), "python -m sglang.launch_server --model-path acme/big"),
    ("llama-server", LaunchRequest("/m/t.gguf", None), "llama-server --model /m/t.gguf --metrics --parallel 1"),
    (
        "llama-server",
        LaunchRequest("/my models/t.gguf", GGUF),
        "llama-server --model '/my models/t.gguf' --metrics --parallel 1 --spec-type draft-simple "
        "--spec-draft-model /m/d.gguf --spec-draft-n-max 3",
    ),
    (
        "llama-server",
        LaunchRequest("acme/big-GGUF:Q4_K_M", LOOKUP, ServerPlacement(2, 3)),
        "llama-server --hf-repo acme/big-GGUF:Q4_K_M --metrics --parallel 1 --rpc NODE1:50052,NODE2:50052 "
        "--split-mode layer --spec-type ngram-simple --spec-ngram-simple-size-n 3 --spec-ngram-simple-size-m 4",
    ),
    (
        "llama-server",
        LaunchRequest("/m/t.gguf", GGUF_BOTH),
        "llama-server --model /m/t.gguf --metrics --parallel 1 --spec-type draft-simple,ngram-simple "
        "--spec-draft-model /m/d.gguf --spec-draft-n-max 5 --spec-ngram-simple-size-n 3 --spec-ngram-simple-size-m 5",
    ),
]


@pytest.mark.parametrize(("engine", "request_", "line"), EXPECTED)
def test_a_command_line_is_the_one_of_the_engines_documentation(
    engine: EngineName, request_: LaunchRequest, line: str
) -> None:
    assert launch_command(engine, request_).line == line


@pytest.mark.parametrize(
    ("engine", "request_", "named"),
    [
        ("vllm", LaunchRequest("/m/t.gguf", None), "/m/t.gguf"),
        ("vllm", LaunchRequest("acme/big", GGUF), "/m/d.gguf"),
        ("sglang", LaunchRequest("/m/t.gguf", None), "/m/t.gguf"),
        ("llama-server", LaunchRequest("acme/big", None), "acme/big"),
        ("llama-server", LaunchRequest("/m/t.gguf", MODEL), "acme/tiny"),
        ("vllm", LaunchRequest("acme/big", replace(MODEL, vocabulary="shared")), "acme/tiny"),
        ("sglang", LaunchRequest("acme/big", replace(MODEL, vocabulary="text")), "acme/tiny"),
    ],
)
def test_what_an_engine_cant_run_is_refused_by_name(engine: EngineName, request_: LaunchRequest, named: str) -> None:
    with pytest.raises(SettingsError, match=named):
        launch_command(engine, request_)


@pytest.mark.parametrize("engine", LAUNCHERS)
def test_a_baseline_has_no_word_of_speculation(engine: EngineName) -> None:
    words = launch_command(engine, LaunchRequest("acme/big-GGUF", None)).words

    assert not [word for word in words if "spec" in word]


@pytest.mark.parametrize("quant", ["nf4", "fp4", "int8"])
@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_format_that_is_specgens_own_is_remarked(engine: EngineName, quant: str) -> None:
    plain = launch_command(engine, LaunchRequest("acme/big", MODEL))
    quantized = launch_command(engine, LaunchRequest("acme/big", MODEL, quant=quant))

    assert quantized.words == plain.words
    assert len(quantized.remarks) == len(plain.remarks) + 1


@given(target=st.text(st.characters(codec="utf-8", exclude_characters="\0"), min_size=1))
def test_a_shell_reads_the_line_as_the_same_words(target: str) -> None:
    command = launch_command("vllm", LaunchRequest(f"a/{target}", replace(MODEL, draft=f"{target}'\"$x")))

    assert tuple(shlex.split(command.line)) == command.words
    config = json.loads(command.words[command.words.index("--speculative-config") + 1])
    assert config["model"] == f"{target}'\"$x"


# From the results of a benchmark


def results(**figures: object) -> str:
    return json.dumps(bench_document(report(**figures)))  # type: ignore[arg-type]


def test_the_recommended_draft_and_length_are_read() -> None:
    chosen = read_bench_results(results(), "runs.json")

    assert chosen.target == "Qwen2.5-Coder-1.5B-Instruct"
    assert chosen.speculation == Speculation("Qwen/0.5B", False, 4)
    assert (chosen.quant, chosen.draft_quant) == ("none", "nf4")


def test_the_last_line_of_ndjson_is_read() -> None:
    lines = ['{"type":"start"}', '{"type":"run"}', results()]

    assert read_bench_results("\n".join(lines) + "\n", "runs") == read_bench_results(results(), "runs")


def test_an_adaptive_length_becomes_its_mean() -> None:
    """The lookup of these reports drafts 2 tokens in each of its rounds."""
    chosen = read_bench_results(results(model_seconds=(0.2,) * 3, lookup_seconds=(0.05, 0.051, 0.05)), "runs")

    assert chosen.speculation == Speculation(None, True, 2, is_adaptive=True)


@pytest.mark.parametrize(("chains", "expected"), [((1.3, 1.2), 4), ((1.2, 1.3), 2), ((), 3)])
def test_of_recommended_trees_the_fastest_chains_are_read(chains: tuple[float, ...], expected: int) -> None:
    """Engines draft chains. Without chains, the mean length of the paths is read."""
    document = json.loads(results())
    document["recommendation"]["setting"] |= {"k": "auto", "tree": "auto"}
    target, chain, *_ = document["results"]
    stats = chain["summary"]["stats"]
    rows = [
        chain | {"k": k, "tree": "off", "summary": chain["summary"] | {"speedup": speedup}}
        for k, speedup in zip(("4", "2"), chains, strict=False)
    ]
    mean = {"num_draft_tokens": 30, "num_spec_steps": 10}
    trees = chain | {"k": "auto", "tree": "auto", "summary": chain["summary"] | {"speedup": 1.5, "stats": stats | mean}}

    chosen = read_bench_results(json.dumps(document | {"results": [target, *rows, trees]}), "runs")

    assert chosen.speculation == Speculation("Qwen/0.5B", False, expected, is_adaptive=not chains)


def test_no_recommended_draft_is_none() -> None:
    slow = (0.2, 0.2, 0.2)

    assert read_bench_results(results(model_seconds=slow, lookup_seconds=slow), "runs").speculation is None


@pytest.mark.parametrize(
    ("draft", "label", "drafter", "expected"),
    [
        ("acme/d+lookup", LABEL, "model+lookup", Speculation("acme/d", True, 4)),
        ("acme/d", f"{LABEL} by shared tokens", "model", Speculation("acme/d", False, 4, False, "shared")),
        ("acme/d", f"{LABEL} by text", "model", Speculation("acme/d", False, 4, False, "text")),
        ("auto", LABEL, "model", Speculation("Qwen2.5-Coder-0.5B-Instruct", False, 4)),
    ],
)
def test_the_name_of_a_draft_is_the_one_that_was_typed(
    draft: str, label: str, drafter: str, expected: Speculation
) -> None:
    made = report(settings=(SETTINGS[0], Setting(drafter, draft, label, 4), SETTINGS[2]))
    made = replace(made, drafts={label: made.drafts[LABEL]})

    assert read_bench_results(json.dumps(bench_document(made)), "runs").speculation == expected


@pytest.mark.parametrize(
    "text", ["", "{}", "[]", "null", "1", '{"type":"bench"}', '{"type":"start"}', "[" * 100_000, "\ud800"]
)
def test_another_file_is_refused_by_name(text: str) -> None:
    with pytest.raises(PromptError, match=r"runs\.json"):
        read_bench_results(text, "runs.json")


@given(
    key=st.sampled_from(["target", "recommendation", "results", "drafts"]), value=st.from_type(type(None)) | st.text()
)
def test_a_damaged_document_is_an_error_with_a_code(key: str, value: object) -> None:
    document = {**json.loads(results()), key: value}

    with pytest.raises(PromptError):
        read_bench_results(json.dumps(document), "runs")


@pytest.mark.parametrize(("engine", "target"), [("sglang", "acme/big"), ("llama-server", "/m/t.gguf")])
def test_the_head_in_a_checkpoint_is_refused_where_the_options_were_not_checked(
    engine: EngineName, target: str
) -> None:
    with pytest.raises(SettingsError, match="mtp"):
        launch_command(engine, LaunchRequest(target, Speculation("mtp", False, 2)))
