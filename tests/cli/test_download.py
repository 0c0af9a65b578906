"""`sana download` as an operator starts it, against a hub on this machine."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests import services
from tests.models.hub_server import COMMIT, HubServer

BASE, SPRINT = "maker/sana", "maker/sprint"
WEIGHTS = "transformer/diffusion_pytorch_model.safetensors"
SHARED = ("tokenizer", "text_encoder")
SMALL = (
    "model_index.json", "README.md", "scheduler/scheduler_config.json", "tokenizer/tokenizer.json",
    "text_encoder/config.json", "text_encoder/model.safetensors", "transformer/config.json", "vae/config.json",
    "vae/diffusion_pytorch_model.safetensors",
)  # fmt: skip


@pytest.fixture(scope="module")
def repositories(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Two repositories of the right names and no sense; only the base's transformer is larger than a chunk."""
    folder = tmp_path_factory.mktemp("hub")
    numbers = random.Random(0)
    sizes = dict.fromkeys(SMALL, 1_000) | {WEIGHTS: 25_000_000}
    for repository in (BASE, SPRINT):
        for name, size in sizes.items():
            path = folder / repository / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(numbers.randbytes(size if repository == BASE else 1_000))
    return {repository: folder / repository for repository in (BASE, SPRINT)}


@pytest.fixture
def hub(repositories: dict[str, Path]) -> Iterator[HubServer]:
    hub = HubServer(dict(repositories))
    yield hub
    hub.close()


@pytest.fixture
def command(hub: HubServer, tmp_path: Path) -> list[str]:
    """The command up to its folder, where importing torch is an error."""
    poison = tmp_path / "poison"
    poison.mkdir()
    (poison / "torch.py").write_text("raise ImportError('torch is not for downloads')")
    path = f"{poison}{os.pathsep}{services.REPOSITORY}"
    return ["env", f"PYTHONPATH={path}", f"HF_ENDPOINT={hub.url}", f"HF_HOME={tmp_path / 'home'}", "COLUMNS=200",
            sys.executable, "-m", "sana_service", "download", "--base", BASE, "--sprint", SPRINT,
            "--safety", "opennsfw"]  # fmt: skip


def run(command: list[str], *arguments: object, code: int = 0) -> subprocess.CompletedProcess[str]:
    environ = {name: value for name, value in os.environ.items() if not name.startswith(("SANA_", "HF_"))}
    finished = subprocess.run(
        [*command, *map(str, arguments)], env=environ, capture_output=True, text=True, timeout=120, check=False
    )
    assert finished.returncode == code, finished.stdout + finished.stderr
    return finished


def contents(folder: Path) -> dict[str, bytes]:
    """Every file but the command's own notes."""
    own = {"download.json", ".download.lock"}
    files = {path.relative_to(folder).as_posix(): path for path in folder.rglob("*") if path.is_file()}
    return {name: path.read_bytes() for name, path in files.items() if path.name not in own}


def wanted(hub: HubServer, repository: str) -> dict[str, bytes]:
    files = contents(hub.repositories[repository])
    shared = () if repository == BASE else SHARED
    return {name: data for name, data in files.items() if not name.startswith((*shared, "README.md"))}


def test_the_service_draws_from_what_was_downloaded(hub, command, tmp_path, pair_variables):
    hub.repositories[BASE] = Path(pair_variables["SANA_BASE_MODEL"])
    hub.repositories[SPRINT] = Path(pair_variables["SANA_SPRINT_MODEL"])
    models = tmp_path / "models"
    finished = run(command, models)
    assert contents(models / "base") == wanted(hub, BASE)
    assert contents(models / "sprint") == wanted(hub, SPRINT)
    assert finished.stderr.count(COMMIT) == 2
    variables = dict(line.split("=", 1) for line in finished.stdout.splitlines())
    assert variables == {
        "SANA_MODELS": "hub", "SANA_BASE_MODEL": f"{models}/base", "SANA_SPRINT_MODEL": f"{models}/sprint",
        "SANA_SAFETY_MODEL": "opennsfw",
    }  # fmt: skip
    drawn = run(
        ["env", f"PYTHONPATH={services.REPOSITORY}", "HF_HUB_OFFLINE=1", *(f"{k}={v}" for k, v in variables.items())],
        sys.executable, "-m", "sana_service", "generate", "a circle", "--size", "square", "--steps", "1",
        "-o", tmp_path / "circle.png",
    )  # fmt: skip
    assert drawn.stdout.strip() == str(tmp_path / "circle.png")
    assert (tmp_path / "circle.png").read_bytes().startswith(b"\x89PNG")


def test_what_the_operator_chose_for_safety_is_told_again(hub, command, tmp_path):
    """Or a service that is started with the printed variables would look for the default on the hub."""
    without_option = command[: command.index("--safety")]
    finished = run(["env", "SANA_SAFETY_MODEL=off", *without_option], tmp_path / "models")
    assert "SANA_SAFETY_MODEL=off" in finished.stdout.splitlines()


def test_a_second_run_fetches_nothing_and_a_pinned_one_asks_nothing(hub, command, tmp_path):
    models = tmp_path / "models"
    pinned = ("--base-revision", COMMIT, "--sprint-revision", COMMIT)
    run(command, models)
    fetched, questions = len(hub.asked), hub.questions
    told = json.loads(run(command, models, "--json").stdout)
    assert told["base"]["commit"] == told["sprint"]["commit"] == COMMIT
    assert told["base"]["bytes"] == sum(map(len, wanted(hub, BASE).values()))
    assert (len(hub.asked), hub.questions) == (fetched, questions + 2)
    run(command, models, *pinned)
    assert (len(hub.asked), hub.questions) == (fetched, questions + 2)
    hub.close()
    assert "the hub does not answer" in run(command, models).stderr


