"""Hub models: from the cache at once, from the hub once, and each refusal with its own cure."""

from __future__ import annotations

import errno
import shutil
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from specgen.core.errors import LoadError, ModelFileError, ModelNotFoundError, SettingsError
from specgen.core.settings import ModelSettings
from specgen.loading import hub, hub_errors
from specgen.loading.config_check import check_folder
from specgen.loading.hub import fetch_snapshot
from specgen.loading.names import hint_for
from specgen.loading.resolve import find_files
from specgen.text.tokenizer import load_tokenizer
from tests.loading.builders import RecordedProgress, fails, make_folder
from tests.loading.hub_server import COMMIT, LoopHub

CANARY = "hf_canaryCANARYcanaryCANARYcanaryCA"
SETTINGS = ModelSettings("owner/tiny")


@pytest.fixture
def connect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Points the client to an address, with an empty cache and a token that must never be seen."""
    from huggingface_hub import constants

    def point(url: str) -> None:
        monkeypatch.setenv("HF_ENDPOINT", url)
        monkeypatch.setenv("HF_TOKEN", CANARY)
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.delenv("HF_HUB_OFFLINE", raising=False)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", url + "/{repo_id}/resolve/{revision}/{filename}")
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)

    return point


@pytest.fixture
def server(tmp_path: Path, connect: Callable[[str], None]) -> Iterator[Callable[..., LoopHub]]:
    """Starts a hub with a tiny model; its options are the failures."""
    running: list[LoopHub] = []

    def start(**options: Any) -> LoopHub:
        model = tmp_path / "model"
        if not model.exists():
            make_folder(model)
            (model / "pytorch_model.bin").write_bytes(b"pickle")
            (model / "evil.py").write_text("raise SystemExit")
        served = LoopHub(model, **options)
        served.__enter__()
        running.append(served)
        connect(served.url)
        return served

    yield start
    for served in running:
        served.__exit__()


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """No waiting between the client's own attempts."""
    from huggingface_hub.utils import _http

    monkeypatch.setattr(_http.time, "sleep", lambda seconds: None)


# downloads


def test_a_model_is_downloaded_without_its_code_and_pickles(server: Callable[..., LoopHub]) -> None:
    server()

    snapshot = fetch_snapshot(SETTINGS)

    names = {path.name for path in snapshot.iterdir()}
    assert {"config.json", "model.safetensors", "tokenizer.json", "generation_config.json"} <= names
    assert not {"pytorch_model.bin", "evil.py"} & names
    assert check_folder(snapshot).model_type == "llama"


def test_the_commit_is_reported(server: Callable[..., LoopHub]) -> None:
    server()

    prepared = find_files(SETTINGS)

    assert (prepared.name, prepared.revision, prepared.from_gguf) == ("owner/tiny", COMMIT, False)


def test_the_bytes_are_reported(server: Callable[..., LoopHub]) -> None:
    server()
    report = RecordedProgress()

    snapshot = fetch_snapshot(SETTINGS, report)

    total = sum(path.stat().st_size for path in snapshot.iterdir())
    assert report.stages == ["downloading owner/tiny"]
    assert report.sizes[-1] == (total, total)


@pytest.mark.fault("F70")
def test_a_cached_model_needs_no_network(server: Callable[..., LoopHub]) -> None:
    served = server()
    first = fetch_snapshot(SETTINGS)
    served.requests.clear()

    assert fetch_snapshot(SETTINGS) == first
    assert fetch_snapshot(ModelSettings("owner/tiny", offline=True)) == first
    assert served.requests == []


@pytest.mark.parametrize("listed", [True, False])
def test_a_snapshot_without_weights_is_completed(server: Callable[..., LoopHub], listed: bool) -> None:
    server()
    snapshot = fetch_snapshot(SETTINGS)
    if not listed:  # an older client keeps no list of the files that belong to a snapshot
        shutil.rmtree(snapshot.parents[1] / "trees")
    (snapshot / "model.safetensors").unlink()

    assert (fetch_snapshot(SETTINGS) / "model.safetensors").exists()


@pytest.mark.fault("F171")
@pytest.mark.parametrize("listed", [True, False])
def test_a_snapshot_without_a_tokenizer_is_completed(server: Callable[..., LoopHub], listed: bool) -> None:
    served = server()
    snapshot = fetch_snapshot(SETTINGS)
    if not listed:
        shutil.rmtree(snapshot.parents[1] / "trees")
        (snapshot / "tokenizer.json").unlink()
        offline = ModelSettings("owner/tiny", offline=True)
        assert fetch_snapshot(offline) == snapshot
        error = fails(ModelFileError, lambda: load_tokenizer(snapshot), "no tokenizer", "--local-dir")
        assert error.exit_code == 3
        served.status = 503
        assert fails(LoadError, lambda: fetch_snapshot(SETTINGS))
        served.status = 200
    else:
        (snapshot / "tokenizer.json").unlink()

    assert (fetch_snapshot(SETTINGS) / "tokenizer.json").exists()


