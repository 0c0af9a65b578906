"""Runs that go wrong, each with one clear line, an exit code and what was measured so far; and what a run measures."""

from __future__ import annotations

import contextlib
import json
import re
import signal
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from loadtests.records import CANCELLED
from tests.loadtests.support import ROOT, harness, queue_server, write_scenario
from tests.services import free_port

KEY = "key-that-no-report-shows"


def test_a_bad_scenario(tmp_path):
    path = write_scenario(tmp_path, rate=-3)
    done = harness(tmp_path, "run", path)
    assert done.code == 2
    assert done.lines == [f"{path}: arrivals.rate: Input should be greater than 0, got -3"]


def test_an_unreachable_host(tmp_path):
    host = f"http://127.0.0.1:{free_port()}"
    done = harness(tmp_path, "run", write_scenario(tmp_path), "--host", host)
    assert done.code == 1
    assert done.lines == [f"{host} cannot be reached: Connection refused"]


def test_a_wrong_key_and_a_right_one_that_is_in_no_report(tmp_path):
    path = write_scenario(tmp_path, seconds=1)
    with queue_server(tmp_path, "--key", KEY) as server:
        wrong = harness(tmp_path, "run", path, "--host", server.url, key="wrong")
        right = harness(tmp_path, "run", path, "--host", server.url, key=KEY)
    assert (wrong.code, wrong.lines) == (1, [f"{server.url}: the key was refused (status 401)"])
    assert right.code in {0, 3}, right.said
    texts = {file.name: file.read_text() for file in right.folder.iterdir()}
    assert texts.keys() >= {"result.json", "report.md", "report.html", "test-1.jsonl"}
    assert not [name for name, text in texts.items() if KEY in text]
    assert KEY not in right.said


def test_locusts_page_shows_rows_and_its_stop_button_ends_the_run(tmp_path):
    path = write_scenario(tmp_path, seconds=60, rate=30, request='[[requests]]\nendpoint = "generate"')
    page = f"http://127.0.0.1:{free_port()}"
    with queue_server(tmp_path) as server, ThreadPoolExecutor() as threads:
        arguments = ("run", path, "--host", server.url, "--web-port", page.rpartition(":")[2])
        running = threads.submit(harness, tmp_path, *arguments, key=KEY)
        rows: set[str] = set()
        while {"generate", "sprint"} - rows and not running.done():
            time.sleep(0.1)
            with contextlib.suppress(OSError):
                statistics = urllib.request.urlopen(f"{page}/stats/requests", timeout=5).read().decode()
                assert KEY not in statistics
                rows = {row["name"] for row in json.loads(statistics)["stats"] if row["num_requests"]}
        urllib.request.urlopen(f"{page}/stop", data=b"stop=1", timeout=5).close()
        done = running.result()
    assert rows == {"generate", "sprint", "Aggregated"}
    assert done.code == 1
    assert "test, run 1: the run was stopped on Locust's page" in done.lines
    assert done.run()["all"]["answered"] > 0


def test_a_server_that_dies_in_the_middle(tmp_path):
    path = write_scenario(tmp_path, seconds=20, rate=30, more="repeats = 3")
    with queue_server(tmp_path, "--die-after", "40") as server:
        done = harness(tmp_path, "run", path, "--host", server.url)
    assert done.code == 1
    reason = re.compile(rf"{re.escape(server.url)} stopped answering [0-9.]+ s into the run: Connection refused")
    assert len([line for line in done.lines if reason.search(line)]) == 1
    assert "Traceback" not in done.said
    run = done.run()
    assert run["all"]["answered"] >= 38
    assert sum(record.ok for record in done.records()) == 40
    assert reason.search((done.folder / "report.html").read_text())
    assert len(done.result()["parts"][0]["repeats"]) == 1


