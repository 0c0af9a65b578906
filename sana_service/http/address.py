"""Under which address the client reached the service."""

from __future__ import annotations

import re

from starlette.datastructures import Headers
from starlette.types import Scope

_HOST = re.compile(r"(\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(:[0-9]{1,5})?")


def base_url(scope: Scope) -> str:
    """Scheme and Host of a request; the socket's address when the Host is missing or malformed."""
    host = Headers(scope=scope).get("host", "")
    if not _HOST.fullmatch(host):
        address, port = scope["server"]
        host = f"{address}:{port}"
    return f"{scope['scheme']}://{host}"
