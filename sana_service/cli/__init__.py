"""The `sana` command: one roof, a module for each command.

Commands import what they need when they run, so that help and completion answer at once. Results go
to stdout, everything else to stderr; `--json` makes the results one JSON document. A failure is one
line and exit code 1, wrong usage exit code 2.
"""

from __future__ import annotations

import os
from typing import Annotated

import typer

from sana_service import __version__
from sana_service.cli.doctor import doctor
from sana_service.cli.download import download
from sana_service.cli.generate import generate
from sana_service.cli.inspect import inspect
from sana_service.cli.serve import serve
from sana_service.environment import keep_quiet

app = typer.Typer(
    name="sana",
    help="Draw pictures from text with NVIDIA's Sana and SANA-Sprint.",
    epilog="`sana COMMAND --help` shows examples. `sana --install-completion` teaches the shell to complete.",
    no_args_is_help=True,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(serve)
app.command()(generate)
app.command()(inspect)
app.command()(download)
app.command()(doctor)


def _show_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"sana {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    pass


def main() -> None:
    """The entry point."""
    keep_quiet(os.environ)
    app(prog_name="sana")
