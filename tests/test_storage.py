"""Image files by unguessable name: in a folder, in memory, and on a real S3 server."""

from __future__ import annotations

import http.server
import json
import os
import re
import socket
import subprocess
import sys
import textwrap
import threading
import time
import urllib.request
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from sana_service import metrics
from sana_service import storage as storage_module
from sana_service.storage import Storage, StorageError, StoredFile

TTL = 60
HOSTILE_NAMES = [
    "",
    ".",
    "..",
    "../secret.png",
    "a" * 32,
    "a" * 31 + ".png",
    "a" * 33 + ".png",
    "A" * 32 + ".png",
    "g" * 32 + ".png",
    "a" * 32 + ".gif",
    "a" * 32 + ".PNG",
    "a" * 32 + ".png\n",
    "a" * 32 + ".png\0",
    "a" * 32 + ".png/..",
    "./" + "a" * 32 + ".png",
    "." + "a" * 32 + ".png.part",
    "٣" * 32 + ".png",
]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "made on demand" / "files"


@pytest.fixture
def local(folder: Path) -> Storage:
    return Storage(folder.as_uri(), TTL)


def _age(path: Path, seconds: float) -> None:
    then = time.time() - seconds
    os.utime(path, (then, then))


@pytest.fixture(scope="module")
def s3_url() -> Iterator[str]:
    """Moto's S3 server in a process of its own."""
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = subprocess.Popen(
        [Path(sys.executable).with_name("moto_server"), "-H", "127.0.0.1", "-p", str(port)],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    url = f"http://127.0.0.1:{port}"
    try:
        deadline = time.monotonic() + 30
        while True:
            assert server.poll() is None, "moto_server ended"
            assert time.monotonic() < deadline, "moto_server did not answer"
            try:
                urllib.request.urlopen(f"{url}/moto-api/", timeout=1).close()
                break
            except OSError:
                continue
        yield url
    finally:
        server.kill()
        server.wait()


def _counts(operation: str) -> tuple[float, float]:
    """Errors and retries of an operation so far."""
    errors, retries = (
        metrics.REGISTRY.get_sample_value(f"sana_storage_{kind}_total", {"operation": operation})
        for kind in ("errors", "retries")
    )
    assert errors is not None
    assert retries is not None
    return errors, retries


def _aim_at(patch: pytest.MonkeyPatch, url: str) -> None:
    for name, value in {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
    }.items():
        patch.setenv(name, value)


@pytest.fixture(scope="module")
def bucket(s3_url: str) -> Iterator[Any]:
    """AWS's own client of the server, on which the bucket `images` is; the environment points there."""
    import boto3

    with pytest.MonkeyPatch.context() as patch:
        _aim_at(patch, s3_url)
        client = boto3.client("s3")
        client.create_bucket(Bucket="images")
        yield client
        client.close()


@pytest.fixture(scope="module")
def s3(bucket: Any) -> Storage:
    return Storage("s3://images/some/prefix", TTL)


@pytest.fixture(params=["local", "memory", "s3"])
def storage(request: pytest.FixtureRequest) -> Storage:
    if request.param == "memory":
        return Storage("memory://images", TTL)
    made = request.getfixturevalue(request.param)
    assert isinstance(made, Storage)
    return made


class TestEveryBackend:
    def test_gives_back_what_was_put(self, storage: Storage) -> None:
        before = time.time()
        data = bytes(range(256)) * 4096
        for extension, content_type in {
            "jpg": "image/jpeg",
            "png": "image/png",
            "webp": "image/webp",
        }.items():
            name = storage.put(data, extension)
            assert re.fullmatch(r"[0-9a-f]{32}\." + extension, name)
            stored = storage.open(name)
            assert stored is not None
            assert stored == StoredFile(data, content_type, stored.modified)
            assert stored.size_bytes == 1_048_576
            # S3 counts whole seconds.
            assert before - 1 <= stored.modified <= time.time() + 1

    def test_holds_an_empty_file(self, storage: Storage) -> None:
        stored = storage.open(storage.put(b"", "png"))
        assert stored is not None
        assert stored.data == b""

    def test_names_differ(self, storage: Storage) -> None:
        assert len({storage.put(b"same", "jpg") for _ in range(20)}) == 20

    def test_absent_is_none(self, storage: Storage) -> None:
        assert storage.open("0" * 32 + ".png") is None

    def test_delete_is_done_once_and_twice(self, storage: Storage) -> None:
        name = storage.put(b"x", "jpg")
        other = storage.put(b"y", "jpg")
        storage.delete(name)
        assert storage.open(name) is None
        storage.delete(name)
        assert storage.open(other) is not None

    @pytest.mark.parametrize("name", HOSTILE_NAMES)
    def test_other_names_are_never_looked_up(self, storage: Storage, name: str) -> None:
        assert storage.open(name) is None
        storage.delete(name)

    @pytest.mark.parametrize("extension", ["", "gif", "jpeg", "png/../../x", "JPG"])
    def test_other_extensions_are_refused(self, storage: Storage, extension: str) -> None:
        with pytest.raises(ValueError, match="extension must be one of jpg, png, webp"):
            storage.put(b"x", extension)

    def test_check_leaves_nothing(self, storage: Storage, folder: Path) -> None:
        storage.check()
        if folder.exists():
            assert list(folder.iterdir()) == []

    def test_serves_threads_at_once(self, storage: Storage) -> None:
        def round_trip(number: int) -> bool:
            data = str(number).encode() * 1000
            stored = storage.open(storage.put(data, "png"))
            return stored is not None and stored.data == data

        with ThreadPoolExecutor(8) as pool:
            assert all(pool.map(round_trip, range(32)))


class TestFolder:
    def test_is_made_for_its_owner_alone(self, local: Storage, folder: Path) -> None:
        assert folder.stat().st_mode & 0o777 == 0o700
        name = local.put(b"abc", "png")
        assert (folder / name).read_bytes() == b"abc"

    def test_survives_its_removal(self, local: Storage, folder: Path) -> None:
        name = local.put(b"x", "png")
        (folder / name).unlink()
        folder.rmdir()
        assert local.open(name) is None
        assert local.expire(time.time()) == 0
        assert local.open(local.put(b"y", "png")) is not None

    def test_a_file_is_whole_or_absent(self, local: Storage, folder: Path) -> None:
        data = os.urandom(8_000_000)
        done = threading.Event()
        sizes: list[int] = []

        def watch() -> None:
            while not done.is_set():
                sizes.extend(path.stat().st_size for path in folder.glob("[0-9a-f]*.png"))

        with ThreadPoolExecutor(1) as pool:
            watching = pool.submit(watch)
            for _ in range(5):
                local.put(data, "png")
            deadline = time.monotonic() + 10
            while not sizes and time.monotonic() < deadline:
                pass
            done.set()
            watching.result()
        assert set(sizes) == {8_000_000}
        assert {path.suffix for path in folder.iterdir()} == {".png"}

    def test_a_full_disk_is_an_error_and_leaves_nothing(self, folder: Path) -> None:
        """The kernel refuses to write past a megabyte, in a process that the limit cannot outlive."""
        script = f"""
            import resource
            from sana_service.storage import Storage, StorageError
            storage = Storage({folder.as_uri()!r}, 60)
            kept = storage.put(b"x" * 1000, "png")
            resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
            try:
                storage.put(b"x" * (2 << 20), "png")
            except StorageError as error:
                print(error, type(error.__cause__).__name__, storage.open(kept).size_bytes, sep="|")
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(script)],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        assert done.stdout == f"{folder} cannot be written to: File too large|OSError|1000\n", done.stderr
        assert len(list(folder.iterdir())) == 1

    def test_expired_is_none_before_the_sweep(self, local: Storage, folder: Path) -> None:
        young, old = local.put(b"young", "png"), local.put(b"old", "png")
        _age(folder / young, TTL - 5)
        _age(folder / old, TTL + 5)
        assert local.open(young) is not None
        assert local.open(old) is None
        assert (folder / old).exists()

    def test_expire_deletes_what_is_old_and_nothing_else(self, local: Storage, folder: Path) -> None:
        now = time.time()
        images = [local.put(b"x", extension) for extension in ("jpg", "png", "webp", "png")]
        ages = [TTL - 1, TTL + 1, TTL + 1, 0]
        stale = folder / f".{'a' * 32}.png.part"
        writing = folder / f".{'b' * 32}.png.part"
        others = [
            folder / "notes.txt",
            folder / "holiday.jpg",
            folder / f"{'c' * 32}.gif",
            folder / ".hidden",
        ]
        for path in [stale, writing, *others]:
            path.write_bytes(b"x")
        nested = folder / f"{'d' * 32}.png"
        nested.mkdir()
        for path, age in [
            *zip([folder / name for name in images], ages, strict=True),
            (stale, TTL + 1),
            (writing, 1),
            (nested, TTL + 1),
            *((path, 10 * TTL) for path in others),
        ]:
            os.utime(path, (now - age, now - age))
        assert local.expire(now) == 3
        left = {path.name for path in folder.iterdir()}
        assert left == {images[0], images[3], writing.name, nested.name, *(path.name for path in others)}
        assert local.expire(now + TTL + 1) == 3

    def test_a_clock_set_back_expires_nothing(self, local: Storage, folder: Path) -> None:
        name = local.put(b"x", "png")
        _age(folder / name, -10 * TTL)
        assert local.expire(time.time()) == 0
        assert local.open(name) is not None

    def test_two_sweeps_at_once_agree(self, local: Storage, folder: Path) -> None:
        for _ in range(200):
            local.put(b"x", "png")
        with ThreadPoolExecutor(4) as pool:
            assert sum(pool.map(local.expire, [time.time() + TTL + 1] * 4)) == 200
        assert list(folder.iterdir()) == []

    def test_links_are_not_followed(self, local: Storage, folder: Path, tmp_path: Path) -> None:
        secret = tmp_path / "secret"
        secret.write_text("secret")
        (folder / f"{'e' * 32}.png").symlink_to(secret)
        with pytest.raises(StorageError, match="cannot be read"):
            local.open(f"{'e' * 32}.png")

    def test_check_finds_a_folder_that_cannot_be_written(self, local: Storage, folder: Path) -> None:
        folder.rmdir()
        folder.write_text("a file in the folder's place")
        with pytest.raises(StorageError, match="cannot be written to") as caught:
            local.check()
        assert isinstance(caught.value.__cause__, FileExistsError)


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "why"),
        [
            ("", "is no URL"),
            ("/tmp/images", "is no URL"),
            ("file:/tmp/images", "is no URL"),
            ("file://tmp/images", "three slashes"),
            ("file://", "three slashes"),
            ("file:///tmp/images?x=1", "three slashes"),
            ("file:///tmp/images#x", "three slashes"),
            ("gopher://somewhere/images", "no kind of storage"),
            ("gs://bucket", "no kind of storage"),
            ("s3://", "names no bucket"),
            ("s3:///prefix", "names no bucket"),
        ],
    )
    def test_a_wrong_url_is_one_clear_line(self, url: str, why: str) -> None:
        with pytest.raises(ValueError, match=why) as caught:
            Storage(url, TTL)
        assert "\n" not in str(caught.value)

    def test_escapes_in_file_urls_are_undone(self, tmp_path: Path) -> None:
        Storage(f"file://localhost{tmp_path}/with%20blank%23", TTL)
        assert (tmp_path / "with blank#").is_dir()

    @pytest.mark.parametrize("place", ["file", "/proc"], ids=["under a file", "under proc"])
    def test_a_folder_that_cannot_be_made_is_one_clear_line(self, tmp_path: Path, place: str) -> None:
        (tmp_path / "file").write_text("")
        with pytest.raises(StorageError, match=r"^/\S+/images cannot be made: [^\n]+$"):
            Storage(f"file://{tmp_path / place}/images", TTL)

    def test_reading_settings_contacts_nobody(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with closing(socket.create_server(("127.0.0.1", 0))) as listener:
            _aim_at(monkeypatch, f"http://127.0.0.1:{listener.getsockname()[1]}")
            listener.setblocking(False)
            Storage("s3://images", TTL)
            with pytest.raises(BlockingIOError):
                listener.accept()


class TestS3:
    def test_objects_lie_under_the_prefix_with_their_type(self, s3: Storage, bucket: Any) -> None:
        name = s3.put(b"abc", "jpg")
        head = bucket.head_object(Bucket="images", Key=f"some/prefix/{name}")
        assert (head["ContentType"], head["ContentLength"]) == ("image/jpeg", 3)

    def test_needs_no_prefix(self, bucket: Any) -> None:
        name = Storage("s3://images", TTL).put(b"abc", "jpg")
        assert bucket.head_object(Bucket="images", Key=name)["ContentLength"] == 3

    def test_replicas_share_it(self, s3: Storage) -> None:
        stored = Storage("s3://images/some/prefix/", TTL).open(s3.put(b"abc", "png"))
        assert stored is not None
        assert stored.data == b"abc"

    def test_expiry_is_the_buckets_rule(self, s3: Storage) -> None:
        name = s3.put(b"abc", "png")
        assert s3.expire(time.time() + 10 * TTL) == 0
        assert s3.open(name) is not None

    def test_a_missing_bucket_is_an_error(self, bucket: Any) -> None:
        with pytest.raises(StorageError, match=r"^s3://absent does not exist: "):
            Storage("s3://absent/prefix", TTL).check()

    def test_a_refusal_is_an_error_and_not_repeated(self, bucket: Any, caplog: pytest.LogCaptureFixture) -> None:
        statement = {
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": "arn:aws:s3:::denied/*",
        }
        bucket.create_bucket(Bucket="denied")
        bucket.put_bucket_policy(
            Bucket="denied", Policy=json.dumps({"Version": "2012-10-17", "Statement": [statement]})
        )
        denied = Storage("s3://denied", TTL)
        errors, retries = _counts("put")
        with pytest.raises(StorageError, match=r"^s3://denied refuses: ") as caught:
            denied.put(b"x", "png")
        assert isinstance(caught.value.__cause__, PermissionError)
        assert not [record for record in caplog.records if "once more" in record.message]
        assert _counts("put") == (errors + 1, retries)

    def test_no_server_is_an_error_within_seconds(self, monkeypatch: pytest.MonkeyPatch) -> None:
        with closing(socket.socket()) as unused:
            unused.bind(("127.0.0.1", 0))
            _aim_at(monkeypatch, f"http://127.0.0.1:{unused.getsockname()[1]}")
            storage = Storage("s3://images", TTL)
            started = time.monotonic()
            for attempt in (storage.check, lambda: storage.open("0" * 32 + ".png")):
                with pytest.raises(StorageError, match=r"^s3://images failed twice: Could not connect") as caught:
                    attempt()
                assert caught.value.__cause__ is not None
            assert time.monotonic() - started < 5

    @pytest.mark.parametrize(("broken", "heals"), [(1, True), (1000, False)])
    def test_one_lost_connection_is_borne(
        self, s3_url: str, bucket: Any, monkeypatch: pytest.MonkeyPatch, broken: int, heals: bool
    ) -> None:
        with _Flaky(s3_url, broken) as url:
            _aim_at(monkeypatch, url)
            storage = Storage("s3://images/flaky", TTL)
            errors, retries = _counts("put")
            if heals:
                name = storage.put(b"abc", "png")
                assert bucket.head_object(Bucket="images", Key=f"flaky/{name}")["ContentLength"] == 3
            else:
                with pytest.raises(StorageError, match="failed twice"):
                    storage.put(b"abc", "png")
                # A dropped connection alone is opened again by the HTTP client, before this service hears of it.
                assert _counts("put") == (errors + 1, retries + 1)

    @pytest.mark.parametrize(("status", "code"), [(500, "InternalError"), (503, "SlowDown")])
    def test_a_server_that_answers_errors_is_asked_twice(
        self, monkeypatch: pytest.MonkeyPatch, status: int, code: str
    ) -> None:
        with _Answering(status, code) as server:
            _aim_at(monkeypatch, server.url)
            with pytest.raises(StorageError, match=r"^s3://images failed twice: "):
                Storage("s3://images", TTL).put(b"abc", "png")
            assert server.asked == 2

    def test_a_server_that_never_answers_is_given_up(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(storage_module, "_ANSWER_SECONDS", 0.5)
        with socket.create_server(("127.0.0.1", 0)) as silent:
            _aim_at(monkeypatch, f"http://127.0.0.1:{silent.getsockname()[1]}")
            started = time.monotonic()
            storage = Storage("s3://images", TTL)
            for attempt in (lambda: storage.put(b"abc", "png"), lambda: storage.open("0" * 32 + ".png")):
                with pytest.raises(StorageError, match=r"^s3://images failed twice: no answer within 0\.5 seconds$"):
                    attempt()
            assert 2.0 <= time.monotonic() - started < 15


class _Answering:
    """A server that answers every request with one error of S3's."""

    def __init__(self, status: int, code: str) -> None:
        self.asked = 0
        outer = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # S3's clients wait for "100 Continue"

            def do_PUT(self) -> None:
                outer.asked += 1
                self.rfile.read(int(self.headers.get("content-length", 0)))
                body = f"<Error><Code>{code}</Code><Message>no</Message></Error>".encode()
                self.send_response(status)
                self.send_header("content-length", str(len(body)))
                self.send_header("connection", "close")
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *arguments: object) -> None: ...

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}"

    def __enter__(self) -> _Answering:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Flaky:
    """A relay to a server that drops its first connections."""

    def __init__(self, url: str, broken: int) -> None:
        host, port = url.removeprefix("http://").split(":")
        self._target = (host, int(port))
        self._broken = broken
        self._listener = socket.create_server(("127.0.0.1", 0))

    def __enter__(self) -> str:
        threading.Thread(target=self._accept, daemon=True).start()
        return f"http://127.0.0.1:{self._listener.getsockname()[1]}"

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._listener.accept()
            except OSError:
                return
            if self._broken:
                self._broken -= 1
                client.close()
                continue
            server = socket.create_connection(self._target)
            for source, target in ((client, server), (server, client)):
                threading.Thread(target=self._relay, args=(source, target), daemon=True).start()

    @staticmethod
    def _relay(source: socket.socket, target: socket.socket) -> None:
        with source, target:
            try:
                while data := source.recv(65536):
                    target.sendall(data)
            except OSError:
                return