@pytest.mark.fault("F68")
def test_an_interrupted_download_is_reported(
    server: Callable[..., LoopHub], connect: Callable[[str], None], quick: None
) -> None:
    served = server(cut=5000)

    error = fails(LoadError, lambda: fetch_snapshot(SETTINGS), "owner/tiny")
    assert error.exit_code == 3
    offline = ModelSettings("owner/tiny", offline=True)
    fails(ModelNotFoundError, lambda: fetch_snapshot(offline), "owner/tiny")

    served.cut = None
    assert check_folder(fetch_snapshot(SETTINGS)).num_parameters == 22_688


# F70


@pytest.mark.fault("F70")
def test_an_unreachable_hub_is_reported_within_two_seconds(connect: Callable[[str], None]) -> None:
    connect("http://127.0.0.1:9")
    begin = time.monotonic()

    fails(ModelNotFoundError, lambda: fetch_snapshot(SETTINGS), "owner/tiny", "127.0.0.1")
    assert time.monotonic() - begin < 2


def test_a_name_server_that_never_answers_is_not_waited_for(
    connect: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    answer, answered = threading.Event(), threading.Event()

    def silent(*args: object, **options: object) -> None:
        answer.wait()
        answered.set()
        raise OSError

    connect("https://hub.example")
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.05)
    monkeypatch.setattr(socket, "create_connection", silent)

    fails(ModelNotFoundError, lambda: fetch_snapshot(SETTINGS), "hub.example")
    answer.set()
    answered.wait()


