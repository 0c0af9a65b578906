"""Which webhooks are allowed: addresses by hand from the registries, URLs from the parsers' corner cases."""

from __future__ import annotations

import http.server
import socket
import threading
from typing import ClassVar

import pytest

from sana_service.jobs.guard import Refused, check_entry, check_url, is_public, post, resolve

ALLOWED = ("hooks.example.com", "*.example.org", "http://10.0.0.5:9000")


@pytest.mark.parametrize(
    ("url", "trusted"),
    [
        ("https://hooks.example.com/a?b=c", False),
        ("https://HOOKS.example.com:443/", False),
        ("https://hooks.example.com./", False),
        ("https://a.example.org/", False),
        ("https://a.b.example.org/", False),
        ("http://10.0.0.5:9000/x", True),
    ],
)
def test_allowed_urls(url, trusted):
    assert check_url(url, ALLOWED).trusted is trusted


@pytest.mark.parametrize(
    "url",
    [
        "https://other.example.com/",
        "https://hooks.example.com.evil.net/",
        "https://example.org/",
        "https://evilexample.org/",
        "http://hooks.example.com/",
        "https://hooks.example.com:8443/",
        "https://user@hooks.example.com/",
        "https://hooks.example.com@evil.net/",
        "https://evil.net\\@hooks.example.com/",
        "https://evil.net#@hooks.example.com/",
        "https://hooks.example.com%00.evil.net/",
        "https:///hooks.example.com",
        "https://[hooks.example.com]/",
        "https://hooks.example.com:x/",
        "https://hooks.exämple.com/",
        "https://hooks.example.com/\r\nx",
        "https://hooks.example.com/ x",
        "ftp://hooks.example.com/",
        "file:///etc/passwd",
        "hooks.example.com",
        "",
        "http://10.0.0.5/",
        "https://10.0.0.5:9000/",
        "http://10.0.0.5:9000@evil.net/",
        "https://hooks.example.com/" + "a" * 2048,
    ],
)
def test_refused_urls(url):
    with pytest.raises(Refused):
        check_url(url, ALLOWED)


def test_nothing_is_allowed_by_default():
    with pytest.raises(Refused, match="not enabled"):
        check_url("https://hooks.example.com/", ())


@pytest.mark.parametrize(
    "address", ["93.184.216.34", "8.8.8.8", "2606:4700:4700::1111", "::ffff:8.8.8.8", "64:ff9b::808:808"]
)
def test_public_addresses(address):
    assert is_public(address)


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254",
        "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1", "255.255.255.255",
        "::1", "::", "fe80::1", "fe80::1%eth0", "fc00::1", "fec0::1", "ff02::1", "2001:db8::1",
        "::ffff:127.0.0.1", "::ffff:169.254.169.254", "::127.0.0.1", "64:ff9b::7f00:1", "64:ff9b:1::1",
        "2002:7f00:1::", "2002:a9fe:a9fe::1", "2001:0:4136:e378:8000:63bf:80ff:fffe", "no address", "",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address):
    assert not is_public(address)


def answers(monkeypatch: pytest.MonkeyPatch, *addresses: str) -> None:
    found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, 443)) for address in addresses]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)


def test_one_private_answer_refuses_the_host(monkeypatch):
    target = check_url("https://hooks.example.com/", ALLOWED)
    answers(monkeypatch, "8.8.8.8")
    assert resolve(target) == "8.8.8.8"
    answers(monkeypatch, "8.8.8.8", "169.254.169.254")
    with pytest.raises(Refused, match="public"):
        resolve(target)
    answers(monkeypatch, "10.0.0.5")
    assert resolve(check_url("http://10.0.0.5:9000/", ALLOWED)) == "10.0.0.5"


@pytest.mark.parametrize("entry", ["hooks.example.com", "*.example.org", "http://10.0.0.5:9000", "https://h.test"])
def test_entries(entry):
    assert check_entry(entry.upper() + ("/" if "://" in entry else "")) == entry


@pytest.mark.parametrize("entry", ["", "*", "a.*.b", "a/b", "http://a/b", "http://u@a", "ftp://a", "a:80", "a b"])
def test_entries_that_are_refused(entry):
    with pytest.raises(ValueError, match="must be host names"):
        check_entry(entry)


class Receiver(http.server.BaseHTTPRequestHandler):
    hits: ClassVar[list[tuple[str, str, bytes]]] = []

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        self.hits.append((self.path, self.headers["host"], body))
        self.send_response(302 if self.path == "/moved" else 204)
        self.send_header("location", "http://169.254.169.254/")
        self.end_headers()

    def log_message(self, *_):
        pass


def test_the_connection_goes_to_the_address_that_was_checked_and_no_further(monkeypatch):
    server = http.server.HTTPServer(("127.0.0.1", 0), Receiver)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    port = server.server_port
    lookups = []

    def lookup(host, *rest, **options):
        lookups.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.0.1", port))]

    real = socket.getaddrinfo
    monkeypatch.setattr(
        socket, "getaddrinfo", lambda host, *a, **k: lookup(host) if host == "hooks.test" else real(host, *a, **k)
    )
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    allowed = (f"http://hooks.test:{port}",)
    for path, status in (("/a?b=1", 204), ("/moved", 302)):
        assert post(check_url(f"http://hooks.test:{port}{path}", allowed), b"body", {}, 5) == status
    server.shutdown()
    server.server_close()
    assert lookups == ["hooks.test"] * 2
    assert Receiver.hits == [("/a?b=1", f"hooks.test:{port}", b"body"), ("/moved", f"hooks.test:{port}", b"body")]
