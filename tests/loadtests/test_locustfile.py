"""The Locust file, in processes of its own, against servers that answer rightly and wrongly."""

from __future__ import annotations

import io
import json
import os
import re
import socket
import subprocess
import sys
import threading
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).parents[2]
KEY = "key-that-no-report-shows"

Answer = dict[str, Any]
Change = Callable[[Answer], None]


@dataclass
class Fake:
    """A server by the contract, except that each answer in `changes` is changed once, in order."""

    changes: list[Change] = field(default_factory=list)
    asked: list[dict[str, Any]] = field(default_factory=list)
    files: dict[str, bytes] = field(default_factory=dict)
    file_headers: list[dict[str, str]] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def answer(self, path: str, headers: dict[str, str], request: dict[str, Any], port: int, url: str) -> Answer:
        sizes = {"square": {"width": 512, "height": 512}, "square_hd": {"width": 1024, "height": 1024}}
        size = request["image_size"]
        size = size if isinstance(size, dict) else sizes[size]
        with self.lock:
            number = len(self.asked)
            change = self.changes.pop(0) if self.changes else None
            self.asked.append(
                {"path": path, "headers": headers, "body": request, "port": port, "time": time.monotonic()}
            )
        kind = request["output_format"]
        images = []
        for index in range(request["num_images"]):
            name = f"{number:031x}{index}.{'jpg' if kind == 'jpeg' else kind}"
            file = io.BytesIO()
            Image.new("RGB", (size["width"], size["height"])).save(file, kind)
            self.files[name] = file.getvalue()
            images.append(
                {
                    "url": f"{url}/files/{name}",
                    "content_type": f"image/{kind}",
                    "file_name": name,
                    "file_size": len(file.getvalue()),
                    **size,
                }
            )
        # 300x200 and 512x512 are less than a mebipixel, so a unit for each image.
        units = 1 if size["width"] < 1024 else size["width"] * size["height"] // 1048576
        answer: Answer = {
            "status": 200,
            "headers": {"x-fal-billable-units": str(units * request["num_images"])},
            "body": {
                "images": images,
                "seed": 7 if request["seed"] is None else request["seed"],
                "has_nsfw_concepts": [False] * request["num_images"],
                "prompt": request["prompt"],
                "timings": {},
            },
            "files": self.files,
        }
        if change:
            change(answer)
        return answer


@contextmanager
def _serving(fake: Fake) -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            answer = fake.answer(self.path, dict(self.headers), request, self.client_address[1], url)
            if answer["status"] is None:
                self.close_connection = True
                return
            body = answer["body"]
            content = body if isinstance(body, bytes) else json.dumps(body).encode()
            self._send(answer["status"], content, answer["headers"])

        def do_GET(self) -> None:
            fake.file_headers.append(dict(self.headers))
            content = fake.files.get(self.path.removeprefix("/files/"))
            self._send(404 if content is None else 200, content or b"", {})

        def _send(self, status: int, content: bytes, headers: dict[str, str]) -> None:
            self.send_response(status)
            for name, value in {**headers, "Content-Length": str(len(content))}.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(content)

        def log_message(self, *_: object) -> None:
            """Nothing, the test looks at what was asked."""

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield url
        finally:
            server.shutdown()
            thread.join()


def _free_port() -> str:
    with closing(socket.socket()) as probe:
        probe.bind(("127.0.0.1", 0))
        return str(probe.getsockname()[1])


def _command(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "locust", "-f", str(ROOT / "loadtests" / "locustfile.py"), *arguments]


def _environment(**variables: str) -> dict[str, str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("LOCUST", "SANA"))}
    return clean | {f"SANA_LOAD_{name}": value for name, value in variables.items()}


@dataclass
class Run:
    """A finished Locust process."""

    code: int
    output: str


