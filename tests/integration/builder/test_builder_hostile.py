"""Pushes that are made to hurt: packs that grow, refs that pretend, files that git would run, clients that vanish."""

import asyncio
import gzip
import hashlib
import io
import os
import random
import struct
import zlib
from dataclasses import replace

import aiohttp
import pytest

from builder.limits import Limits
from builder.repository import ZERO

_COMMIT, _BLOB, _DELTA = 1, 3, 7


def _varint(number: int) -> bytes:
    made = bytearray()
    while number >= 0x80:
        made.append(0x80 | number & 0x7F)
        number >>= 7
    return bytes([*made, number])


def _entry(kind: int, size: int, content: bytes, base: bytes = b"", level: int = 9) -> bytes:
    """Return one object of a pack: its kind and size, the object it is a delta of, and its content."""
    first, rest = size & 0xF, size >> 4
    head = bytes([kind << 4 | first | (0x80 if rest else 0)]) + (_varint(rest) if rest else b"")
    return head + base + zlib.compress(content, level)


def _pack(*entries: bytes) -> bytes:
    pack = b"PACK" + struct.pack(">II", 2, len(entries)) + b"".join(entries)
    return pack + hashlib.sha1(pack).digest()


def _request(pack: bytes, commit: str = "1" * 40) -> bytes:
    """Return the body of a push that moves main to a commit."""
    line = f"{ZERO} {commit} refs/heads/main\0report-status side-band-64k agent=evil".encode()
    return b"%04x" % (len(line) + 4) + line + b"0000" + pack


def _delta_bomb(size: int) -> bytes:
    """Return a pack of some kilobytes with an object that takes `size` bytes of memory once it is put together."""
    base = bytes(1 << 20)
    name = hashlib.sha1(b"blob %d\0" % len(base) + base).digest()
    copies = b"\xf0\x00\x00\x10" * (size >> 20)  # each: 1 MB from the beginning of the base
    delta = _varint(len(base)) + _varint(size) + copies
    return _pack(_entry(_BLOB, len(base), base), _entry(_DELTA, len(delta), delta, base=name))


async def _send(platform, body: bytes, **headers: str) -> bytes:
    async with (
        aiohttp.ClientSession(platform.address) as session,
        session.post(
            "/git/bomb.git/git-receive-pack",
            data=io.BytesIO(body),
            headers={"Content-Type": "application/x-git-receive-pack-request"} | headers,
        ) as answer,
    ):
        return await answer.read()


async def test_an_object_that_grows_out_of_a_small_pack_is_refused_before_it_takes_the_memory(platform):
    bomb = _delta_bomb(3 << 30)
    assert len(bomb) < 64_000
    told = await _send(platform, _request(bomb))
    assert b"over limit" in told
    assert b"unpack" in told
    assert platform.repositories() == []
    assert platform.builds.jobs == []


async def test_an_object_that_is_as_large_as_a_file_may_be_is_taken(platform):
    work = await platform.work("hello")
    await work.commit({"handler.toy": "hi", "big.bin": bytes(Limits().file)})
    code, lines = await work.push()
    assert code == 0, lines


class TestACompressedRequest:
    @pytest.fixture
    def limits(self):
        return replace(Limits(), pack=1 << 20)

    async def test_it_is_counted_by_what_comes_out(self, platform):
        pack = _pack(_entry(_BLOB, 4 << 20, bytes(4 << 20), level=0))
        body = gzip.compress(_request(pack))
        assert len(body) < 64_000
        told = await _send(platform, body, **{"Content-Encoding": "gzip"})
        assert b"exceeds maximum allowed size" in told
        assert platform.repositories() == []


async def test_an_object_that_pretends_to_be_another_is_not_believed(platform):
    """refs/replace makes git read another object in the place of one; what is deployed is what was named."""
    work = await platform.work("hello")
    honest = await work.commit({"handler.toy": "honest"})
    await work.push()
    await work.commit({"handler.toy": "broken"})
    forged = await work.git("rev-parse", "HEAD")
    await work.git("replace", honest, forged)
    code, lines = await work.push(f"refs/replace/{honest}")
    assert (code, platform.builds.activations) == (0, 1), lines
    await work.git("replace", "-d", honest)
    await work.git("reset", "-q", "--hard", honest)
    await work.commit({"other.txt": "x"})
    head = await work.git("rev-parse", "HEAD")
    await work.git("replace", head, forged)
    code, _ = await work.push(f"refs/replace/{head}")
    assert code == 0
    code, lines = await work.push("main")
    assert code == 0, lines
    layer = platform.data.layers / platform.builds.live["hello"][1][0].code
    assert (layer / "handler.toy").read_text() == "honest"
    assert platform.builds.live["hello"][0] == head