@pytest.mark.fault("F70")
def test_a_hub_that_accepts_and_says_nothing_is_not_waited_for(
    server: Callable[..., LoopHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.6)
    served = server(stalls=True)
    begin = time.monotonic()

    fails(ModelNotFoundError, lambda: fetch_snapshot(SETTINGS), "127.0.0.1")
    assert time.monotonic() - begin < 2 + hub.PROBE_SECONDS
    assert served.requests == ["HEAD /"]
    assert served.tokens == [None]


@pytest.mark.parametrize("answer", [b"\x15", b""], ids=["an alert", "nothing"])
def test_a_hub_with_tls_is_reachable_if_it_responds(
    connect: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, answer: bytes
) -> None:
    monkeypatch.setattr(hub, "ANSWER_SECONDS", 0.3)
    heard: list[bytes] = []
    with socket.create_server(("127.0.0.1", 0)) as listening:

        def answer_one() -> None:
            accepted, _ = listening.accept()
            with accepted:
                heard.append(accepted.recv(1 << 16))
                accepted.sendall(answer)
                accepted.recv(1)  # until the probe has left

        thread = threading.Thread(target=answer_one)
        thread.start()
        connect(f"https://localhost:{listening.getsockname()[1]}")
        monkeypatch.setenv("no_proxy", "localhost")

        assert hub.is_reachable() is bool(answer)
        thread.join()
    assert heard[0].startswith(b"\x16\x03")  # a TLS handshake
    assert b"localhost" in heard[0]


@pytest.mark.parametrize(
    ("proxy", "endpoint", "greeting"),
    [
        ("http://proxy:3128", "https://hub.example", b"CONNECT hub.example:443 HTTP/1.1\r\nHost: hub.example:443\r\n"),
        ("http://proxy:3128", "http://hub.example", b"HEAD http://hub.example HTTP/1.1\r\nHost: hub.example\r\n"),
        ("socks5://proxy:1080", "https://hub.example", b""),
    ],
)
def test_a_proxy_is_greeted_in_its_own_language(proxy: str, endpoint: str, greeting: bytes) -> None:
    assert hub._probe_request(urlsplit(proxy), urlsplit(endpoint)).startswith(greeting)
    assert bool(hub._probe_request(urlsplit(proxy), urlsplit(endpoint))) == bool(greeting)


def test_a_proxy_is_used_instead_of_the_hub(server: Callable[..., LoopHub], monkeypatch: pytest.MonkeyPatch) -> None:
    served = server()
    for name in ("no_proxy", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setenv("https_proxy", served.url)

    assert hub.is_reachable()


@pytest.mark.parametrize("value", ["1", "true", "YES", "on"])
def test_hf_hub_offline_disables_downloads(
    connect: Callable[[str], None], monkeypatch: pytest.MonkeyPatch, value: str
) -> None:
    connect("http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_OFFLINE", value)

    fails(ModelNotFoundError, lambda: fetch_snapshot(SETTINGS), "HF_HUB_OFFLINE")


@pytest.mark.fault("F70")
def test_offline_never_opens_a_connection(connect: Callable[[str], None], monkeypatch: pytest.MonkeyPatch) -> None:
    connect("http://127.0.0.1:9")
    monkeypatch.setattr(socket, "create_connection", lambda *args, **options: pytest.fail("connected"))

    fails(
        ModelNotFoundError,
        lambda: fetch_snapshot(ModelSettings("owner/tiny", offline=True)),
        "owner/tiny",
        "--offline",
    )


# F71


@pytest.mark.parametrize(
    ("status", "code", "kind", "parts"),
    [
        (403, "GatedRepo", ModelNotFoundError, ("owner/tiny", "hf auth login")),
        (401, "GatedRepo", ModelNotFoundError, ("owner/tiny", "hf auth login")),
        (404, "RepoNotFound", ModelNotFoundError, ("owner/tiny", "hf auth login")),
        (401, "RepoNotFound", ModelNotFoundError, ("owner/tiny", "hf auth login")),
        (404, "RevisionNotFound", ModelNotFoundError, ("'v9'", "--revision")),
        (403, None, LoadError, ("HTTP 403", "hf auth login")),
        (429, None, LoadError, ("HTTP 429", "hf auth login")),
        (500, None, LoadError, ("HTTP 500",)),
        (503, None, LoadError, ("HTTP 503",)),
    ],
)
@pytest.mark.fault("F71")
def test_each_refusal_has_its_own_hint(
    server: Callable[..., LoopHub],
    quick: None,
    capfd: pytest.CaptureFixture[str],
    status: int,
    code: str | None,
    kind: type[LoadError],
    parts: tuple[str, ...],
) -> None:
    served = server(status=status, code=code)

    error = fails(kind, lambda: fetch_snapshot(ModelSettings("owner/tiny", revision="v9")), *parts)

    assert error.exit_code == 3
    assert f"Bearer {CANARY}" in served.tokens  # the client does send it, to the hub only
    assert CANARY not in f"{error.message}{error.hint}"
    assert CANARY not in "".join(capfd.readouterr())


def test_an_invalid_hub_id_is_reported(connect: Callable[[str], None]) -> None:
    connect("http://127.0.0.1:9")

    fails(ModelNotFoundError, lambda: fetch_snapshot(ModelSettings("a--b/c..d")), "'a--b/c..d'")


def test_a_name_near_a_folder_here_is_suggested(
    connect: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect("http://127.0.0.1:9")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "smollm2").mkdir(parents=True)

    fails(
        ModelNotFoundError,
        lambda: find_files(ModelSettings("models/smolm2")),
        "models/smollm2",
    )


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("lokup", "--draft lookup"),
        ("Lookup", "--draft lookup"),
        ("smollm2-135m-instuct", "smollm2-135m-instruct"),
        ("acme/tiny-2B", "acme/tiny-1B"),
    ],
)
def test_a_misspelled_word_or_model_of_this_machine_is_suggested(
    connect: Callable[[str], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, meant: str
) -> None:
    connect("http://127.0.0.1:9")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    (tmp_path / "models--acme--tiny-1B" / "snapshots" / "abc").mkdir(parents=True)
    (tmp_path / "models--acme--tiny-1B" / "snapshots" / "abc" / "config.json").touch()

    fails(ModelNotFoundError, lambda: find_files(ModelSettings(name)), meant)


def test_a_name_without_similar_names_gets_no_suggestion(connect: Callable[[str], None]) -> None:
    connect("http://127.0.0.1:9")

    with pytest.raises(ModelNotFoundError) as caught:
        find_files(ModelSettings("acme/other"))
    assert caught.value.hint
    assert hint_for("acme/other", caught.value.hint) == caught.value.hint


# F72


@pytest.mark.fault("F72")
def test_a_full_disk_is_reported(server: Callable[..., LoopHub], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    server()
    real = huggingface_hub.snapshot_download

    def full(*args: Any, **options: Any) -> str:
        if options.get("local_files_only"):
            return real(*args, **options)
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", full)

    fails(LoadError, lambda: fetch_snapshot(SETTINGS), "disk", "HF_HOME")


@pytest.mark.fault("F69")
def test_a_damaged_download_is_reported(server: Callable[..., LoopHub], monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    server()
    real = huggingface_hub.snapshot_download

    def damaged(*args: Any, **options: Any) -> str:
        if options.get("local_files_only"):
            return real(*args, **options)
        raise OSError("Consistency check failed: file should be of size 5 but has size 4")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", damaged)

    fails(ModelFileError, lambda: fetch_snapshot(SETTINGS), "owner/tiny")


@pytest.mark.thorough
@pytest.mark.fault("F131")
def test_a_slow_hub_is_waited_for_as_the_client_does(
    server: Callable[..., LoopHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(hub, "PROBE_SECONDS", 0.1)
    server(late=0.2)

    assert check_folder(fetch_snapshot(SETTINGS)).model_type == "llama"


@pytest.mark.fault("F132")
@pytest.mark.parametrize("name", ["ALL_PROXY", "all_proxy", "HTTPS_PROXY"])
def test_every_variable_for_a_proxy_is_honoured(
    server: Callable[..., LoopHub], monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    served = server()
    for other in ("no_proxy", "NO_PROXY", "http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY", "all_proxy"):
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv("HF_ENDPOINT", "https://hub.invalid")
    monkeypatch.setenv(name, served.url)

    assert hub.is_reachable()


@pytest.mark.fault("F132")
def test_a_socks_proxy_names_the_package_it_needs(
    server: Callable[..., LoopHub], monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import _http

    server()
    monkeypatch.delenv("no_proxy")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.setitem(sys.modules, "socksio", None)
    monkeypatch.setattr(hub, "is_reachable", lambda: True)
    monkeypatch.setenv("ALL_PROXY", "socks5://127.0.0.1:9")
    _http.close_session()  # so that a client is made in this environment

    try:
        error = fails(LoadError, lambda: fetch_snapshot(SETTINGS), "SOCKS", "pip install socksio")
    finally:
        _http.close_session()
    assert error.exit_code == 3


@pytest.mark.fault("F133")
@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes a certificate with openssl")
def test_an_unknown_certificate_is_named_and_the_remedy_works(
    server: Callable[..., LoopHub], quick: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub.utils import _http

    file = tmp_path / "certificate.pem"
    subject = ("-subj", "/CN=hub", "-addext", "subjectAltName=IP:127.0.0.1")
    command = ("openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", file, "-out", tmp_path / "c.pem")
    subprocess.run([*command, *subject], check=True, capture_output=True)
    file.write_bytes(file.read_bytes() + (tmp_path / "c.pem").read_bytes())
    server(certificate=file)
    _http.close_session()

    try:
        error = fails(LoadError, lambda: fetch_snapshot(SETTINGS), "certificate", "127.0.0.1", "SSL_CERT_FILE")
        assert error.exit_code == 3
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "c.pem"))
        _http.close_session()
        assert check_folder(fetch_snapshot(SETTINGS)).model_type == "llama"
    finally:
        _http.close_session()


@pytest.mark.fault("F133")
@pytest.mark.parametrize(
    "content", [None, "no certificate", "-----BEGIN CERTIFICATE-----\nx\n-----END CERTIFICATE-----"]
)
def test_a_file_of_certificates_that_can_not_be_read_is_named(
    content: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    path = tmp_path / "bundle.pem"
    if content is not None:
        path.write_text(content)
    monkeypatch.setenv("SSL_CERT_FILE", str(path))
    try:
        ssl.create_default_context(cafile=str(path))  # what the client does
    except OSError as error:
        found = hub_errors.translated(error, "owner/tiny", None)

    assert str(path) in found.message
    assert "SSL_CERT_FILE" in (found.hint or "")


@pytest.mark.fault("F132")
@pytest.mark.parametrize("proxy", ["http://user:secret@127.0.0.1:9", "socks5h://127.0.0.1:9", "127.0.0.1:9"])
def test_a_proxy_that_can_not_be_reached_is_named(
    proxy: str, connect: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect("http://hub.example")
    monkeypatch.setenv("no_proxy", "")
    monkeypatch.setenv("all_proxy", proxy)

    error = fails(ModelNotFoundError, lambda: fetch_snapshot(SETTINGS), "proxy 127.0.0.1:9", "ALL_PROXY")

    assert "secret" not in str(error)


@pytest.mark.fault("F134")
def test_a_cache_that_cannot_be_written_is_named(
    server: Callable[..., LoopHub], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from huggingface_hub import constants

    server()
    (tmp_path / "file").touch()
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "file" / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "file" / "hub"))

    fails(LoadError, lambda: fetch_snapshot(SETTINGS), str(tmp_path / "file" / "hub"), "HF_HOME")


@pytest.mark.fault("F134")
def test_a_cache_whose_file_system_names_another_reason_is_named(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "hub"))
    # As below /proc, and in folders of some FUSE file systems.
    for folder in (tmp_path / "hub" / "models--owner--tiny", tmp_path):
        error = FileNotFoundError(errno.ENOENT, "no", str(folder))

        found = hub_errors.translated(error, "owner/tiny", None)

        assert str(tmp_path / "hub") in found.message
        assert "HF_HOME" in (found.hint or "")


@pytest.mark.fault("F166")
def test_a_token_that_can_not_be_sent_is_named(server: Callable[..., LoopHub], monkeypatch: pytest.MonkeyPatch) -> None:
    server()
    monkeypatch.setenv("HF_TOKEN", "ключ")

    error = fails(LoadError, lambda: fetch_snapshot(SETTINGS), "token", "ASCII")

    assert "ключ" not in error.message


@pytest.mark.fault("F134")
@pytest.mark.parametrize("code", [errno.EACCES, errno.EROFS])
def test_a_read_only_cache_is_named_however_the_client_wraps_it(code: int) -> None:
    try:
        raise RuntimeError("client") from OSError(code, "no")
    except RuntimeError as error:
        found = hub_errors.translated(error, "owner/tiny", None)

    assert "cache" in found.message
    assert "HF_HOME" in (found.hint or "")


@pytest.mark.fault("F135")
@pytest.mark.parametrize(
    ("kept", "parts"),
    [
        (("pytorch_model.bin",), ("pytorch_model.bin", "safetensors")),
        (("a-Q4_K_M.gguf", "b-Q8_0.gguf"), ("GGUF", "a-Q4_K_M.gguf", "b-Q8_0.gguf", "hf download owner/tiny")),
    ],
)
def test_a_repository_without_safetensors_is_described(
    server: Callable[..., LoopHub], kept: tuple[str, ...], parts: tuple[str, ...]
) -> None:
    served = server()
    for file in list(served.folder.iterdir()):
        if file.suffix in (".safetensors", ".bin") or "gguf" in kept[0]:
            file.unlink()
    for name in kept:
        (served.folder / name).write_bytes(b"x")

    fails(ModelFileError, lambda: fetch_snapshot(SETTINGS), *parts)


@pytest.mark.fault("F136")
@pytest.mark.parametrize(
    "name", ["https://huggingface.co/owner/tiny", "hf.co/owner/tiny/", "owner/tiny/", "owner/tiny@main"]
)
def test_a_pasted_name_is_downloaded(server: Callable[..., LoopHub], name: str) -> None:
    server()

    files = find_files(ModelSettings(name))

    assert (files.name, files.revision) == ("owner/tiny", COMMIT)


@pytest.mark.fault("F136")
def test_an_endpoint_without_a_scheme_is_a_settings_error(connect: Callable[[str], None]) -> None:
    connect("hf-mirror.com")

    fails(SettingsError, lambda: fetch_snapshot(SETTINGS), "HF_ENDPOINT", "https://hf-mirror.com")


@pytest.mark.fault("F169")
@pytest.mark.parametrize("reference", [None, COMMIT + "\n", "b" * 40])
@pytest.mark.parametrize("offline", [True, False])
def test_a_copied_cache_without_a_branch_is_named(
    connect: Callable[[str], None], tmp_path: Path, reference: str | None, offline: bool
) -> None:
    connect("http://127.0.0.1:9")
    cached = tmp_path / "hub" / "models--owner--tiny"
    make_folder(cached / "snapshots" / COMMIT)
    (cached / "refs").mkdir()
    if reference is not None:
        (cached / "refs" / "main").write_text(reference)

    settings = ModelSettings("owner/tiny", offline=offline)
    error = fails(ModelNotFoundError, lambda: fetch_snapshot(settings), f"--revision {COMMIT}")

    assert error.exit_code == 3
    assert fetch_snapshot(ModelSettings("owner/tiny", revision=COMMIT)).name == COMMIT


@pytest.mark.fault("F166")
@pytest.mark.parametrize("url", ["http://[::1", "http://127.0.0.1:99999x", "ftp://127.0.0.1", ""])
def test_an_address_that_can_not_be_read_is_a_settings_error(connect: Callable[[str], None], url: str) -> None:
    connect(url)

    fails(SettingsError, lambda: fetch_snapshot(SETTINGS), "HF_ENDPOINT")


@pytest.mark.fault("F166")
def test_a_proxy_whose_address_can_not_be_read_is_a_settings_error(
    connect: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    connect("http://hub.example")
    monkeypatch.setenv("http_proxy", "http://[::1")

    fails(SettingsError, lambda: fetch_snapshot(SETTINGS), "HTTPS_PROXY")
