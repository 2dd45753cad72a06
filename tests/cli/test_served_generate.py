"""`specgen generate --server` against recorded and handmade streams."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest

from specgen.runtime.servers.answer import ServedAnswer
from tests.cli.conftest import Cli
from tests.processes.environment import environment
from tests.runtime.servers.fake import (
    KEY,
    LLAMA_PAGES,
    LLAMA_STREAM,
    LM_STUDIO_PAGES,
    PLAIN_PAGES,
    VLLM_PAGES,
    VLLM_STREAM,
    Reply,
    as_events,
    as_json,
    chunk,
    plain_answer,
    recorded,
    serving,
)

PLAIN_ANSWER = plain_answer()


def generate(cli: Cli, url: str, *options: str) -> Any:
    return cli("generate", "--server", url, "--no-stdin", *options, "Hi")


def document(cli: Cli, url: str, *options: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(generate(cli, url, "--json", *options).out)
    return found


def test_the_answer_is_all_of_stdout(cli: Cli) -> None:
    with serving(VLLM_PAGES, recorded(VLLM_STREAM)) as fake:
        ended = generate(cli, fake.url)

    assert ended.code == 0
    assert ended.out == b"One two three four, one two three four, one two three four\n"


def test_figures_of_llama_server_are_those_it_counts(cli: Cli) -> None:
    with serving(LLAMA_PAGES, recorded(LLAMA_STREAM)) as fake:
        found = document(cli, fake.url)

    stats = found["stats"]
    assert (stats["num_draft_tokens"], stats["num_accepted_draft_tokens"], stats["num_spec_steps"]) == (19, 16, 7)
    assert stats["block_efficiency"] == pytest.approx(1 + 16 / 7)
    assert stats["num_rejected_draft_tokens"] == 1
    assert stats["per_position_acceptance_rate"] == pytest.approx([6 / 7, 5 / 6, 5 / 6])
    assert found["timings"]["tokens_per_s"] == pytest.approx(23 / 10.190594)
    assert found["sources"] == {"acceptance": "response", "decode_s": "response", "ttft_s": "client"}
    assert found["speedup_ceiling"] == pytest.approx(23 / 7)
    assert found["guarantee"] == {"class": "unchecked", "is_lossless": None, "batch_invariance": None}


def test_accepted_tokens_are_marked_as_they_come(cli: Cli) -> None:
    with serving(LLAMA_PAGES, recorded(LLAMA_STREAM)) as fake:
        lines = [json.loads(line) for line in generate(cli, fake.url, "--format", "ndjson").out.splitlines()]

    pieces = [line for line in lines if line["type"] == "piece"]
    assert sum(piece["state"] == "accepted" for piece in pieces) == 16
    assert "".join(piece["text"] for piece in pieces) == lines[-1]["text"]


def test_a_server_that_tells_nothing_gets_no_figures(cli: Cli) -> None:
    with serving(PLAIN_PAGES, PLAIN_ANSWER) as fake:
        found = document(cli, fake.url)

    assert {name: found["stats"][name] for name in ("num_draft_tokens", "num_spec_steps")} == {
        "num_draft_tokens": None,
        "num_spec_steps": None,
    }
    assert found["stats"]["draft_acceptance_rate"] is found["stats"]["draft_share"] is found["speedup"] is None
    assert found["speedup_ceiling"] is None
    assert found["usage"]["completion_tokens"] == 2
    assert found["sources"]["acceptance"] is None


def test_counters_of_the_whole_server_count_if_nobody_else_is_served(cli: Cli) -> None:
    page = (
        "vllm:spec_decode_num_drafts_total {}\nvllm:spec_decode_num_draft_tokens_total {}\n"
        "vllm:spec_decode_num_accepted_tokens_total {}\nvllm:num_requests_running {}\n"
    )
    answer = as_events(chunk("a b c d", "stop"), chunk(usage={"completion_tokens": 5}))
    for running, expected in ((0, "metrics"), (1, None)):
        readings = iter([page.format(7, 21, 9, 0), page.format(9, 27, 12, running)])
        with serving({**VLLM_PAGES, "/metrics": lambda readings=readings: next(readings)}, answer) as fake:
            found = document(cli, fake.url)

        assert found["sources"]["acceptance"] == expected
        assert found["stats"]["num_accepted_draft_tokens"] == (3 if expected else None)
        assert found["stats"]["conditional_acceptance_rate"] is None


def test_contradictory_counts_are_unknown_and_a_notice(cli: Cli) -> None:
    figures = {"num_draft_tokens": 3, "num_accepted_draft_tokens": 4}
    answer = as_events(chunk("a", "stop"), {"choices": [], "metrics": {"speculative_decoding": figures}})
    with serving(VLLM_PAGES, answer) as fake:
        ended = generate(cli, fake.url, "--json")

    assert ended.code == 0
    assert json.loads(ended.out)["stats"]["num_draft_tokens"] is None
    assert "warning" in ended.err


def test_a_baseline_server_gets_the_same_request_and_gives_the_speedup(cli: Cli) -> None:
    def answer(seconds: float, text: str = "a b") -> Reply:
        return as_events(
            chunk(text, timings={"predicted_n": 1, "draft_n": 2, "draft_n_accepted": 1}),
            chunk("c", "length"),
            chunk(usage={"completion_tokens": 3}, timings={"predicted_n": 3, "predicted_ms": 1000 * seconds}),
        )

    with serving(LLAMA_PAGES, answer(2.0)) as fake, serving(LLAMA_PAGES, answer(3.0)) as slow:
        found = document(cli, fake.url, "--baseline-server", slow.url, "-n", "3")
        request, baseline = fake.requests[0], slow.requests[0]

    assert found["speedup"] == pytest.approx(1.5)
    assert found["baseline"]["compared"] is True
    assert found["baseline"]["first_difference"] is None
    assert {**request, "ignore_eos": True} == baseline


def test_a_baseline_of_another_model_is_a_warning(cli: Cli) -> None:
    pages = {**LLAMA_PAGES, "/v1/models": {"data": [{"id": "other", "owned_by": "llamacpp"}]}, "/props": {}}
    with serving(LLAMA_PAGES, recorded(LLAMA_STREAM)) as fake, serving(pages, recorded(LLAMA_STREAM)) as other:
        ended = generate(cli, fake.url, "--baseline-server", other.url)

    assert ended.code == 0
    assert "warning: " in ended.err
    assert "other, not coder" in ended.err


def lm_studio(request: dict[str, Any], *, drafts_always: bool = False) -> Reply:
    """Answers as LM Studio documents it: with counts of drafts if the request names a draft."""
    stats = {"total_draft_tokens_count": 4, "accepted_draft_tokens_count": 3}
    is_drafted = drafts_always or "draft_model" in request
    counted = chunk(usage={"completion_tokens": 5}, **({"stats": stats} if is_drafted else {}))
    return as_events(chunk("one"), chunk(" two", "stop"), counted)


def test_an_engine_that_takes_the_draft_with_the_request_is_its_own_baseline(cli: Cli) -> None:
    with serving(LM_STUDIO_PAGES, lm_studio) as fake:
        found = document(cli, fake.url, "-d", "small")
        shown = generate(cli, fake.url, "-d", "small").err

    drafts = [request.get("draft_model") for request in fake.requests]
    assert drafts == ["small", None, "small", None]
    assert found["baseline"]["method"] == "request"
    assert found["speedup"] > 0
    assert found["stats"]["draft_acceptance_rate"] == pytest.approx(0.75)
    assert "small" in shown


def test_a_baseline_that_drafts_gives_no_speedup(cli: Cli) -> None:
    with serving(LM_STUDIO_PAGES, lambda request: lm_studio(request, drafts_always=True)) as fake:
        ended = generate(cli, fake.url, "-d", "small", "--json")

    assert (ended.code, json.loads(ended.out)["speedup"]) == (0, None)
    assert "warning" in ended.err


@pytest.mark.parametrize("draft", ["small", "lookup", "none", "auto"])
def test_an_engine_that_decided_about_drafts_takes_none(cli: Cli, draft: str) -> None:
    with serving(LLAMA_PAGES, recorded(LLAMA_STREAM)) as fake:
        assert generate(cli, fake.url, "-d", draft).code == 2
        assert fake.requests == []


def test_the_command_that_starts_a_baseline_is_given_with_the_ceiling(cli: Cli) -> None:
    with serving(VLLM_PAGES, recorded(VLLM_STREAM)) as fake:
        found, shown = document(cli, fake.url), generate(cli, fake.url).err
    port = int(fake.url.rpartition(":")[2]) + 1

    assert found["baseline_command"] == f"vllm serve /models/smol --port {port} --enable-per-request-metrics"
    assert "vllm serve /models/smol" in " ".join(shown.split())


def test_reasoning_is_shown_in_its_marks(cli: Cli) -> None:
    thought = {"choices": [{"delta": {"reasoning_content": "hm"}}]}
    with serving(PLAIN_PAGES, as_events(thought, chunk("yes", "stop"))) as fake:
        assert generate(cli, fake.url).out == b"<think>\nhm\n</think>\n\nyes\n"


@pytest.mark.parametrize(
    ("reply", "code", "name"),
    [
        (as_json({}, 401), 10, "server_denied"),
        (as_json({}, 500), 10, "server_failed"),
        (as_json({}, 503, Retry_After="999"), 10, "server_busy"),
        (as_json({"error": {"message": "exceeds the available context size"}}, 400), 2, "prompt"),
        (Reply(as_events(chunk("half")).parts[:1], is_cut=True), 10, "server_failed"),
    ],
)
def test_a_failure_keeps_the_text_and_one_valid_document(cli: Cli, reply: Reply, code: int, name: str) -> None:
    with serving(PLAIN_PAGES, reply) as fake:
        ended = generate(cli, fake.url, "--json")

    found = json.loads(ended.out)
    error = found.get("error", found)
    assert (ended.code, error["code"], error["exit_code"]) == (code, name, code)
    if reply.is_cut:
        assert (found["text"], found["finish_reason"]) == ("half", "error")


def test_a_server_that_is_not_there_ends_with_10(cli: Cli) -> None:
    with serving(PLAIN_PAGES) as fake:
        url = fake.url

    assert generate(cli, url).code == 10


@pytest.mark.parametrize(
    "options",
    [
        ("--quant", "nf4"),
        ("-d", "lookup"),
        ("-k", "4"),
        ("--device", "cpu"),
        ("--threads", "2"),
        ("--chat-template", "none"),
        ("--lookup-file", "x"),
        ("--same-text",),
        ("--min-p", "0.1"),
        ("--ignore-eos",),
    ],
)
def test_what_the_server_decided_or_does_not_know_is_refused(cli: Cli, options: tuple[str, ...]) -> None:
    with serving(PLAIN_PAGES, PLAIN_ANSWER) as fake:
        ended = generate(cli, fake.url, *options)
        assert fake.requests == []

    assert ended.code == 2
    assert options[0].lstrip("-")[0] in ended.err


def test_settings_of_the_environment_for_local_models_are_ignored(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("SPECGEN_QUANT", "nf4"), ("SPECGEN_DRAFT_TOKENS", "3"), ("SPECGEN_TARGET", "local")):
        monkeypatch.setenv(name, value)
    with serving(PLAIN_PAGES, PLAIN_ANSWER) as fake:
        monkeypatch.setenv("SPECGEN_SERVER", fake.url)
        assert cli("generate", "--no-stdin", "Hi").code == 0


def test_a_baseline_server_alone_is_refused(cli: Cli) -> None:
    assert cli("generate", "--baseline-server", "http://localhost:1", "--no-stdin", "Hi").code == 2


def test_text_of_a_server_is_as_untrusted_as_a_model(cli: Cli) -> None:
    pages = {"/v1/models": {"data": [{"id": "evil\x1b]0;x\x07"}]}}
    with serving(pages, as_events(chunk("a\x1b[2Jb\u202e", "stop"))) as fake:
        ended = generate(cli, fake.url, "--view", "text", "--sanitize", "always")
        as_json_ = generate(cli, fake.url, "--json")

    for output in (ended.out, ended.err.encode(), as_json_.out):
        assert b"\x1b" not in output
        assert "\u202e".encode() not in output


def test_the_key_is_in_no_output(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_KEY", KEY)
    replies = (PLAIN_ANSWER, as_json({"error": {"message": f"bad {KEY}"}}, 401), as_json({"error": KEY}, 500))
    for reply in replies:
        with serving(PLAIN_PAGES, reply) as fake:
            ended = generate(cli, fake.url, "--api-key-env", "MY_KEY", "-vv", "--format", "ndjson")
            assert fake.headers[-1]["Authorization"] == f"Bearer {KEY}"
        assert KEY.encode() not in ended.out
        assert KEY not in ended.err
    refused = generate(cli, "http://far.example:8000", "--api-key-env", "MY_KEY")
    assert (refused.code, KEY in refused.err) == (2, False)


@pytest.mark.parametrize("url", ["http://me:pw-123@h", "nonsense"])
def test_a_bad_url_ends_with_2_and_repeats_no_password(cli: Cli, url: str) -> None:
    ended = generate(cli, url)

    assert (ended.code, "pw-123" in ended.err) == (2, False)


@pytest.mark.process
def test_the_process_imports_no_library_of_models_and_does_not_show_the_key() -> None:
    code = (
        "import sys; from specgen.cli.app import run; code = run(sys.argv[1:]);"
        "print(code, {'torch', 'transformers', 'tokenizers', 'numpy', 'jinja2'} & set(sys.modules))"
    )
    listed: list[str] = []

    def answered(request: dict[str, Any]) -> Reply:
        listed.append(subprocess.run(["ps", "-A", "-ww", "-o", "args"], capture_output=True, text=True).stdout)
        return PLAIN_ANSWER

    with serving(PLAIN_PAGES, answered) as fake:
        words = [sys.executable, "-c", code, "generate", "--server", fake.url, "--no-stdin", "Hi"]
        variables = environment(SPECGEN_API_KEY=KEY)
        ended = subprocess.run(words, capture_output=True, text=True, check=True, env=variables)
        assert fake.headers[-1]["Authorization"] == f"Bearer {KEY}"

    assert ended.stdout.splitlines()[-1] == "0 set()"
    assert fake.url in listed[0]
    assert KEY not in listed[0] + ended.stdout + ended.stderr


def test_ctrl_c_keeps_the_text_and_exits_with_130(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    pieces = ServedAnswer._pieces

    def stopped(answer: ServedAnswer, delta: Any) -> Iterator[Any]:
        yield from pieces(answer, delta)
        if delta.text == "one":
            signal.raise_signal(signal.SIGINT)

    monkeypatch.setattr(ServedAnswer, "_pieces", stopped)
    with serving(PLAIN_PAGES, PLAIN_ANSWER) as fake:
        ended = generate(cli, fake.url)

    assert ended.code == 130
    assert ended.out == b"one\n"


def test_a_host_without_an_address_ends_with_10(cli: Cli) -> None:
    assert generate(cli, "http://nobody.invalid:8000").code == 10


def test_a_failed_tls_handshake_ends_with_10(cli: Cli) -> None:
    with serving(PLAIN_PAGES, PLAIN_ANSWER) as fake:
        assert generate(cli, fake.url.replace("http:", "https:")).code == 10
        assert not fake.headers


def test_a_redirect_is_not_followed_with_the_key(cli: Cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SPECGEN_API_KEY", KEY)
    with serving(PLAIN_PAGES, PLAIN_ANSWER) as other:
        moved = as_json({}, 307, Location=f"{other.url}/v1/models")
        with serving({"/v1/models": moved}, PLAIN_ANSWER) as first:
            ended = generate(cli, first.url)

    assert ended.code == 10
    assert first.headers[0]["Authorization"].endswith(KEY)
    assert not other.headers
