"""Read request bodies up to a size limit."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message, Receive

from infinity_emb.scheduling.fair_threads import MAX_SHORT_CHARS, FairThreads
from infinity_emb.scheduling.request_context import current_request
from infinity_emb.scheduling.request_turns import RequestTurns
from infinity_emb.server.requests.content_encoding import MAX_PIECE_BYTES, Decoder, make_decoder
from infinity_emb.server.requests.headers import find_header, read_content_length
from infinity_emb.server.requests.memory import HeldMemory

# `bytes.join` releases the interpreter lock while it copies more than this.
_MIN_RELEASED_BYTES = 2**20
# Smaller pieces are put together: each is an object, which takes more memory than a few bytes.
_MIN_PIECE_BYTES = 2**14


class BodyReader:
    """Read the bodies of one app.

    threads: where large bodies are decompressed and joined.
    """

    def __init__(self, threads: FairThreads, *, max_body_bytes: int) -> None:
        self._threads = threads
        self._max_body_bytes = max_body_bytes
        self._turns = RequestTurns()  # to receive another piece

    async def read(self, request: Request, held: HeldMemory) -> bytes:
        """Read the whole body, decompressed, and count its bytes as they arrive.

        Raises HTTPException 413 for a body that is too large, before reading if its length is declared, 415
        for an unknown Content-Encoding, and 503 if all requests together are too large;
        RequestValidationError for a body that cannot be decompressed; ClientDisconnect if the client
        disconnects.
        """
        if read_content_length(request.scope) > self._max_body_bytes:
            raise self._too_large()
        encoding = find_header(request.scope, b"content-encoding")
        decoder = make_decoder(encoding) if encoding else None
        body = _Pieces()
        num_received, has_more = 0, True
        while has_more:
            if num_received:
                await self._turns.wait(current_request().flow(1))
            chunk, has_more = await _receive(request)
            num_received += len(chunk)
            if num_received > self._max_body_bytes:
                raise self._too_large()
            if decoder is None:
                held.hold(num_received)
                if num_received == len(chunk) and not has_more:
                    return chunk
                body.append(chunk)
            else:
                await self._decompress(decoder, chunk, body, held)
        if decoder is not None:
            decoder.finish()
        if body.num_bytes < _MIN_RELEASED_BYTES:
            return body.join()
        num_bytes = held.num_bytes
        held.hold(num_bytes + body.num_bytes)
        joined = await self._threads.run(body.join, num_chars=MAX_SHORT_CHARS)
        held.hold(num_bytes)
        return joined

    async def _decompress(self, decoder: Decoder, chunk: bytes, body: _Pieces, held: HeldMemory) -> None:
        """Append the content of a chunk: the first piece at once, further ones when a thread is free."""
        pieces = decoder.decode(chunk)
        piece = next(pieces, None)
        while piece is not None:
            num_bytes = body.num_bytes + len(piece)
            held.hold(decoder.count_memory(num_bytes))
            if num_bytes > self._max_body_bytes:
                raise self._too_large()
            body.append(piece)
            if len(piece) < MAX_PIECE_BYTES:
                piece = next(pieces, None)
            else:
                piece = await self._threads.run(lambda: next(pieces, None), num_chars=MAX_SHORT_CHARS)

    def _too_large(self) -> HTTPException:
        return HTTPException(
            413,
            f"the request body has more than {self._max_body_bytes} bytes; send fewer inputs in one request,"
            " or start the server with a larger --max-body-bytes",
        )


class _Pieces:
    """The pieces of a body that have arrived.

    A buffer that grows would be copied again and again on the event loop.
    """

    def __init__(self) -> None:
        self.num_bytes = 0
        self._pieces: list[bytes | bytearray] = []

    def append(self, piece: bytes) -> None:
        """Add the next piece."""
        self.num_bytes += len(piece)
        last = self._pieces[-1] if self._pieces else b""
        if isinstance(last, bytearray) and len(last) < _MIN_PIECE_BYTES:
            last += piece
        else:
            self._pieces.append(bytearray(piece) if len(piece) < _MIN_PIECE_BYTES else piece)

    def join(self) -> bytes:
        """Return the body, once; a body of one large piece is not copied."""
        pieces, self._pieces = self._pieces, []
        return bytes(pieces[0]) if len(pieces) == 1 else b"".join(pieces)


class _Received(NamedTuple):
    chunk: bytes
    has_more: bool


async def _receive(request: Request) -> _Received:
    """Wait for the next bytes of a body. Raises ClientDisconnect."""
    message = await request.receive()
    if message["type"] == "http.disconnect":
        raise ClientDisconnect
    return _Received(message.get("body", b""), message.get("more_body", False))


def repeat_messages(messages: Iterable[Message], receive: Receive) -> Receive:
    """Return a function that returns messages that were received again, and then what `receive` does."""
    received = iter(messages)

    async def receive_again() -> Message:
        message = next(received, None)
        return await receive() if message is None else message

    return receive_again
