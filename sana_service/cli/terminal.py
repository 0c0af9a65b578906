"""A picture in the terminal: kitty's and iTerm2's protocols, else coloured half blocks, else nothing."""

from __future__ import annotations

import base64
import io
import os
import sys
from collections.abc import Iterator, Mapping
from typing import Literal

Protocol = Literal["kitty", "iterm", "blocks"]

_KITTY_CHUNK = 4096
_BLOCK_COLUMNS = 60


def protocol(environ: Mapping[str, str] = os.environ) -> Protocol | None:
    """What the terminal can show; None where it cannot."""
    term, program = environ.get("TERM", ""), environ.get("TERM_PROGRAM", "")
    if environ.get("TMUX") or term in {"", "dumb"} or term.startswith("screen"):
        return None
    if "KITTY_WINDOW_ID" in environ or term in {"xterm-kitty", "xterm-ghostty"} or program == "ghostty":
        return "kitty"
    if program in {"iTerm.app", "WezTerm", "vscode", "mintty"}:
        return "iterm"
    return "blocks" if environ.get("COLORTERM") in {"truecolor", "24bit"} else None


def rendered(content: bytes, how: Protocol) -> str:
    """The text that shows a PNG or JPEG."""
    return "".join({"kitty": _kitty, "iterm": _iterm, "blocks": _blocks}[how](content))


def show(content: bytes) -> None:
    """Show a picture on stderr, where it is a terminal that can."""
    how = protocol()
    if how is not None and sys.stderr.isatty():
        sys.stderr.write(rendered(content, how) + "\n")


def _kitty(content: bytes) -> Iterator[str]:
    from PIL import Image

    file = io.BytesIO()
    with Image.open(io.BytesIO(content)) as image:
        image.thumbnail((1024, 1024))
        image.save(file, "png")
    encoded = base64.standard_b64encode(file.getvalue()).decode()
    chunks = [encoded[at : at + _KITTY_CHUNK] for at in range(0, len(encoded), _KITTY_CHUNK)]
    for i, chunk in enumerate(chunks):
        control = "a=T,f=100,r=20," if i == 0 else ""
        yield f"\033_G{control}m={int(i < len(chunks) - 1)};{chunk}\033\\"


def _iterm(content: bytes) -> Iterator[str]:
    encoded = base64.standard_b64encode(content).decode()
    yield f"\033]1337;File=inline=1;size={len(content)};height=20:{encoded}\a"


def _blocks(content: bytes) -> Iterator[str]:
    """Two pixels in a character: the upper half in the foreground's colour, the lower in the background's."""
    from PIL import Image

    with Image.open(io.BytesIO(content)) as image:
        columns = min(_BLOCK_COLUMNS, image.width)
        rows = max(2, round(image.height * columns / image.width) // 2 * 2)
        small = image.convert("RGB").resize((columns, rows))
    pixels = small.load()
    assert pixels is not None
    for y in range(0, rows, 2):
        for x in range(columns):
            (r, g, b), (s, h, c) = pixels[x, y], pixels[x, y + 1]  # type: ignore[misc]
            yield f"\033[38;2;{r};{g};{b};48;2;{s};{h};{c}m\N{UPPER HALF BLOCK}"
        yield "\033[0m\n"
