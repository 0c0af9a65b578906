"""What the service is made of: no version with a known hole, no code from data, nothing told to anybody."""

from __future__ import annotations

import ast
import json
import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from sana_service.environment import QUIET, keep_quiet
from tests.services import REPOSITORY

FLOORS = {
    "bentoml": "1.4.39",  # CVE-2026-40610, -44345, -44346; pickle and SSRF before
    "diffusers": "0.42.1",  # GHSA-4prv-5hj7-c2xr, CVE-2026-44513
    "transformers": "5.2.1",  # CVE-2026-5241, PYSEC-2025-212 to -217
    "torch": "2.10.1",  # CVE-2026-4538, CVE-2025-32434
    "starlette": "1.3.1",  # PYSEC-2026-248, -249, CVE-2026-48710
    "python-multipart": "0.0.27",  # CVE-2026-42561, -40347, -24486
    "pillow": "13.0.0",  # the decoders' holes of October 2026
    "h11": "0.16.0",  # CVE-2025-43859, request smuggling
}
"""The first version without a hole that was published by November 2026."""

TRAINING = Path("models/bundled/training")
"""Never imported by the service."""

FORBIDDEN_CALLS = {"eval", "exec", "compile", "__import__"}
FORBIDDEN_MODULES = {"pickle", "cloudpickle", "dill", "marshal", "shelve", "subprocess", "pty", "telnetlib", "ftplib"}
STARTS_DEVICES = "sana_service/engine/processes/device.py"
"""The one module that starts a process, this Python with a module of the service's own."""

FORBIDDEN_ATTRIBUTES = {("os", "system"), ("os", "popen"), ("torch", "load"), ("torch", "jit"), ("yaml", "load")}


def pins(file: str) -> dict[str, Version]:
    text = (REPOSITORY / file).read_text(encoding="utf-8")
    found = re.findall(r"^([A-Za-z0-9._-]+)==([^\s\\;]+)", text, re.MULTILINE)
    return {name.lower().replace("_", "-"): Version(version) for name, version in found}


def sources() -> Iterator[tuple[Path, ast.Module]]:
    root = REPOSITORY / "sana_service"
    files = [path for path in root.rglob("*.py") if TRAINING not in path.relative_to(root).parents]
    for path in [REPOSITORY / "service.py", *files]:
        yield path, ast.parse(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("file", ["requirements.txt", "requirements-dev.txt"])
def test_no_pin_is_below_the_first_version_without_a_known_hole(file: str) -> None:
    pinned = pins(file)
    assert len(pinned) > 50
    assert {name for name in FLOORS if name not in pinned} <= ({"torch"} if file == "requirements-dev.txt" else set())
    low = {
        name: str(pinned[name]) for name, floor in FLOORS.items() if name in pinned and pinned[name] < Version(floor)
    }
    assert low == {}


def test_the_projects_own_bounds_let_no_such_version_in() -> None:
    """For those who install the package without its lock."""
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    bounds = {requirement.name: requirement.specifier for requirement in map(Requirement, project["dependencies"])}
    for name in bounds.keys() & FLOORS.keys():
        floor = Version(FLOORS[name])
        below = Version(f"{floor.major}.{floor.minor}.{floor.micro - 1}" if floor.micro else f"{floor.major - 1}.999")
        assert not bounds[name].contains(below), name
    assert {"bentoml", "diffusers", "transformers", "torch", "starlette", "pillow"} <= bounds.keys()


def test_all_but_torch_is_installed_by_hash() -> None:
    """A line that pins is followed by a hash, so a replaced file on the index is refused."""
    for file in ("requirements.txt", "requirements-dev.txt"):
        text = (REPOSITORY / file).read_text(encoding="utf-8")
        bare = re.findall(r"^([\w.-]+)==[^\\\n]*$", text, re.MULTILINE)
        assert set(bare) <= {"torch"}, file


def test_no_source_runs_what_it_reads() -> None:
    found: list[str] = []
    for path, tree in sources():
        for node in ast.walk(tree):
            name = path.relative_to(REPOSITORY)
            match node:
                case ast.Call(func=ast.Name(id=called)) if called in FORBIDDEN_CALLS:
                    found.append(f"{name}: {called}()")
                case ast.Import(names=names):
                    found += [f"{name}: {one.name}" for one in names if one.name.split(".")[0] in FORBIDDEN_MODULES]
                case ast.ImportFrom(module=module) if (module or "").split(".")[0] in FORBIDDEN_MODULES:
                    found.append(f"{name}: {module}")
                case ast.Attribute(value=ast.Name(id=owner), attr=attribute):
                    if (owner, attribute) in FORBIDDEN_ATTRIBUTES:
                        found.append(f"{name}: {owner}.{attribute}")
                case ast.keyword(arg="shell" | "trust_remote_code", value=ast.Constant(value=True)):
                    found.append(f"{name}: {node.arg}=True")
    assert found == [f"{STARTS_DEVICES}: subprocess"]


def test_the_one_process_that_is_started_is_fixed() -> None:
    tree = ast.parse((REPOSITORY / STARTS_DEVICES).read_text(encoding="utf-8"))
    used = [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("subprocess.")
    ]
    (call,) = used
    assert ast.unparse(call.func) == "subprocess.Popen"
    assert ast.unparse(call.args[0]) == "[sys.executable, '-m', _CHILD, *map(str, handles)]"
    assert not {"shell", "executable", "preexec_fn"} & {keyword.arg for keyword in call.keywords}
    assert "_CHILD = 'sana_service.engine.processes.child'" in ast.unparse(tree)


def test_weights_are_read_from_safetensors_alone() -> None:
    """Every call that reads a model's weights says so itself; tokenizers and schedulers have none."""
    readers = []
    for path, tree in sources():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute | ast.Name):
                called = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
                options = {keyword.arg for keyword in node.keywords}
                if "output_loading_info" in options or (called == "from_pretrained" and "dtype" in options):
                    readers.append((path.name, "use_safetensors" in options))
    assert len(readers) >= 2
    assert {safe for _, safe in readers} == {True}


