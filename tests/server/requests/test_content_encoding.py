"""Compressed bodies: decoded within the limits, or refused with what is supported."""

from __future__ import annotations

import asyncio
import gzip
import random
import sys
import zlib
from collections.abc import AsyncIterator, Callable

import httpx
import pytest

from infinity_emb.server.requests.content_encoding import MAX_MEMBERS, MAX_PIECE_BYTES, make_decoder
from tests.support.tiny_server import build_debug_app, client_of

if sys.version_info >= (3, 14):
    from compression import zstd
else:
    from backports import zstd

pytestmark = pytest.mark.anyio

JSON = {"content-type": "application/json"}
BODY = b'{"input": "four"}'


def bare_deflate(data: bytes) -> bytes:
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return compressor.compress(data) + compressor.flush()


COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "GZip ": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "zstd": zstd.compress,
    "identity": bytes,
    "": bytes,
}


async def post(client: httpx.AsyncClient, content: bytes, encoding: str) -> httpx.Response:
    return await client.post("/embeddings", content=content, headers={**JSON, "content-encoding": encoding})


@pytest.mark.parametrize("encoding", list(COMPRESS))
async def test_a_compressed_body_is_read(client: httpx.AsyncClient, encoding: str) -> None:
    response = await post(client, COMPRESS[encoding](BODY), encoding)
    assert response.status_code == 200, response.text
    assert response.json()["usage"]["total_tokens"] == 4


async def test_deflate_without_its_wrapper_is_read(client: httpx.AsyncClient) -> None:
    """Old clients of Microsoft's send it so."""
    assert (await post(client, bare_deflate(BODY), "deflate")).status_code == 200


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_members_are_put_together(client: httpx.AsyncClient, encoding: str) -> None:
    compress = COMPRESS[encoding]
    content = compress(BODY[:5]) + compress(b"") + compress(BODY[5:])
    assert (await post(client, content, encoding)).status_code == 200


@pytest.mark.parametrize("encoding", list(COMPRESS))
async def test_it_may_arrive_byte_by_byte(client: httpx.AsyncClient, encoding: str) -> None:
    async def pieces() -> AsyncIterator[bytes]:
        for byte in COMPRESS[encoding](BODY):
            yield bytes([byte])

    headers = {**JSON, "content-encoding": encoding}
    response = await client.post("/embeddings", content=pieces(), headers=headers)
    assert response.status_code == 200, response.text


@pytest.mark.parametrize("encoding", ["br", "compress", "gzip, gzip", "gzip, zstd", "zst", "x" * 1000])
async def test_an_encoding_that_is_not_supported_is_a_415_that_names_those_that_are(
    client: httpx.AsyncClient, encoding: str
) -> None:
    response = await post(client, BODY, encoding)
    assert response.status_code == 415
    assert "send one of gzip, deflate, zstd, or none" in response.json()["error"]["message"]
    assert response.headers["accept-encoding"] == "gzip, deflate, zstd"
    assert len(response.content) < 1000


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
@pytest.mark.parametrize(
    "damage",
    [
        lambda _: BODY,
        lambda _: b"",
        lambda content: content[:-1],
        lambda content: content + b"x",
        lambda content: content[:10] + b"x" * 30,
    ],
    ids=["plain", "empty", "cut", "followed by something", "damaged"],
)
async def test_what_is_not_compressed_as_it_says_is_a_422_that_says_so(
    client: httpx.AsyncClient, damage: Callable[[bytes], bytes], encoding: str
) -> None:
    """The error was about UTF-8."""
    response = await post(client, damage(COMPRESS[encoding](BODY)), encoding)
    assert response.status_code == 422
    assert f"the body is not valid {encoding}" in response.json()["error"]["message"]


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
async def test_a_bomb_is_a_413_at_the_limit(encoding: str) -> None:
    app = build_debug_app(max_body_bytes=3 * MAX_PIECE_BYTES)
    bomb = COMPRESS[encoding](b'{"input": "' + b"a" * 200_000_000 + b'"}')
    async with client_of(app) as client:
        response = await post(client, bomb, encoding)
        assert response.status_code == 413
        assert app.state.context.memory.num_held_bytes == 0


@pytest.mark.parametrize("encoding", ["gzip", "deflate", "zstd"])
async def test_decoded_bytes_count_among_all_bodies(encoding: str) -> None:
    app = build_debug_app(max_total_body_bytes=10_000)
    content = COMPRESS[encoding](b'{"input": "' + b"a" * 20_000 + b'"}')
    async with client_of(app) as client:
        response = await post(client, content, encoding)
    assert response.status_code == 503
    assert "more than 10000 bytes together" in response.json()["error"]["message"]


async def test_a_stream_that_decodes_to_nothing_has_an_end_too() -> None:
    """Empty blocks of deflate may go on for ever."""
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    empty_block = compressor.flush(zlib.Z_FULL_FLUSH)
    num_sent = 0

    async def endless() -> AsyncIterator[bytes]:
        nonlocal num_sent
        while True:
            num_sent += 1
            yield empty_block * 20

    async with client_of(build_debug_app(max_body_bytes=1000)) as client:
        headers = {**JSON, "content-encoding": "deflate"}
        response = await client.post("/embeddings", content=endless(), headers=headers)
    assert response.status_code == 413
    assert num_sent < 30


async def test_a_window_that_takes_more_memory_than_a_body_is_refused(client: httpx.AsyncClient) -> None:
    """The head of a frame of some bytes may ask for gigabytes."""
    options = {zstd.CompressionParameter.window_log: 27}
    compressor = zstd.ZstdCompressor(options=options)
    response = await post(client, compressor.compress(BODY) + compressor.flush(), "zstd")
    assert response.status_code == 422
    assert "too much memory" in response.json()["error"]["message"]


def test_the_window_of_a_decompressor_counts_as_it_fills() -> None:
    decoder = make_decoder("zstd")
    assert decoder is not None
    assert decoder.count_memory(1000) == 2000
    assert decoder.count_memory(2**25) == 2**25 + 2**23


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
async def test_the_number_of_members_has_a_limit(client: httpx.AsyncClient, encoding: str) -> None:
    response = await post(client, COMPRESS[encoding](b"") * (MAX_MEMBERS + 1), encoding)
    assert response.status_code == 422
    assert f"more than {MAX_MEMBERS} members" in response.json()["error"]["message"]


async def test_the_event_loop_runs_while_a_large_body_is_decoded(client: httpx.AsyncClient) -> None:
    app = build_debug_app()
    num_turns = 0

    async def count() -> None:
        nonlocal num_turns
        while True:
            num_turns += 1
            await asyncio.sleep(0)

    async with client_of(app) as client:
        counting = asyncio.create_task(count())
        await post(client, gzip.compress(b" " * 20 * MAX_PIECE_BYTES), "gzip")
        counting.cancel()
    assert num_turns >= 20


@pytest.mark.parametrize("encoding", ["gzip", "zstd"])
def test_pieces_give_the_content_wherever_chunks_end(encoding: str) -> None:
    rng = random.Random(0)
    content = b"".join(bytes([rng.randrange(4)]) * rng.randrange(70_000) for _ in range(100))
    compressed = COMPRESS[encoding](content)
    for size in (1000, len(compressed) // 2, len(compressed)):
        decoder = make_decoder(encoding)
        assert decoder is not None
        chunks = [compressed[at : at + size] for at in range(0, len(compressed), size)]
        pieces = [piece for chunk in chunks for piece in decoder.decode(chunk)]
        decoder.finish()
        assert b"".join(pieces) == content
        assert max(map(len, pieces)) <= MAX_PIECE_BYTES