def test_ctrl_c_in_the_middle_leaves_a_report(tmp_path):
    """Of the run before, and of what the run that it ended had measured."""
    short = write_scenario(tmp_path, seconds=0.5)
    text = (tmp_path / "test.toml").read_text().replace('"test"', '"long"')
    long, records = tmp_path / "long.toml", tmp_path / "out" / "long-1.jsonl"
    long.write_text(text.replace("duration_seconds = 0.5", "duration_seconds = 60"))
    with queue_server(tmp_path) as server:
        command = [sys.executable, "-m", "loadtests", "run", short, str(long), "--host", server.url]
        running = subprocess.Popen(
            [*command, "--out", str(records.parent)],
            cwd=ROOT,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        while running.poll() is None and not (records.exists() and records.read_text().count("\n") >= 5):
            time.sleep(0.05)
        running.send_signal(signal.SIGINT)
        _, said = running.communicate(timeout=60)
    assert running.returncode == 130
    lines = said.splitlines()
    assert "long, run 1: interrupted by Ctrl-C or SIGTERM" in lines
    assert lines[-1] == "interrupted; what was measured so far is kept"
    assert not [line for line in lines if "Traceback" in line or "KeyboardInterrupt" in line]
    first, second = json.loads((records.parent / "result.json").read_text())["parts"]
    assert (first["name"], second["name"]) == ("test", "long")
    assert second["repeats"][0]["all"]["answered"] >= 4
    assert "interrupted by" in (records.parent / "report.html").read_text()


def test_a_server_that_is_gone_leaves_the_scenarios_before_it(tmp_path):
    first = write_scenario(tmp_path, seconds=2, rate=30)
    second = tmp_path / "second.toml"
    second.write_text((tmp_path / "test.toml").read_text().replace('"test"', '"second"'))
    with queue_server(tmp_path, "--die-after", "30") as server:
        done = harness(tmp_path, "run", first, str(second), "--host", server.url)
    assert done.code == 1
    assert done.lines.count(f"second: {server.url} cannot be reached: Connection refused") == 1
    assert [part["type"] for part in done.result()["parts"]] == ["scenario", "failed"]
    assert done.run()["all"]["answered"] >= 28


def test_two_scenarios_of_one_name_would_share_a_file(tmp_path):
    path = write_scenario(tmp_path)
    done = harness(tmp_path, "run", path, path)
    assert (done.code, done.lines) == (2, ["two scenarios are named 'test': their records would replace each other"])


@pytest.mark.parametrize("kind", ["server", "single_stream"])
def test_a_fault_of_the_generator_ends_the_run(kind, tmp_path):
    """Locust starts a task again that failed, for ever."""
    write_scenario(tmp_path, seconds=1)
    text = (tmp_path / "test.toml").read_text().replace('"server"', f'"{kind}"')
    if kind == "single_stream":
        text = text[: text.index("[arrivals]")] + text[text.index("[[requests]]") :]
    (tmp_path / "test.toml").write_text(text)
    code = "import locust, sys; from loadtests import __main__, schedule; "
    code += "schedule.Source.planned = lambda *_: 1 / 0; sys.exit(__main__.main(sys.argv[1:]))"
    with queue_server(tmp_path) as server:
        command = [sys.executable, "-c", code, "run", str(tmp_path / "test.toml"), "--host", server.url]
        done = subprocess.run(
            [*command, "--out", str(tmp_path / "out")],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert "test, run 1: the load generator failed: ZeroDivisionError: division by zero" in done.stderr.splitlines()
    assert (tmp_path / "out" / "report.html").exists()


@pytest.mark.parametrize("host", ["127.0.0.1:3000", "http://127.0.0.1:port", "http://", "ftp://host"])
def test_an_address_that_is_none(host, tmp_path):
    done = harness(tmp_path, "run", write_scenario(tmp_path), "--host", host)
    assert done.code == 2
    wanted = f"argument --host: {host!r} is no address such as http://127.0.0.1:3000"
    assert done.lines[-1] == f"python -m loadtests run: error: {wanted}"


def test_files_that_cannot_be_used(tmp_path):
    (tmp_path / "result.json").write_text("{}")
    done = harness(tmp_path, "report", str(tmp_path / "result.json"))
    assert (done.code, done.lines) == (1, [f"{tmp_path / 'result.json'}: is no result, KeyError: 'provenance'"])
    (tmp_path / "out").write_text("a file, where a folder should be")
    done = harness(tmp_path, "run", write_scenario(tmp_path))
    assert (done.code, done.lines) == (1, [f"{tmp_path / 'out'}: the folder cannot be made, File exists"])


def test_refusals_need_retry_after(tmp_path):
    """Five times what the server can do: refusals by the rules are right under overload, others never."""
    path = write_scenario(tmp_path, seconds=1.5, rate=100)
    text = (tmp_path / "test.toml").read_text().replace('kind = "server"', 'kind = "overload"')
    (tmp_path / "test.toml").write_text(text)
    options = ("--seconds", "0.05", "--max-queue", "3")
    with queue_server(tmp_path, *options) as server:
        polite = harness(tmp_path / "polite", "run", path, "--host", server.url)
    with queue_server(tmp_path, *options, "--retry-after", "0") as server:
        rude = harness(tmp_path / "rude", "run", path, "--host", server.url)
    assert polite.code in {0, 3}, polite.said
    figures = polite.run()["all"]
    assert figures["refused"] > 80
    assert figures["failed"] == 0
    assert figures["retry_after_seconds"]["max"] == 1.0
    assert rude.code == 1
    assert (rude.folder / "report.html").exists()
    assert set(rude.run()["all"]["errors"]) == {"status 429"}


def test_what_a_run_measures(tmp_path):
    """Stages, batch sizes, kinds, cancellations, repeats, truth and floor, in JSON, Markdown and HTML."""
    mix = 'cancel_share = 0.3\ncancel_after_seconds = 0.01\n[[requests]]\nendpoint = "generate"\n'
    mix += 'output_format = "png"\n'
    mix += 'image_size = "300x200"\nslow_share = 0.3\nslow_bytes_per_second = 2000'
    path = write_scenario(
        tmp_path, seconds=2, rate=40, sample=4, more="repeats = 2\nwarm_up_seconds = 0.5", request=mix
    )
    with queue_server(tmp_path, "--seconds", "0.04", "--lanes", "4") as server:
        floor = ("--model", "sana", "--matrix-tflops", "989")
        done = harness(tmp_path, "run", path, "--host", server.url, *floor)
    assert done.code in {0, 3}, done.said
    run = done.run()
    assert set(run["kinds"]) == {"generate 300x200 png", "sprint 320x180 jpeg"}
    assert run["endpoints"]["sprint"]["cancelled"] > 0
    assert run["endpoints"]["generate"]["cancelled"] == 0
    assert {"queue", "denoise"} < set(run["all"]["stage_seconds"])
    assert run["all"]["stage_seconds"]["denoise"] == pytest.approx(0.04, abs=0.001)
    assert set(run["all"]["batch_sizes"]) <= {"1", "2", "3"}
    assert run["truth"]["checked"] == 4
    assert run["truth"]["repeated"] == 1
    assert run["truth"]["greatest_difference"] == 0
    # A slow reader's latency ends with the headers.
    assert run["endpoints"]["generate"]["latency_seconds"]["max"] < 1
    # 16.2e12 operations a picture at 989e12 a second.
    assert run["endpoints"]["sprint"]["floor"]["seconds_per_image"] == pytest.approx(0.0164, rel=0.03)
    assert run["resources"]["server_rss_bytes"]["max"] > 2**20
    across = done.result()["parts"][0]["across"]["endpoints"]["sprint"]["latency_seconds"]["p50"]
    assert across["repeats"] == 2
    assert across["low"] <= across["mean"] <= across["high"]
    cancelled = [record for record in done.records() if record.error == CANCELLED]
    assert all(record.latency < 0.2 for record in cancelled)
    made = done.result()["provenance"]
    assert made["packages"]["locust"]
    assert made["machine"]["cores"]
    page = (done.folder / "report.html").read_text()
    assert not re.findall(r"""(?:src|href)\s*=|url\(|@import|<script|<link""", page)
    assert page.count("<svg") >= 5
    assert "prefers-color-scheme: dark" in page
    table = (done.folder / "report.md").read_text()
    assert re.search(r"^\| sprint \| \d+", table, re.MULTILINE)
    again = harness(tmp_path, "report", str(done.folder / "result.json"))
    assert again.code == 0
    assert (done.folder / "report.md").read_text() == table


@pytest.mark.parametrize(
    ("option", "fault"),
    [
        (("--flat",), "the picture is flat"),
        (("--load-changes-pictures", "1"), "the picture under load differs from the one alone"),
    ],
)
def test_wrong_pictures_fail_a_run(option, fault, tmp_path):
    path = write_scenario(tmp_path, seconds=0.8, rate=80, sample=2)
    with queue_server(tmp_path, "--seconds", "0.1", "--lanes", "4", *option) as server:
        done = harness(tmp_path, "run", path, "--host", server.url)
    assert done.code == 1
    assert any(fault in line for line in done.lines), done.said
    assert fault in json.dumps(done.result())


def test_offline_keeps_as_many_in_flight_as_it_says(tmp_path):
    path = write_scenario(tmp_path, seconds=2)
    text = (tmp_path / "test.toml").read_text().replace('"server"', '"offline"\nin_flight = 6')
    (tmp_path / "test.toml").write_text(text[: text.index("[arrivals]")] + text[text.index("[[requests]]") :])
    with queue_server(tmp_path, "--seconds", "0.05", "--lanes", "3", "--in-turn") as server:
        done = harness(tmp_path, "run", path, "--host", server.url)
    assert done.code in {0, 3}, done.said
    # Six in flight on three servers of 50 ms: sixty a second, each after 100 ms (Little's law).
    figures = done.run()["all"]
    assert figures["requests_per_second"] == pytest.approx(60, rel=0.08)
    assert figures["latency_seconds"]["p50"] == pytest.approx(0.1, rel=0.1)
