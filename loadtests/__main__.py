"""The command line: `python -m loadtests run|search|compare|suite|report|worker|matrix-rate`.

Exit codes: 0 good; 1 something failed (errors, wrong pictures, no server, a server that died); 2 the
arguments or a scenario are wrong; 3 the generator was late, so that the figures say nothing; 4 B is
slower than A; 75 parts of a suite are left for the next call.
"""

from __future__ import annotations

# Locust patches the standard library for gevent, which must come before anything that uses sockets.
import locust  # noqa: F401  isort: skip

import argparse
import json
import os
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import gevent

from loadtests import report, scenario
from loadtests.coldstart import cold_start
from loadtests.compare import interleaved
from loadtests.errors import HarnessError, reason, was_interrupted
from loadtests.explore import draw_curve, find_capacity, rate_of
from loadtests.floor import ARCHITECTURES, measured_matrix_rate
from loadtests.harness import KEY_VARIABLE, Harness, Options, check_server, work
from loadtests.provenance import provenance
from loadtests.revisions import serving
from loadtests.suite import Place, assemble, run_suite
from loadtests.suitefile import load_suite
from loadtests.trial import EXIT_FAILED, EXIT_INVALID, EXIT_OK, EXIT_SLOWER, EXIT_USAGE, Floor, judged, run_scenario

EXIT_LEFT = 75
_CODES = {"good": EXIT_OK, "failed": EXIT_FAILED, "invalid": EXIT_INVALID, "slower": EXIT_SLOWER}


