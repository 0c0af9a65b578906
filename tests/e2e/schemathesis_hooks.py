"""The rules of a request that JSON Schema cannot say.

Width times height has a limit; a key belongs to one request, and to none with `sync_mode`.
"""

from __future__ import annotations

import re
import uuid
from typing import Any

import schemathesis

from sana_service.contract.idempotency import KEY_PATTERN

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


@schemathesis.hook
def before_call(context: schemathesis.HookContext, case: Any, kwargs: dict[str, Any]) -> None:
    """Give each request whose key is well formed one of its own, or none where the answer is not kept."""
    headers = case.headers
    key = headers.get("Idempotency-Key") if headers else None
    if not isinstance(key, str) or not re.fullmatch(KEY_PATTERN, key):
        return
    if isinstance(case.body, dict) and case.body.get("sync_mode") is True:
        del headers["Idempotency-Key"]
    else:
        headers["Idempotency-Key"] = uuid.uuid4().hex
