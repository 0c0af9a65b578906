"""`sana download`: the checkpoints into a folder that the service starts from."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sana_service.cli.output import fail, print_json, stderr

if TYPE_CHECKING:
    from sana_service.models.download import Checkpoint, Source

Precision = Literal["bf16", "full"]


def download(
    folder: Annotated[Path, typer.Argument(help="Where to put them; made where it is missing.")],
    base: Annotated[str | None, typer.Option(help="Base repository; SANA_BASE_MODEL otherwise.")] = None,
    base_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; SANA_BASE_REVISION.")] = None,
    sprint: Annotated[str | None, typer.Option(help="Sprint repository; SANA_SPRINT_MODEL.")] = None,
    sprint_revision: Annotated[str | None, typer.Option(help="Branch, tag or commit; SANA_SPRINT_REVISION.")] = None,
    safety: Annotated[str | None, typer.Option(help="Safety repository; `opennsfw` and `off` fetch none.")] = None,
    safety_revision: Annotated[str, typer.Option(help="Its branch, tag or commit.")] = "main",
    precision: Annotated[
        Precision, typer.Option(help="`bf16` takes the smaller weights where there are any; a CPU computes in float32.")
    ] = "bf16",
    verify: Annotated[bool, typer.Option("--verify", help="Hash what is there already, too.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of variables.")] = False,
) -> None:
    """Download the two checkpoints and the safety model, verified, and print the variables that name them.

    What arrived before an interruption is kept, so the same command goes on where it broke off. A second run fetches
    nothing, and with commits as revisions it does not even ask the hub. `HF_TOKEN` opens gated repositories,
    `HF_ENDPOINT` names another hub.

    Examples:
    * `sana download /models > sana.env`, then `docker run --env-file sana.env -v /models:/models:ro ...`
    * `sana download /models --base-revision 0123456789abcdef0123456789abcdef01234567`
    * `sana download /models --verify --json`
    """
    from sana_service.models.download import DownloadError, fetch, hub_bars, size_text

    folder = folder.expanduser().absolute()
    options = {"base": (base, base_revision), "sprint": (sprint, sprint_revision), "safety": (safety, safety_revision)}
    fetched: dict[str, Checkpoint] = {}
    with hub_bars(wanted=not as_json):
        sources, untouched = _sources(options)
        for source in sources:
            try:
                fetched[source.part] = fetch(
                    source,
                    folder / source.part,
                    prefer_bf16=precision == "bf16",
                    verify=verify,
                    tell=lambda line: stderr.print(line, markup=False, soft_wrap=True),
                )
            except DownloadError as error:
                fail(str(error))
            except KeyboardInterrupt:
                fail("interrupted; the same command resumes")
            done = fetched[source.part]
            size = f"{size_text(done.size)} in {len(done.files)} files"
            line = f"{source.part}: {done.repository} at commit {done.commit}, {size}"
            stderr.print(line, markup=False, soft_wrap=True)
    if as_json:
        print_json({part: _document(folder / part, checkpoint) for part, checkpoint in fetched.items()})
        return
    typer.echo("SANA_MODELS=hub")
    for part in fetched:
        typer.echo(f"SANA_{part.upper()}_MODEL={folder / part}")
    for name, value in untouched.items():
        typer.echo(f"{name}={value}")


def _sources(options: dict[str, tuple[str | None, str | None]]) -> tuple[list[Source], dict[str, str]]:
    """What to fetch: the options, else the service's own settings; and variables of what needs no fetching."""
    from sana_service.models.download import Source
    from sana_service.models.hub import is_repository
    from sana_service.safety import FALCONS_AI_REPOSITORY
    from sana_service.settings import SettingsError, load_settings

    try:
        settings = load_settings(os.environ)
    except SettingsError as error:
        fail(str(error))
    defaults = {
        "base": (settings.base_model, settings.base_revision),
        "sprint": (settings.sprint_model, settings.sprint_revision),
        "safety": (FALCONS_AI_REPOSITORY if settings.safety_model == "auto" else settings.safety_model, "main"),
    }
    sources, untouched = [], {}
    for part in ("base", "sprint", "safety"):
        repository = options[part][0] or defaults[part][0]
        if part == "safety" and repository in {"opennsfw", "off"}:
            untouched["SANA_SAFETY_MODEL"] = repository
            continue
        if not is_repository(repository):
            fail(f"{repository!r} is no repository of the hub such as owner/name; name one with --{part}")
        sources.append(Source(part, repository, options[part][1] or defaults[part][1]))
    return sources, untouched


def _document(folder: Path, checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "folder": str(folder),
        "repository": checkpoint.repository,
        "revision": checkpoint.revision,
        "commit": checkpoint.commit,
        "files": len(checkpoint.files),
        "bytes": checkpoint.size,
    }