def _run(folder: Path, *arguments: str, until: Callable[[str], bool] = lambda log: False, **variables: str) -> Run:
    """Locust without a page, its reports in the folder; ended once the condition holds of its log."""
    log = folder / "run.log"
    with log.open("w") as file:
        locust = subprocess.Popen(
            _command("--headless", "--csv", "run", "-r", "100", "-t", "60s", *arguments),
            cwd=folder,
            env=_environment(**variables),
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        _wait(lambda: until(log.read_text()) or locust.poll() is not None, 60)
        if locust.poll() is None:
            locust.terminate()
        return Run(locust.wait(30), log.read_text())
    finally:
        if locust.poll() is None:
            locust.kill()
            locust.wait()


def _wait(condition: Callable[[], bool], seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "nothing happened in time"
        time.sleep(0.02)


def _rows(log: str) -> dict[str, tuple[int, int]]:
    """Requests and failures of each row, from the last table in the log."""
    lines = re.findall(r"^(?:GET|POST) +(\w+) +(\d+) +(\d+)\(", log, re.MULTILINE)
    return {row: (int(requests), int(failures)) for row, requests, failures in lines}


def _failures(run: Run) -> dict[tuple[str, str], int]:
    """How often each row failed for each reason, from the report at the end of the log."""
    lines = re.findall(r"^(\d+) +(?:GET|POST) (\w+): (.*?) *$", run.output.split("Error report")[1], re.MULTILINE)
    return {(row, reason): int(occurrences) for occurrences, row, reason in lines}


def test_right_answers_of_both_endpoints_from_two_processes(tmp_path: Path) -> None:
    fake = Fake()
    port = _free_port()
    with _serving(fake) as url:
        done = _run(
            tmp_path,
            *("--host", url, "-u", "4"),
            *("--processes", "2", "--master-bind-port", port, "--master-port", port),
            *("--image-size", "300x200", "--num-images", "2", "--output-format", "png", "--steps", "9"),
            *("--sprint-steps", "4", "--guidance", "3.5", "--fetch-images", "--generate-weight", "3"),
            # The processes tell the first one of their rows every few seconds.
            until=lambda log: _rows(log).keys() == {"generate", "sprint", "file"},
            API_KEY=KEY,
        )
    assert done.code == 0, done.output
    rows = _rows(done.output)
    assert set(rows) == {"generate", "sprint", "file"}
    assert all(requests > 0 and failures == 0 for requests, failures in rows.values())
    bodies = [asked["body"] for asked in fake.asked]
    for asked in fake.asked:
        assert asked["headers"]["Authorization"] == f"Key {KEY}"
        assert asked["body"] == {
            "prompt": asked["body"]["prompt"],
            "image_size": {"width": 300, "height": 200},
            "num_inference_steps": {"/generate": 9, "/sprint": 4}[asked["path"]],
            "guidance_scale": 3.5,
            "num_images": 2,
            "output_format": "png",
            "seed": asked["body"]["seed"],
        }
    assert len({body["prompt"] for body in bodies}) == len(bodies)
    assert len({body["seed"] for body in bodies}) == len(bodies)
    # Each user keeps a connection of its own: three of four ask generate, one asks sprint.
    assert len(_ports(fake, "/generate")) == 3
    assert len(_ports(fake, "/sprint")) == 1
    assert fake.file_headers
    assert not any("Authorization" in headers for headers in fake.file_headers)
    reports = {path.name: path.read_text() for path in tmp_path.iterdir()}
    assert reports.keys() >= {"run.log", "run_stats.csv", "run_failures.csv"}
    assert not [name for name, report in reports.items() if KEY in report]


def _ports(fake: Fake, path: str) -> set[int]:
    return {asked["port"] for asked in list(fake.asked) if asked["path"] == path}


def _status(answer: Answer, status: int | None, **headers: str) -> None:
    answer.update(status=status, headers={"x-fal-billable-units": "0"} | headers, body={"detail": "no"})


def _image(answer: Answer, **changes: Any) -> None:
    answer["body"]["images"][0].update(changes)


def _file(answer: Answer, content: bytes) -> None:
    image = answer["body"]["images"][0]
    answer["files"][image["file_name"]] = content
    image["file_size"] = len(content)


def _picture(width: int, height: int, kind: str) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", (width, height)).save(file, kind)
    return file.getvalue()


WRONG: dict[str, Change] = {
    "status 500": lambda answer: _status(answer, 500),
    "no answer": lambda answer: _status(answer, None),
    "x-fal-billable-units 2, not 1": lambda answer: answer["headers"].update({"x-fal-billable-units": "2"}),
    "x-fal-billable-units None, not 1": lambda answer: answer["headers"].clear(),
    "no JSON object": lambda answer: answer.update(body=b"<html>"),
    "seed not given back": lambda answer: answer["body"].update(seed=answer["body"]["seed"] + 1),
    "prompt not given back": lambda answer: answer["body"].update(prompt=""),
    "has_nsfw_concepts is not one boolean an image": lambda answer: answer["body"].update(has_nsfw_concepts=[]),
    "not 1 images": lambda answer: answer["body"].update(images=[]),
    "image said to be 1x200, not 300x200": lambda answer: _image(answer, width=1),
    "image said to be image/png, not image/jpeg": lambda answer: _image(answer, content_type="image/png"),
    "file_name does not end in .jpg": lambda answer: _image(answer, file_name="a.png"),
    "url is no HTTP URL": lambda answer: _image(answer, url="/files/a.jpg"),
    "status 404": lambda answer: answer["files"].clear(),
    "file is not as long as file_size": lambda answer: _image(answer, file_size=1),
    "file is no whole JPEG or PNG": lambda answer: _file(answer, _picture(300, 200, "jpeg")[:400]),
    "file is 300x1, not 300x200": lambda answer: _file(answer, _picture(300, 1, "jpeg")),
    "file is png, not jpeg": lambda answer: _file(answer, _picture(300, 200, "png")),
    "status 429": lambda answer: _status(answer, 429, **{"Retry-After": "1"}),
}


def test_each_wrong_answer_is_a_failure_with_its_reason(tmp_path: Path) -> None:
    fake = Fake(changes=list(WRONG.values()))
    with _serving(fake) as url:
        done = _run(
            tmp_path,
            *("--host", url, "-u", "1", "--image-size", "300x200", "--fetch-images", "GenerateUser"),
            until=lambda _: len(fake.asked) > len(WRONG),
        )
    assert done.code == 1, done.output
    of_files = ["status 404", *(reason for reason in WRONG if reason.startswith("file is"))]
    assert _failures(done) == {("file" if reason in of_files else "generate", reason): 1 for reason in WRONG}
    # The user came back no sooner than it was told to.
    at = len(WRONG) - 1
    assert fake.asked[at + 1]["time"] - fake.asked[at]["time"] >= 1
    requests, failed = _rows(done.output)["generate"]
    assert failed == len(WRONG) - len(of_files)
    # The last request may have been cut off by the end of the run.
    assert len(fake.asked) - 1 <= requests <= len(fake.asked)


def test_sizes_and_formats_are_mixed_and_prompts_come_again(tmp_path: Path) -> None:
    fake = Fake()
    with _serving(fake) as url:
        done = _run(
            tmp_path,
            *("--host", url, "-u", "1", "--image-size", "300x200,200x300", "--output-format", "jpeg,png"),
            *("--prompt-reuse", "1", "SprintUser"),
            until=lambda _: len(fake.asked) > 60,
        )
    assert done.code == 0, done.output
    bodies = [asked["body"] for asked in fake.asked]
    assert {body["image_size"]["width"] for body in bodies} == {200, 300}
    assert {body["output_format"] for body in bodies} == {"jpeg", "png"}
    # Of a hundred prompts, the first few much more often than the others.
    assert len({body["prompt"] for body in bodies}) < 0.8 * len(bodies)


def test_a_wrong_option_is_told(tmp_path: Path) -> None:
    done = _run(tmp_path, "--image-size", "10by10")
    assert done.code != 0
    assert "'10by10' is neither WIDTHxHEIGHT nor one of square_hd, square," in done.output
    assert "Traceback" not in done.output
    missing = _run(tmp_path, "--prompts-file", str(tmp_path / "none.txt"))
    assert missing.code != 0
    assert "argument --prompts-file: [Errno 2] No such file or directory" in missing.output
    assert "Traceback" not in missing.output


def _get(url: str, form: dict[str, str] | None = None) -> str:
    data = urllib.parse.urlencode(form).encode() if form else None
    with urllib.request.urlopen(url, data=data, timeout=10) as response:
        return str(response.read().decode())


def _answers(url: str) -> bool:
    try:
        return bool(_get(url))
    except OSError:
        return False


def test_the_web_page_starts_a_run_with_options_of_page_and_environment(tmp_path: Path) -> None:
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("eine Möwe\n\n  a gull  \n", encoding="utf-8")
    fake = Fake()
    port = _free_port()
    page = f"http://127.0.0.1:{port}"
    with _serving(fake) as url:
        locust = subprocess.Popen(
            _command("--web-host", "127.0.0.1", "--web-port", port, "SprintUser"),
            cwd=tmp_path,
            env=_environment(
                API_KEY=KEY,
                IMAGE_SIZE="300x200",
                PROMPTS_FILE=str(prompts),
                SEED_MODE="fixed",
                SEED="0",
                OUTPUT_FORMAT="png",
            ),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        try:
            _wait(lambda: _answers(page), 30)
            text = _get(page)
            form = {"user_count": "1", "spawn_rate": "10", "host": url, "image_size": "square", "num_images": "2"}
            assert json.loads(_get(f"{page}/swarm", form))["success"] is True
            _wait(lambda: len({asked["body"]["prompt"] for asked in list(fake.asked)}) == 2, 30)
            assert json.loads(_get(f"{page}/stop", {"": ""}))["success"] is True
            statistics = _get(f"{page}/stats/requests")
            report = _get(f"{page}/stats/report")
        finally:
            locust.terminate()
            locust.wait(20)
    rows = {row["name"]: row["num_failures"] for row in json.loads(statistics)["stats"]}
    assert rows == {"sprint": 0, "Aggregated": 0}
    assert {asked["body"]["prompt"] for asked in fake.asked} == {"eine Möwe", "a gull"}
    for asked in fake.asked:
        assert asked["path"] == "/sprint"
        assert asked["body"] == {
            "prompt": asked["body"]["prompt"],
            "image_size": "square",
            "num_inference_steps": 2,
            "guidance_scale": 5.0,
            "num_images": 2,
            "output_format": "png",
            "seed": 0,
        }
    assert "image_size" in text
    assert not [shown for shown in (text, statistics, report) if KEY in shown]