def say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _address(value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        usable = False
    if not usable:
        raise argparse.ArgumentTypeError(f"{value!r} is no address such as http://127.0.0.1:3000")
    return value.rstrip("/")


def _at_least_one(value: str) -> int:
    if not value.isdecimal() or int(value) < 1:
        raise argparse.ArgumentTypeError("must be 1 or more")
    return int(value)


def _positive(value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise argparse.ArgumentTypeError(f"{value!r} is no number above 0")
    return number


def _shares(value: str) -> list[float]:
    return [_positive(share) for share in value.split(",") if share]


def parser() -> argparse.ArgumentParser:
    """All commands and options."""
    whole = argparse.ArgumentParser(prog="python -m loadtests", description=__doc__.split("\n\n")[1])
    commands = whole.add_subparsers(dest="command", required=True)

    def command(name: str, what: str, host: bool = True) -> argparse.ArgumentParser:
        added = commands.add_parser(name, help=what, description=what)
        if host:
            added.add_argument("--host", type=_address, default="http://127.0.0.1:3000", help="the server")
        added.add_argument("--out", type=Path, default=Path("results"), help="folder for the reports")
        added.add_argument("--key-file", type=Path, help=f"file with the API key; else the variable {KEY_VARIABLE}")
        added.add_argument("--processes", type=int, default=0, help="worker processes that send the load, here")
        added.add_argument("--expect-workers", type=int, default=0, help="workers that are started elsewhere")
        added.add_argument("--master-port", type=int, default=5557, help="where workers connect")
        added.add_argument("--web-port", type=int, help="show Locust's page there while the load runs")
        added.add_argument(
            "--server-pid", type=int, help="the server's process, if it is here and not found by its port"
        )
        added.add_argument("--model", choices=sorted(ARCHITECTURES), help="of the server, for the share of the floor")
        added.add_argument("--matrix-tflops", type=float, help="of the hardware, in 1e12 operations a second")
        added.add_argument("--matrix-origin", default="given", help="where that number is from, for the report")
        return added

    run = command("run", "run scenarios and write a report")
    run.add_argument("scenarios", nargs="+", type=Path)
    search = command("search", "find the largest rate that keeps the objective, and draw the curve around it")
    search.add_argument("scenario", type=Path)
    search.add_argument("--precision", type=_positive, default=0.03, help="relative width at which the search ends")
    search.add_argument(
        "--shares", type=_shares, default="0.2,0.4,0.6,0.8,0.9,1", help="of the capacity, for the curve; empty for none"
    )
    compare = command("compare", "measure two servers in turns A B B A", host=False)
    compare.add_argument("scenario", type=Path)
    for arm in ("a", "b"):
        group = compare.add_mutually_exclusive_group(required=True)
        group.add_argument(f"--{arm}", type=_address, help=f"address of server {arm.upper()}")
        group.add_argument(f"--{arm}-command", help="starts it; {port} stands for a free port")
        group.add_argument(f"--{arm}-commit", help="commit to check out and start with --serve")
    compare.add_argument("--serve", default="bentoml serve service:Sana --port {port}", help="starts a commit's server")
    compare.add_argument("--blocks", type=_at_least_one, default=3, help="of four runs each")
    compare.add_argument("--margin", type=float, default=0.05, help="relative difference that does not matter")
    suite = command("suite", "run a suite file, in parts that resume", host=False)
    suite.add_argument("file", type=Path)
    suite.add_argument("--again", action="store_true", help="run steps that have a result, too")
    suite.add_argument("--limit-seconds", type=float, help="begin no step that would end later")
    again = commands.add_parser("report", help="write the reports of a result.json again")
    again.add_argument("file", type=Path)
    worker = commands.add_parser("worker", help="send load for a master elsewhere")
    worker.add_argument("--master-host", default="127.0.0.1")
    worker.add_argument("--master-port", type=int, default=5557)
    rate = commands.add_parser("matrix-rate", help="measure the matrix rate of this machine; needs torch")
    rate.add_argument("--size", type=int, help="of the square matrices; 8192 on a GPU, else 2048")
    rate.add_argument("--device", help="cuda where there is one, else cpu")
    return whole


def _options(arguments: argparse.Namespace, host: str) -> Options:
    return Options(
        host=host,
        api_key=_key(arguments),
        processes=arguments.processes,
        remote_workers=arguments.expect_workers,
        master_port=arguments.master_port,
        web_port=arguments.web_port,
        server_pid=arguments.server_pid,
    )


def _key(arguments: argparse.Namespace) -> str:
    if arguments.key_file is None:
        return os.environ.get(KEY_VARIABLE, "")
    try:
        key: str = arguments.key_file.read_text(encoding="utf-8").strip()
    except OSError as error:
        raise HarnessError(f"{arguments.key_file}: the key cannot be read, {error.strerror}") from error
    return key


def _floor(arguments: argparse.Namespace) -> Floor | None:
    if not arguments.model or not arguments.matrix_tflops:
        return None
    return Floor(ARCHITECTURES[arguments.model], arguments.matrix_tflops * 1e12, arguments.matrix_origin)


def _finish(arguments: argparse.Namespace, document: dict[str, Any], api_key: str) -> int:
    document["provenance"]["command"] = " ".join(["python -m loadtests", *arguments.argv])
    report.write(document, arguments.out, api_key)
    word = report.verdict(document)
    for part in document["parts"]:
        # The others were told as they came.
        if part["type"] in {"capacity", "curve", "comparison", "cold_start"}:
            for line in [*part["failures"], *part["invalid"]]:
                say(f"{part['name']}: {line}")
    say(f"{word}; report in {arguments.out / 'report.html'}")
    print(json.dumps({"verdict": word, "report": str(arguments.out / "report.html")}))
    if any(was_interrupted(part) for part in document["parts"]):
        raise KeyboardInterrupt
    return _CODES[word]


def _document(title: str, host: str, parts: list[dict[str, Any]]) -> dict[str, Any]:
    return {"schema": report.SCHEMA, "title": title, "provenance": provenance(host), "parts": parts}


def _load(path: Path) -> scenario.Load:
    loaded = scenario.load(path)
    if isinstance(loaded, scenario.ColdStart):
        raise scenario.ScenarioError(f"{path}: a cold_start is for `run` alone")
    return loaded


def run(arguments: argparse.Namespace) -> int:
    """Run scenarios, one after the other, against a running server; what ends one leaves those before it."""
    options = _options(arguments, arguments.host)
    loaded = _loaded(arguments.scenarios)
    parts: list[dict[str, Any]] = []
    harness: Harness | None = None
    try:
        for each in loaded:
            if isinstance(each, scenario.ColdStart):
                parts.append({"type": "cold_start", "name": each.name, **cold_start(each, options.api_key, say)})
                continue
            check_server(options.host, options.api_key)
            harness = harness or Harness(options)
            done = run_scenario(harness, each, arguments.out, _floor(arguments), say)
            parts.append({"type": "scenario", "name": each.name, **done})
            if was_interrupted(done):
                break
    except (HarnessError, KeyboardInterrupt) as error:
        if not parts:
            raise
        say(f"{each.name}: {reason(error)}")
        parts.append({"type": "failed", "name": each.name, "failures": [reason(error)]})
    finally:
        if harness:
            harness.close()
    title = ", ".join(each.name for each in loaded)
    return _finish(arguments, _document(title, options.host, parts), options.api_key)


def _loaded(paths: Sequence[Path]) -> list[scenario.Load | scenario.ColdStart]:
    """The scenarios of some files, cold starts first.

    Raises:
        ScenarioError: one is wrong, or two have the same name.
    """
    loaded = [scenario.load(path) for path in paths]
    names = [each.name for each in loaded]
    for name in names:
        if names.count(name) > 1:
            raise scenario.ScenarioError(f"two scenarios are named {name!r}: their records would replace each other")
    return sorted(loaded, key=lambda each: not isinstance(each, scenario.ColdStart))


def search(arguments: argparse.Namespace) -> int:
    """Find the capacity and draw the curve."""
    options = _options(arguments, arguments.host)
    load = _load(arguments.scenario)
    rate_of(load)
    check_server(options.host, options.api_key)
    harness = Harness(options)
    try:
        found = find_capacity(harness, load, arguments.precision, say)
        parts = [{"type": "capacity", "name": f"Capacity: {load.name}", **found}]
        if arguments.shares and found["rate"] and not found["failures"]:
            drawn = draw_curve(harness, load, found["rate"], arguments.shares, say)
            parts.append({"type": "curve", "name": f"Latency and throughput: {load.name}", **drawn})
    finally:
        harness.close()
    return _finish(arguments, _document(f"Capacity: {load.name}", options.host, parts), options.api_key)


def compare(arguments: argparse.Namespace) -> int:
    """Measure two servers in turns."""
    load = _load(arguments.scenario)
    api_key = _key(arguments)
    with serving(arguments, "a") as serve_a, serving(arguments, "b") as serve_b:

        def one(arm: str, number: int) -> dict[str, Any]:
            say(f"{load.name}: {arm}, run {number + 1} of {4 * arguments.blocks}")
            with (serve_a if arm == "A" else serve_b)() as host:
                check_server(host, api_key)
                harness = Harness(_options(arguments, host))
                try:
                    return judged(load, number, harness.run(load, number), None)
                finally:
                    harness.close()

        found = interleaved(one, arguments.blocks, arguments.margin)
    names = {
        arm: getattr(arguments, arm) or getattr(arguments, f"{arm}_command") or getattr(arguments, f"{arm}_commit")
        for arm in ("a", "b")
    }
    part = {"type": "comparison", "name": load.name, "scenario": load.model_dump(mode="json"), **names, **found}
    return _finish(arguments, _document(f"{load.name}: B against A", names["b"], [part]), api_key)


def suite(arguments: argparse.Namespace) -> int:
    """Run the parts of a suite that are left."""
    options = _options(arguments, "")
    wanted = load_suite(arguments.file)
    place = Place(arguments.out, options, _floor(arguments), say, arguments.limit_seconds, arguments.again)
    try:
        document, left = run_suite(wanted, place)
    except KeyboardInterrupt:
        _finish(arguments, assemble(wanted, arguments.out, options.host), options.api_key)
        raise
    code = _finish(arguments, document, options.api_key)
    if left:
        say(f"left for the next call: {', '.join(left)}")
    return EXIT_LEFT if left and code == EXIT_OK else code


def again(arguments: argparse.Namespace) -> int:
    """Write Markdown and HTML of a result once more."""
    try:
        document = json.loads(arguments.file.read_text(encoding="utf-8"))
        report.write(document, arguments.file.parent)
    except (OSError, ValueError, LookupError, TypeError) as error:
        raise HarnessError(f"{arguments.file}: is no result, {type(error).__name__}: {error}") from error
    return EXIT_OK


def be_worker(arguments: argparse.Namespace) -> int:
    """Send load for a master."""
    work(arguments.master_host, arguments.master_port, os.environ.get(KEY_VARIABLE, ""))
    return EXIT_OK


def matrix_rate(arguments: argparse.Namespace) -> int:
    """Measure how fast this machine multiplies matrices."""
    import torch

    device = arguments.device or ("cuda" if torch.cuda.is_available() else "cpu")
    size = arguments.size or (8192 if device.startswith("cuda") else 2048)
    rate = measured_matrix_rate(size, device)
    print(json.dumps({"tflops": rate / 1e12, "size": size, "device": device}))
    return EXIT_OK


_COMMANDS: dict[str, Callable[[argparse.Namespace], int]] = {
    "run": run,
    "search": search,
    "compare": compare,
    "suite": suite,
    "report": again,
    "worker": be_worker,
    "matrix-rate": matrix_rate,
}


def _interrupt_here() -> None:
    """SIGINT and SIGTERM interrupt this greenlet, which stops servers and writes reports, and no other one.

    Python would interrupt whichever runs; Locust's that starts users takes that for an order of its own.
    """
    for number in (signal.SIGINT, signal.SIGTERM):
        gevent.signal_handler(number, gevent.kill, gevent.getcurrent(), KeyboardInterrupt)


def _make_folder(path: Path) -> None:
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise HarnessError(f"{path}: the folder cannot be made, {error.strerror}") from error


def main(argv: Sequence[str] | None = None) -> int:
    """Do what the arguments say; the exit code."""
    arguments = parser().parse_args(argv)
    arguments.argv = sys.argv[1:] if argv is None else list(argv)
    # Locust's page parses them, too, and knows other ones.
    sys.argv = sys.argv[:1]
    try:
        if "out" in arguments:
            _interrupt_here()
            _make_folder(arguments.out)
        return _COMMANDS[arguments.command](arguments)
    except scenario.ScenarioError as error:
        say(str(error))
        return EXIT_USAGE
    except HarnessError as error:
        say(str(error))
        return EXIT_FAILED
    except KeyboardInterrupt:
        say("interrupted; what was measured so far is kept")
        return 130


if __name__ == "__main__":
    sys.exit(main())
