"""Requests that no client should send: damaged, aborted, oversized, of the wrong kind. Raw sockets, seeded.

`python -m tests.chaos.attack URL --requests 10000` sends them and prints the answers' statuses as JSON.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import pickle
import random
import socket
import struct
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from urllib.parse import urlsplit

ROUTES = ("/generate", "/sprint", "/", "/v1/images/generations", "/queue/fal-ai/sana", "/fal-ai/sana/sprint")
ANSWER_SECONDS = 60.0
UNFINISHED_SECONDS = 0.3
"""How long one waits who has not sent a whole request; the service would wait longer."""
AT_ONCE = 16

Dice = random.Random


def head(method: str, path: str, length: int | None, *lines: str, kind: str = "application/json") -> bytes:
    """A request's head."""
    own = [f"{method} {path} HTTP/1.1", "Host: sana.test", "Connection: close", f"Content-Type: {kind}", *lines]
    if length is not None:
        own.append(f"Content-Length: {length}")
    return ("\r\n".join(own) + "\r\n\r\n").encode("latin-1")


def post(dice: Dice, body: bytes, kind: str = "application/json") -> bytes:
    return head("POST", dice.choice(ROUTES), len(body), kind=kind) + body


def noise(dice: Dice) -> bytes:
    return dice.randbytes(dice.randint(1, 2000))


def nearly_http(dice: Dice) -> bytes:
    data = bytearray(post(dice, b'{"num_images": 99}'))
    for _ in range(dice.randint(1, 8)):
        data[dice.randrange(len(data))] = dice.randrange(256)
    return bytes(data)


def not_json(dice: Dice) -> bytes:
    return post(dice, dice.choice([b"", b"{", b"[1,", b"\xff\xfe", b'{"prompt": "\\ud800"}', b"[" * 5000, noise(dice)]))


def wrong_fields(dice: Dice) -> bytes:
    junk: list[object] = [
        None,
        [],
        {},
        -1,
        1e308,
        "x" * 20_000,
        True,
        "NaN",
        {"width": 10**9, "height": 1},
        [[[]]] * 50,
    ]
    names = ["prompt", "image_size", "seed", "num_images", "num_inference_steps", "guidance_scale", "x\x00y"]
    body = {"prompt": "a", "num_images": 99} | {dice.choice(names): dice.choice(junk) for _ in range(4)}
    body["num_images"] = 99  # never drawn
    return post(dice, json.dumps(body).encode())


def too_large(dice: Dice) -> bytes:
    return post(dice, b'{"prompt": "' + b"x" * dice.randint(262_144, 400_000) + b'"}')


def endless_head(dice: Dice) -> bytes:
    return head("GET", "/livez", None, *(f"X-{i}: {'y' * 200}" for i in range(dice.randint(100, 200))))


def foreign_kind(dice: Dice) -> bytes:
    kinds = ["application/vnd.bentoml+pickle", "multipart/form-data; boundary=x", "text/xml", "image/png"]
    return post(dice, pickle.dumps({"prompt": "a"}), dice.choice(kinds))


def strange_route(dice: Dice) -> bytes:
    path = dice.choice(["/x", "/generate/", "/files/../../etc/passwd", "/%00", "//", "/files/" + "a" * 8000])
    return head(dice.choice(["GET", "POST", "DELETE", "BREW", "OPTIONS"]), path, 0)


def bad_chunks(dice: Dice) -> bytes:
    return head("POST", dice.choice(ROUTES), None, "Transfer-Encoding: chunked") + b"zz\r\n" + noise(dice)


KINDS: tuple[Callable[[Dice], bytes], ...] = (
    noise, nearly_http, not_json, wrong_fields, too_large, endless_head, foreign_kind, strange_route, bad_chunks,
)  # fmt: skip


UNFINISHED = {noise, nearly_http, bad_chunks}
"""What may look like the beginning of something."""


async def attack_once(address: tuple[str, int], seed: int) -> str:
    """Send one request, whole or not; how it was answered: a status, or `aborted`, `closed`, `unfinished`, `silent`."""
    dice = random.Random(seed)
    kind = dice.choice(KINDS)
    data = kind(dice)
    aborts = dice.random() < 0.3
    try:
        reader, writer = await asyncio.open_connection(*address)
    except OSError:
        return "refused"
    try:
        # The rest never comes.
        writer.write(data[: dice.randint(0, len(data))] if aborts else data)
        if aborts:
            await asyncio.sleep(dice.random() * 0.02)
            return "aborted"
        if writer.can_write_eof() and dice.random() < 0.5:
            writer.write_eof()
        patience = UNFINISHED_SECONDS if kind in UNFINISHED else ANSWER_SECONDS
        first = await asyncio.wait_for(reader.read(65536), patience)
        return first[9:12].decode() if first.startswith(b"HTTP/1.1 ") else "closed"
    except TimeoutError:
        return "unfinished" if kind in UNFINISHED else "silent"
    except OSError:
        return "closed"
    finally:
        if aborts and dice.random() < 0.5:
            raw = writer.get_extra_info("socket")
            with suppress(OSError):
                raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        writer.transport.abort() if aborts else writer.close()
        with suppress(OSError):
            await writer.wait_closed()


async def attack(url: str, requests: int, seed: int = 0) -> Counter[str]:
    """So many of them, a few at a time; what came back, by kind."""
    parts = urlsplit(url)
    address = (parts.hostname or "127.0.0.1", parts.port or 80)
    numbers = iter(range(requests))
    answers: Counter[str] = Counter()

    async def attacker() -> None:
        for number in numbers:
            answers[await attack_once(address, seed * 1_000_003 + number)] += 1

    await asyncio.gather(*(attacker() for _ in range(AT_ONCE)))
    return answers


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    print(json.dumps(dict(asyncio.run(attack(options.url, options.requests, options.seed)))))
