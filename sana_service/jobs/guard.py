"""Which addresses a webhook may be sent to, and a connection that goes there and nowhere else.

    URL --> allowed? (operator's list) --> resolve once --> every address public? --> connect to that address

The list has two kinds of entries. A host name, or `*.example.com` for what is below it, allows
https on port 443 where every address it resolves to is public. A whole origin such as
`http://hooks.internal:9000` is trusted as it stands, private or not. Nothing is allowed by default.

The name is resolved once and the connection goes to that very address with the name kept for TLS
and `Host`, so that a second answer of the DNS changes nothing. Redirects are not followed, proxies
of the environment are not used.
"""

from __future__ import annotations

import ipaddress
import socket
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import urlsplit

import httpx

MAX_URL_CHARACTERS = 2048

_NAT64 = ipaddress.ip_network("64:ff9b::/96")
_NAT64_LOCAL = ipaddress.ip_network("64:ff9b:1::/48")
_CARRIER_GRADE_NAT = ipaddress.ip_network("100.64.0.0/10")
# Deprecated in RFC 4291, still routed to hosts by old stacks.
_IPV4_COMPATIBLE = ipaddress.ip_network("::/96")

Address = ipaddress.IPv4Address | ipaddress.IPv6Address


class Refused(Exception):
    """The URL may not be called; the message is one line for the client."""


@dataclass(frozen=True)
class Target:
    """Where a webhook goes.

    Args:
        url: as the client gave it.
        host, port: of the URL.
        trusted: whether the operator named this very origin.
    """

    url: str
    scheme: str
    host: str
    port: int
    trusted: bool


def check_entry(entry: str) -> str:
    """An entry of the operator's list, in lower case.

    Raises:
        ValueError: it is neither a host name, nor `*.` and one, nor an origin.
    """
    entry = entry.lower().rstrip("/")
    if "://" in entry:
        parts = urlsplit(entry)
        whole = parts.scheme in {"http", "https"} and parts.hostname and not parts.path and "@" not in parts.netloc
        if whole:
            return entry
    elif entry and not any(mark in entry for mark in "/:@?# ") and "*" not in entry.removeprefix("*."):
        return entry
    raise ValueError(
        "must be host names such as hooks.example.com or *.example.com, or origins such as http://10.0.0.5:9000"
    )


def check_url(url: str, allowed: Sequence[str]) -> Target:
    """The target of a webhook URL; nothing is resolved yet.

    Raises:
        Refused: it is malformed, or not on the operator's list.
    """
    if not allowed:
        raise Refused("Webhooks are not enabled on this service.")
    if len(url) > MAX_URL_CHARACTERS or not url.isascii() or not url.isprintable() or " " in url or "\\" in url:
        raise Refused(f"The webhook URL must be plain ASCII of at most {MAX_URL_CHARACTERS} characters.")
    try:
        parts = urlsplit(url)
        host, port = (parts.hostname or "").rstrip("."), parts.port
    except ValueError as error:
        raise Refused("The webhook URL is malformed.") from error
    if parts.scheme not in {"http", "https"} or not host or "@" in parts.netloc:
        raise Refused("The webhook URL must be http or https, with a host and without a user name.")
    port = port or (443 if parts.scheme == "https" else 80)
    trusted = any(_is_origin(entry, parts.scheme, host, port) for entry in allowed)
    if not trusted:
        if not any(_matches(entry, host) for entry in allowed):
            raise Refused("The webhook's host is not allowed on this service.")
        if parts.scheme != "https" or port != 443:
            raise Refused("The webhook URL must be https on port 443.")
    return Target(url, parts.scheme, host, port, trusted)


def resolve(target: Target) -> str:
    """The address to connect to. Blocks on the DNS.

    Raises:
        Refused: an address it resolves to is not public.
        OSError: it does not resolve.
    """
    answers = socket.getaddrinfo(target.host, target.port, type=socket.SOCK_STREAM)
    addresses = [str(answer[4][0]) for answer in answers]
    if not target.trusted:
        for address in addresses:
            if not is_public(address):
                raise Refused("The webhook's host does not resolve to public addresses alone.")
    return addresses[0]


def is_public(address: str) -> bool:
    """Whether an address is a host of the internet, whatever form it is written in."""
    try:
        parsed: Address = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    inner = _embedded(parsed)
    if inner is not None:
        return is_public(str(inner))
    if isinstance(parsed, ipaddress.IPv4Address) and parsed in _CARRIER_GRADE_NAT:
        return False
    if isinstance(parsed, ipaddress.IPv6Address) and (parsed in _NAT64_LOCAL or parsed.is_site_local):
        return False
    return parsed.is_global and not (
        parsed.is_private
        or parsed.is_loopback
        or parsed.is_link_local
        or parsed.is_multicast
        or parsed.is_reserved
        or parsed.is_unspecified
    )


def post(target: Target, body: bytes, headers: dict[str, str], timeout_seconds: float) -> int:
    """POST to a target; the status it answered. Blocks.

    Raises:
        Refused: its host no longer resolves to public addresses.
        OSError: it does not resolve.
        httpx.HTTPError: it does not answer, or not in time.
    """
    address = resolve(target)
    url = httpx.URL(target.url).copy_with(host=address)
    default_port = target.port == (443 if target.scheme == "https" else 80)
    named = f"[{target.host}]" if ":" in target.host else target.host
    host = named if default_port else f"{named}:{target.port}"
    with httpx.Client(trust_env=False, follow_redirects=False, timeout=timeout_seconds) as client:
        request = client.build_request(
            "POST", url, content=body, headers={**headers, "host": host}, extensions={"sni_hostname": target.host}
        )
        answer = client.send(request, stream=True)
        answer.close()
        return answer.status_code


def _is_origin(entry: str, scheme: str, host: str, port: int) -> bool:
    parts = urlsplit(entry)
    if not parts.scheme:
        return False
    return (parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)) == (
        scheme,
        host,
        port,
    )


def _matches(entry: str, host: str) -> bool:
    if "://" in entry:
        return False
    if entry.startswith("*."):
        return host.endswith(entry[1:]) and len(host) > len(entry) - 1
    return host == entry


def _embedded(address: Address) -> ipaddress.IPv4Address | None:
    """The IPv4 address that an IPv6 one stands for, in any of the five ways."""
    if not isinstance(address, ipaddress.IPv6Address):
        return None
    if address.ipv4_mapped is not None:
        return address.ipv4_mapped
    if address.sixtofour is not None:
        return address.sixtofour
    if address.teredo is not None:
        return address.teredo[1]
    if address in _NAT64 or (address in _IPV4_COMPATIBLE and int(address) > 1):
        return ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
    return None