async def test_nothing_in_a_commit_is_run_or_read_by_git(platform, tmp_path):
    """Hooks, settings, filters and attributes are files like others: no command of git heeds them."""
    trap = tmp_path / "trap"
    run = f"#!/bin/sh\ntouch {trap}\n"
    work = await platform.work("hello")
    hooks = ("pre-receive", "post-receive", "update", "post-update", "post-checkout", "pre-commit")
    await work.commit(
        {
            "handler.toy": "$Id$ hi",
            **{f"hooks/{name}": run for name in hooks},
            **{f".githooks/{name}": run for name in hooks},
            "config": f"[core]\n\tfsmonitor = touch {trap}\n\thooksPath = hooks\n",
            ".gitconfig": f"[core]\n\tfsmonitor = touch {trap}\n",
            ".gitattributes": "* filter=evil ident export-ignore\n",
            ".lfsconfig": "[lfs]\n\turl = http://127.0.0.1:1/\n",
        }
    )
    code, lines = await work.push()
    assert code == 0, lines
    layer = platform.data.layers / platform.builds.live["hello"][1][0].code
    assert (layer / "handler.toy").read_text() == "$Id$ hi"
    assert (layer / "hooks/update").read_text() == run
    assert not trap.exists()
    assert [path.name for path in (platform.data.repositories / "hello.git").glob("hooks/*")] == []


async def test_a_list_of_submodules_that_git_would_run_is_refused(platform):
    work = await platform.work("hello")
    await work.commit(
        {
            "handler.toy": "x",
            ".gitmodules": '[submodule "../../hooks"]\n\tpath = x\n\turl = --upload-pack=evil\n',
        }
    )
    code, lines = await work.push()
    assert code == 1
    assert "gitmodules" in "\n".join(lines)
    assert platform.repositories() == []


@pytest.mark.parametrize("share", [0.1, 0.5, 0.99])
async def test_a_client_that_vanishes_within_its_pack_leaves_nothing(platform, share):
    noise = b"".join(hashlib.sha256(b"%d" % number).digest() for number in range(20_000))
    body = _request(_pack(_entry(_BLOB, len(noise), noise)))
    _, writer = await asyncio.open_connection("127.0.0.1", platform.port)
    head = (
        "POST /git/gone.git/git-receive-pack HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n"
        "Content-Type: application/x-git-receive-pack-request\r\n\r\n"
    )
    writer.write((head % len(body)).encode() + body[: int(len(body) * share)])
    await writer.drain()
    async with asyncio.timeout(10):
        while not platform.repositories():  # made when the push begins
            await asyncio.sleep(0.01)
    writer.transport.abort()
    async with asyncio.timeout(10):
        while platform.repositories() or platform.leftovers():
            await asyncio.sleep(0.01)
    work = await platform.work("gone")
    await work.commit({"handler.toy": "hi"})
    assert (await work.push())[0] == 0


async def test_a_tree_and_a_commit_that_git_would_not_make_are_refused_by_git(platform):
    text = b"tree " + b"1" * 40 + b"\nauthor x\0 <x> 1 +0000\ncommitter x <x> 1 +0000\n\nx"
    name = hashlib.sha1(b"commit %d\0" % len(text) + text).hexdigest()
    told = await _send(platform, _request(_pack(_entry(_COMMIT, len(text), text)), name))
    assert b"unpack" in told
    assert platform.repositories() == []


class TestARepositoryWithALimit:
    @pytest.fixture
    def limits(self):
        return replace(Limits(), repository=300_000)

    async def test_history_beyond_it_is_refused_with_the_remedy(self, platform):
        work = await platform.work("hello")
        for number in range(2):
            await work.commit(
                {"handler.toy": str(number), "data.bin": random.Random(number).randbytes(200_000)}
            )
            code, lines = await work.push()
            assert code == 0, lines
        await work.commit({"handler.toy": "more"})
        code, lines = await work.push()
        assert code != 0
        assert "'hello' takes 4" in "".join(lines)
        assert "--max-repository" in "".join(lines)
        assert platform.builds.activations == 2

    async def test_what_forced_pushes_have_replaced_makes_room(self, platform):
        work = await platform.work("hello")
        for number in range(3):
            await work.commit(
                {"handler.toy": str(number), "data.bin": random.Random(number).randbytes(200_000)}
            )
            if number:  # alone, without what was before it
                await work.git("update-ref", "-d", "HEAD")
                await work.commit({"handler.toy": f"{number} alone"})
            for file in (platform.data.repositories / "hello.git").rglob("objects/*/*"):
                os.utime(file, (0, 0))  # as if they were pushed long ago
            code, lines = await work.push("+main")
            assert code == 0, lines