def test_a_broken_connection_is_taken_up_where_it_broke(hub, command, tmp_path):
    hub.stop_after[WEIGHTS] = 24_000_000
    run(command, tmp_path / "models")
    [start, again] = [first for path, first in hub.asked if path == f"{BASE}/{WEIGHTS}"]
    assert start == 0
    assert 10_000_000 < again <= 24_000_000
    assert contents(tmp_path / "models" / "base") == wanted(hub, BASE)


def test_a_killed_run_leaves_no_half_file_and_the_next_goes_on(hub, command, tmp_path):
    base = tmp_path / "models" / "base"
    hub.hang_after[WEIGHTS] = 24_000_000
    with subprocess.Popen([*command, str(tmp_path / "models")], stderr=subprocess.DEVNULL) as killed:
        assert hub.hanging.wait(60)
        [part] = base.rglob("*.part")
        while part.stat().st_size < 10_000_000:
            assert killed.poll() is None
        killed.send_signal(signal.SIGKILL)
    assert not (base / WEIGHTS).exists()
    assert not (base / "download.json").exists()
    arrived = part.stat().st_size
    run(command, tmp_path / "models")
    assert [first for path, first in hub.asked if path == f"{BASE}/{WEIGHTS}"] == [0, arrived]
    assert contents(base) == wanted(hub, BASE)


def test_a_file_of_another_content_never_gets_its_name(hub, command, tmp_path):
    hub.changed.add(WEIGHTS)
    failed = run(command, tmp_path / "models", code=1)
    [line] = [line for line in failed.stderr.splitlines() if line.startswith("error:")]
    assert f"base, {BASE}: {WEIGHTS} arrived with another content" in line
    assert WEIGHTS not in contents(tmp_path / "models" / "base")
    hub.changed.clear()
    run(command, tmp_path / "models")
    assert contents(tmp_path / "models" / "base") == wanted(hub, BASE)


def test_damage_on_the_disk_is_found_when_asked_for(hub, command, tmp_path):
    run(command, tmp_path / "models")
    damaged = tmp_path / "models" / "sprint" / WEIGHTS
    content = bytearray(damaged.read_bytes())
    content[500] ^= 1
    damaged.write_bytes(content)
    fetched = len(hub.asked)
    run(command, tmp_path / "models")
    assert len(hub.asked) == fetched
    run(command, tmp_path / "models", "--verify")
    assert [path for path, _ in hub.asked[fetched:]] == [f"{SPRINT}/{WEIGHTS}"]
    assert contents(tmp_path / "models" / "sprint") == wanted(hub, SPRINT)


def test_a_full_disk_is_one_line_and_the_next_run_goes_on(hub, command, tmp_path):
    """The kernel refuses to write a file past 12 MB."""
    limited = (
        "import os, resource, signal, sys; signal.signal(signal.SIGXFSZ, signal.SIG_IGN);"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (12_000_000, resource.RLIM_INFINITY));"
        "os.execvp(sys.argv[1], sys.argv[1:])"
    )
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[1] == resource.RLIM_INFINITY
    failed = run([sys.executable, "-c", limited, *command], tmp_path / "models", code=1)
    assert failed.stderr.strip().splitlines()[-1].endswith("File too large; run the command again, it resumes")
    assert "Traceback" not in failed.stderr
    assert all(wanted(hub, BASE).get(name) == data for name, data in contents(tmp_path / "models" / "base").items()
               if not name.endswith(".part"))  # fmt: skip
    run(command, tmp_path / "models")
    assert contents(tmp_path / "models" / "base") == wanted(hub, BASE)


def test_too_little_room_is_told_before_anything_is_fetched(hub, command, tmp_path):
    script = """
        import shutil, sys, types
        shutil.disk_usage = lambda path: types.SimpleNamespace(free=1_000)
        from sana_service.cli import main
        sys.argv[:2] = ["sana"]
        main()
    """
    tiny = tmp_path / "tiny.py"
    tiny.write_text(textwrap.dedent(script))
    start = command.index("-m")
    failed = run([*command[:start], str(tiny), "-", *command[start + 2 :]], tmp_path / "models", code=1)
    assert f"are missing, and {tmp_path}/models/base has room for 1 kB" in failed.stderr
    assert hub.asked == []


def test_a_folder_that_cannot_be_made_is_one_line(command, tmp_path):
    (tmp_path / "file").write_text("")
    failed = run(command, tmp_path / "file" / "models", code=1)
    assert failed.stderr.strip().splitlines() == [
        f"error: base, {BASE}: {tmp_path}/file/models/base: Not a directory; run the command again, it resumes"
    ]


def test_what_the_hub_refuses_is_one_line(hub, command, tmp_path):
    hub.gated.add(SPRINT)
    failed = run(command, tmp_path / "models", code=1)
    assert f"error: sprint, {SPRINT}: access to it must be granted on the hub, then set HF_TOKEN" in failed.stderr
    for arguments, line in (
        (("--base", "maker/none"), "base, maker/none: there is no such repository (a private one needs HF_TOKEN)"),
        (("--base-revision", "v9"), f"base, {BASE}: it has no revision v9"),
        (("--base", "/models/base"), "'/models/base' is no repository of the hub such as owner/name"),
    ):
        failed = run(command, tmp_path / "other", *arguments, code=1)
        assert line in failed.stderr
        assert "Traceback" not in failed.stderr
    hub.close()
    assert "the hub does not answer" in run(command, tmp_path / "third", code=1).stderr