def test_libraries_are_told_to_tell_nothing_before_they_are_imported() -> None:
    script = (
        "import os, service; import huggingface_hub.constants as hub\n"
        "print(hub.HF_HUB_DISABLE_TELEMETRY, os.environ['BENTOML_DO_NOT_TRACK'], os.environ['DO_NOT_TRACK'],"
        " os.environ['DIFFUSERS_DISABLE_REMOTE_CODE'])"
    )
    clean = {name: value for name, value in os.environ.items() if name not in QUIET and not name.startswith("SANA_")}
    finished = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", script],
        cwd=REPOSITORY, env=clean, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert finished.stdout.split() == ["True", "true", "1", "true"], finished.stderr[-2000:]


def test_what_the_operator_set_stays() -> None:
    environ = {"HF_HUB_DISABLE_TELEMETRY": "0"}
    keep_quiet(environ)
    assert environ["HF_HUB_DISABLE_TELEMETRY"] == "0"
    assert environ["BENTOML_DO_NOT_TRACK"] == "true"


def test_the_bill_of_materials_names_every_pin_with_its_hashes(tmp_path: Path) -> None:
    out = tmp_path / "sbom.json"
    subprocess.run([sys.executable, "-m", "tools.sbom", str(out)], cwd=REPOSITORY, check=True)
    bill = json.loads(out.read_text(encoding="utf-8"))
    assert (bill["bomFormat"], bill["specVersion"]) == ("CycloneDX", "1.6")
    assert re.fullmatch(r"urn:uuid:[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}", bill["serialNumber"])
    libraries = {one["name"]: one for one in bill["components"] if one["type"] == "library"}
    pinned = pins("requirements.txt")
    assert {name: one["version"] for name, one in libraries.items()} == {
        name: str(version) for name, version in pinned.items()
    }
    starlette = libraries["starlette"]
    assert starlette["purl"] == f"pkg:pypi/starlette@{pinned['starlette']}"
    listed = re.search(r"^starlette==.*?(?=^[a-z])", (REPOSITORY / "requirements.txt").read_text(), re.M | re.S)
    assert listed is not None
    hashes = re.findall(r"sha256:([0-9a-f]{64})", listed[0])
    assert [one["content"] for one in starlette["hashes"]] == hashes
    models = [one for one in bill["components"] if one["type"] == "machine-learning-model"]
    assert {one["name"] for one in models} == {"bundled/base", "bundled/sprint"}
    references = [one["bom-ref"] for one in bill["components"]]
    assert len(references) == len(set(references))
    # the same lock gives the same bill
    subprocess.run([sys.executable, "-m", "tools.sbom", str(tmp_path / "again.json")], cwd=REPOSITORY, check=True)
    assert (tmp_path / "again.json").read_bytes() == out.read_bytes()
