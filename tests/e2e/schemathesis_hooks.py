"""The one rule of a request that JSON Schema cannot say: width times height has a limit."""

from __future__ import annotations

from typing import Any

import schemathesis

MAX_PIXELS = 16_777_216


def _is_side(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 64 <= value <= 14142


@schemathesis.hook
def map_body(context: schemathesis.HookContext, body: Any) -> Any:
    """Shrink the height of an object size whose sides are valid one by one."""
    size = body.get("image_size") if isinstance(body, dict) else None
    if isinstance(size, dict) and _is_side(size.get("width")) and _is_side(size.get("height")):
        size["height"] = min(size["height"], MAX_PIXELS // size["width"])
    return body
