"""`sana doctor`: what a start of the service would find, before it is started."""

from __future__ import annotations

import dataclasses
import os
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from sana_service.cli.output import print_json

_MARKS = {"ok": "[green]ok[/green]", "warning": "[yellow]warning[/yellow]", "problem": "[red]problem[/red]"}


def doctor(
    port: Annotated[int, typer.Option("--port", "-p", min=1, max=65535, help="Where it would listen.")] = 3000,
    host: Annotated[str, typer.Option(help="On which address.")] = "0.0.0.0",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Check GPU, driver, memory, disk, weights, keys, storage and port, and say what to do.

    It reads the `SANA_` variables as `sana serve` does. The exit code is 1 where the service would not start or not
    serve; a warning alone is 0.

    Examples:
    * `sana doctor`
    * `SANA_MODELS=hub sana doctor --json | jq '.findings[] | select(.status != "ok")'`
    """
    from sana_service.doctor import Finding, examine

    findings: list[Finding] = list(examine(os.environ, host, port))
    well = not any(finding.status == "problem" for finding in findings)
    if as_json:
        print_json({"ok": well, "findings": [dataclasses.asdict(finding) for finding in findings]})
    else:
        table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
        table.add_column(no_wrap=True)
        table.add_column(style="bold", no_wrap=True)
        table.add_column(overflow="fold")
        for finding in findings:
            table.add_row(_MARKS[finding.status], escape(finding.name), escape(finding.message))
            if finding.advice:
                table.add_row("", "", escape(f"-> {finding.advice}"))
        Console(highlight=False).print(table)
    if not well:
        raise typer.Exit(1)
