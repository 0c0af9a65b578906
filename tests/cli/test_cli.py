"""The `sana` command as a user starts it: a process of its own."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from sana_service import metadata
from sana_service.cli.terminal import protocol, rendered
from sana_service.images import encode
from sana_service.provenance import DIGITAL_SOURCE_TYPE, Signer
from tests import services
from tests.test_provenance import PIXELS, TOLD, authority


def sana(folder: Path, *arguments: str, code: int = 0, **environ: str) -> str:
    """What the command prints on stdout, or on stderr where it fails."""
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("SANA_")}
    finished = subprocess.run(
        [sys.executable, "-m", "sana_service", *arguments],
        cwd=folder,
        env=inherited | {"PYTHONPATH": str(services.REPOSITORY), "COLUMNS": "160", **environ},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert finished.returncode == code, finished.stdout + finished.stderr
    return finished.stderr if code else finished.stdout


def test_help_teaches(tmp_path):
    overview = sana(tmp_path, "--help")
    assert {"serve", "generate", "inspect", "download", "doctor"} <= set(re.findall(r"\w+", overview))
    for command in ("serve", "generate", "inspect", "download", "doctor"):
        assert "Examples" in sana(tmp_path, command, "--help")
    assert sana(tmp_path, "--version").startswith("sana ")


def test_the_shell_can_complete(tmp_path):
    script = sana(tmp_path, "--show-completion", "bash", _TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION="1")
    assert "complete" in script


def test_drawing_on_a_service(tmp_path, quick_server):
    printed = sana(
        tmp_path, "generate", "a red circle", "-o", "out.png", "--size", "640x320", "--seed", "7", "--steps", "2",
        "-n", "2", "--url", quick_server.url,
    )  # fmt: skip
    assert printed.split() == ["out-1.png", "out-2.png"]
    for i in range(2):
        told = metadata.read(tmp_path / f"out-{i + 1}.png")
        assert told is not None
        assert (told.prompt, told.seed, told.width, told.height, told.num_inference_steps) == (
            "a red circle", 7 + i, 640, 320, 2,
        )  # fmt: skip


def test_drawing_in_this_process_gives_the_same_picture(tmp_path, quick_server, pair_variables):
    arguments = ("generate", "a red circle", "--seed", "3", "--model", "sprint", "--size", "square", "--json")
    here = json.loads(sana(tmp_path, *arguments, "-o", "here.jpg", **pair_variables))
    there = json.loads(sana(tmp_path, *arguments, "-o", "there.jpg", "--url", quick_server.url))
    assert here["images"][0]["seed"] == there["images"][0]["seed"] == 3
    assert (tmp_path / "here.jpg").read_bytes() == (tmp_path / "there.jpg").read_bytes()
    assert here["timings"].keys() >= {"text", "denoise", "decode"}


@pytest.mark.parametrize(
    ("arguments", "code", "line"),
    [
        (("--size", "32x32"), 1, "image_size.width"),
        (("--style", "Baroque"), 1, "style_name"),
        (("--model", "sprint", "--steps", "30"), 1, "num_inference_steps"),
        (("-o", "out.gif"), 2, ".png, .jpg or .jpeg"),
        (("--model", "sprint", "--negative", "blue"), 2, "sprint does not read it"),
    ],
)
def test_a_failure_is_one_line(tmp_path, quick_server, arguments, code, line):
    told = sana(tmp_path, "generate", "a", "--url", quick_server.url, *arguments, code=code)
    assert line in told
    assert "Traceback" not in told
    assert code == 2 or len(told.strip().splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def test_failures_without_a_service(tmp_path):
    nobody = f"http://127.0.0.1:{services.free_port()}"
    assert "does not answer" in sana(tmp_path, "generate", "a", "--url", nobody, code=1)
    assert "SANA_MAX_QUEUE" in sana(tmp_path, "generate", "a", code=1, SANA_MAX_QUEUE="0")


def test_inspecting(tmp_path):
    (tmp_path / "a.png").write_bytes(encode(PIXELS, "png", TOLD).data)
    told = json.loads(sana(tmp_path, "inspect", "a.png", "--json"))
    assert (told["settings"]["seed"], told["settings"]["prompt"], told["c2pa"]) == (7, "a reef", None)
    assert told["digital_source_type"] == DIGITAL_SOURCE_TYPE
    assert told["infotext"].startswith("a reef\nSteps: 2")
    shown = sana(tmp_path, "inspect", "a.png")
    assert "a reef" in shown
    assert "trainedAlgorithmicMedia" in shown
    Image.new("RGB", (8, 8)).save(tmp_path / "b.jpg")
    assert "none of this service's" in sana(tmp_path, "inspect", "b.jpg")
    (tmp_path / "c.txt").write_text("text")
    assert "neither PNG nor JPEG" in sana(tmp_path, "inspect", "c.txt", code=1)
    assert "does not exist" in sana(tmp_path, "inspect", "none.png", code=2)


def test_inspecting_a_signed_picture(tmp_path):
    signed = Signer(*authority(tmp_path)).sign(encode(PIXELS, "jpeg", TOLD).data, "image/jpeg")
    (tmp_path / "a.jpg").write_bytes(signed)
    assert "fits the file, signed by Sana test of Test Pictures" in sana(tmp_path, "inspect", "a.jpg")
    (tmp_path / "b.jpg").write_bytes(signed[:-20] + bytes([signed[-20] ^ 1]) + signed[-19:])
    told = sana(tmp_path, "inspect", "b.jpg", code=1)
    assert "dataHash.mismatch" in told


def test_serving(tmp_path, pair_variables):
    command = (sys.executable, "-m", "sana_service", "serve", "--host", "127.0.0.1")
    with services.server(tmp_path, pair_variables, command=command) as running, running.client() as http:
        assert http.get("/readyz").status_code == 200
        assert "the page will be at" in running.log
        assert running.stop() == 0


@pytest.mark.parametrize(
    ("environ", "expected"),
    [
        ({}, None),
        ({"TERM": "xterm-256color"}, None),
        ({"TERM": "dumb", "COLORTERM": "truecolor"}, None),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, "blocks"),
        ({"TERM": "xterm-kitty"}, "kitty"),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "iTerm.app"}, "iterm"),
        ({"TERM": "screen-256color", "TERM_PROGRAM": "iTerm.app"}, None),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/x"}, None),
    ],
)
def test_what_terminals_can(environ, expected):
    assert protocol(environ) == expected


def test_pictures_as_text():
    file = io.BytesIO()
    image = Image.new("RGB", (2, 2), "red")
    image.paste((0, 0, 255), (0, 1, 2, 2))
    image.save(file, "png")
    half = "\033[38;2;255;0;0;48;2;0;0;255m▀"
    assert rendered(file.getvalue(), "blocks") == f"{half}{half}\033[0m\n"
    assert rendered(file.getvalue(), "kitty").startswith("\033_Ga=T,f=100")
    assert rendered(file.getvalue(), "iterm").startswith("\033]1337;File=inline=1;")
