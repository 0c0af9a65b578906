"""`sana generate`: a picture, drawn by a running service or in this process."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from sana_service.cli.output import fail, print_json, progress_bar, stderr

if TYPE_CHECKING:
    from sana_service.cli.drawing import Drawing

Model = Literal["base", "sprint"]
Show = Literal["auto", "never"]

_FORMATS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png"}


def generate(
    prompt: Annotated[str, typer.Argument(help="What the picture should show.")],
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="PNG or JPEG; several are numbered. By default sana-SEED.jpg."),
    ] = None,
    model: Annotated[Model, typer.Option("--model", "-m", help="`sprint` takes 2 steps instead of 18.")] = "base",
    size: Annotated[
        str, typer.Option("--size", "-s", help="WIDTHxHEIGHT, or a preset such as landscape_16_9.")
    ] = "square_hd",
    seed: Annotated[int | None, typer.Option(help="The same seed draws the same picture.")] = None,
    steps: Annotated[int | None, typer.Option(help="Denoising steps; 18, sprint 2.")] = None,
    guidance: Annotated[float | None, typer.Option(help="How closely to follow the prompt; 5.")] = None,
    count: Annotated[int, typer.Option("--count", "-n", min=1, max=4, help="How many pictures.")] = 1,
    negative: Annotated[str, typer.Option(help="What to avoid; not read by sprint.")] = "",
    style: Annotated[str | None, typer.Option(help='A style such as "Pixel art".')] = None,
    safety: Annotated[bool, typer.Option(help="Blacken what the safety model flags.")] = True,
    url: Annotated[
        str | None,
        typer.Option(envvar="SANA_URL", help="A running service. Without it the models are loaded here."),
    ] = None,
    key: Annotated[str | None, typer.Option(envvar="SANA_KEY", help="API key of that service.")] = None,
    show: Annotated[Show, typer.Option(help="Show the picture in a terminal that can.")] = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="One JSON document instead of file names.")] = False,
) -> None:
    """Draw pictures from a text and write them to files.

    Examples:
    * `sana generate "a red circle on a blue background" -o circle.png`
    * `sana generate "a fox" -n 4 --model sprint --url http://localhost:3000`
    * `sana generate "a fox" --seed 7 --size 1920x1080 --json | jq -r '.images[].path'`
    """
    if output is not None and output.suffix.lower() not in _FORMATS:
        raise typer.BadParameter("the file must end with .png, .jpg or .jpeg", param_hint="--output")
    request: dict[str, Any] = {
        "prompt": prompt,
        "image_size": _size(size),
        "num_images": count,
        "output_format": _FORMATS[output.suffix.lower()] if output is not None else "jpeg",
        "enable_safety_checker": safety,
    }
    optional = {"seed": seed, "num_inference_steps": steps, "guidance_scale": guidance, "style_name": style}
    request |= {name: value for name, value in optional.items() if value is not None}
    if negative and model == "sprint":
        raise typer.BadParameter("sprint does not read it", param_hint="--negative")
    if negative:
        request["negative_prompt"] = negative
    drawing = _draw(model, request, url, key, quiet=as_json)
    paths = _write(drawing, output)
    if as_json:
        print_json(_document(drawing, paths))
    else:
        _say(drawing, paths, show)


def _draw(model: Model, request: dict[str, Any], url: str | None, key: str | None, quiet: bool) -> Drawing:
    from sana_service.cli import drawing

    with progress_bar(quiet) as bar:
        try:
            if url is not None:
                return drawing.by_service(model, request, url, key, bar.tell)
            return drawing.in_process(model, request, bar.tell)
        except drawing.DrawingError as error:
            fail(str(error))
        except KeyboardInterrupt:
            fail("interrupted")


def _size(text: str) -> Any:
    width, by, height = text.lower().partition("x")
    if by and width.isdecimal() and height.isdecimal():
        return {"width": int(width), "height": int(height)}
    return text


def _write(drawing: Drawing, output: Path | None) -> list[Path]:
    first = output or Path(f"sana-{drawing.seed}.jpg")
    paths = [first]
    if len(drawing.images) > 1:
        paths = [first.with_stem(f"{first.stem}-{i}") for i in range(1, len(drawing.images) + 1)]
    for path, content in zip(paths, drawing.images, strict=True):
        try:
            path.write_bytes(content)
        except OSError as error:
            fail(f"{path} cannot be written: {error.strerror}")
    return paths


def _document(drawing: Drawing, paths: list[Path]) -> dict[str, Any]:
    images = [
        {"path": str(path), "seed": (drawing.seed + i) % 2**64, "flagged": flagged, "file_size": len(content)}
        for i, (path, content, flagged) in enumerate(zip(paths, drawing.images, drawing.flagged, strict=True))
    ]
    return {"images": images, "seed": drawing.seed, "timings": drawing.timings}


def _say(drawing: Drawing, paths: list[Path], show: Show) -> None:
    from sana_service.cli import terminal

    for path, content, flagged in zip(paths, drawing.images, drawing.flagged, strict=True):
        if show == "auto":
            terminal.show(content)
        if flagged:
            stderr.print("the safety model flagged the next picture, so it is black")
        typer.echo(str(path))
    seconds = sum(drawing.timings.values())
    stderr.print(f"seed {drawing.seed}, {seconds:.1f} s")
