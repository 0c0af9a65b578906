"""`sana inspect`: what a picture file says of its making, and whether that can be believed."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Table

from sana_service.cli.output import fail, print_json, stderr

_SIGNATURES = {b"\x89PNG\r\n\x1a\n": "image/png", b"\xff\xd8\xff": "image/jpeg"}


def inspect(
    file: Annotated[Path, typer.Argument(help="A PNG or JPEG.", exists=True, dir_okay=False)],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document.")] = False,
) -> None:
    """Show a picture's prompt, seed and settings, its digital source type, and verify its C2PA manifest.

    The exit code is 1 where a manifest does not fit the file.

    Examples:
    * `sana inspect picture.png`
    * `sana inspect picture.jpg --json | jq .settings.seed`
    """
    told = _read(file)
    if as_json:
        print_json(told)
    else:
        _show(file, told)
    manifest = told["c2pa"]
    if manifest is not None and not manifest.get("valid", True):
        raise typer.Exit(1)


def _read(file: Path) -> dict[str, Any]:
    from sana_service import metadata, provenance

    try:
        data = file.read_bytes()
        settings = metadata.read(data)
        source_type = provenance.read_source_type(data)
        infotext = metadata.read_infotext(data)
    except OSError as error:
        fail(f"{file} cannot be read: {error.strerror or 'it is neither PNG nor JPEG'}")
    content_type = next(kind for signature, kind in _SIGNATURES.items() if data.startswith(signature))
    manifest: dict[str, Any] | None
    try:
        found = provenance.verify(data, content_type)
        manifest = None if found is None else dataclasses.asdict(found)
    except provenance.SigningError as error:
        manifest = {"unchecked": str(error)}
    return {
        "file": str(file),
        "content_type": content_type,
        "settings": None if settings is None else dataclasses.asdict(settings),
        "infotext": infotext,
        "digital_source_type": source_type,
        "c2pa": manifest,
    }


def _show(file: Path, told: dict[str, Any]) -> None:
    from rich.console import Console

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    table.add_column(style="bold", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row("file", escape(f"{file} ({told['content_type']})"))
    if told["settings"] is None:
        table.add_row("settings", "none of this service's" + (", but an infotext" if told["infotext"] else ""))
        if told["infotext"]:
            table.add_row("infotext", escape(told["infotext"]))
    else:
        for name, value in told["settings"].items():
            table.add_row(name.replace("_", " "), escape(str(value)))
    source = told["digital_source_type"]
    table.add_row("source type", escape(source.rpartition("/")[2]) if source else "not said")
    table.add_row("C2PA", _manifest_line(told["c2pa"]))
    Console(highlight=False).print(table)
    if told["c2pa"] and told["c2pa"].get("faults"):
        for fault in told["c2pa"]["faults"]:
            stderr.print(f"  {escape(fault)}")


def _manifest_line(manifest: dict[str, Any] | None) -> str:
    if manifest is None:
        return "no manifest"
    if "unchecked" in manifest:
        return escape(f"not checked: {manifest['unchecked']}")
    signer = " of ".join(filter(None, (manifest["common_name"], manifest["issuer"]))) or "an unknown signer"
    if not manifest["valid"]:
        return f"[red]does not fit the file[/red]; it names {escape(signer)}"
    return escape(f"fits the file, signed by {signer}; whether to trust them is yours to say")
