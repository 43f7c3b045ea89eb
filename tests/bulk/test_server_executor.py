"""Jobs that compute with a server, over transports that answer in the place of one."""

from __future__ import annotations

import asyncio
import base64
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import pytest

from infinity_emb.bulk import run as bulk_run
from infinity_emb.bulk import server_executor
from infinity_emb.bulk.server_executor import choose_pause_s, read_retry_after
from infinity_emb.bulk.tasks import Task
from infinity_emb.errors import StartupError
from infinity_emb.server.app import create_server
from tests.support.bulk_jobs import make_rows, read_bad_rows, read_rows, run_bulk, write_lines
from tests.support.fake_engines import fake_args

Handler = Callable[[httpx2.Request], Any]
URL = "http://server/v1"


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """Record pauses in place of waiting."""
    taken: list[float] = []

    async def sleep(seconds: float) -> None:
        taken.append(seconds)

    monkeypatch.setattr(server_executor, "_sleep", sleep)
    return taken


@pytest.fixture
def answer_with(monkeypatch: pytest.MonkeyPatch) -> Callable[[httpx2.AsyncBaseTransport], None]:
    """Let jobs use a transport."""

    def use(transport: httpx2.AsyncBaseTransport) -> None:
        make = server_executor.ServerExecutor
        monkeypatch.setattr(
            bulk_run, "ServerExecutor", lambda *args, **given: make(*args, transport=transport, **given)
        )

    return use


def embed(request: httpx2.Request) -> httpx2.Response:
    """Answer as the fake engine does, with vectors of two values, in another order."""
    inputs = json.loads(request.content)["input"]
    vectors = [np.full(2, len(text), np.float32).tobytes() for text in inputs]
    data = [
        {"index": index, "embedding": base64.b64encode(vector).decode()}
        for index, vector in enumerate(vectors)
    ]
    return httpx2.Response(200, json={"data": data[::-1], "usage": {"total_tokens": len(inputs)}})


def refuse(status: int, message: str = "refused", **headers: str) -> httpx2.Response:
    return httpx2.Response(status, json={"error": {"message": message}}, headers=headers)


class Script(httpx2.AsyncBaseTransport):
    """Answer the first requests as given, and further ones with `embed`."""

    def __init__(self, *answers: httpx2.Response | Exception, handler: Handler = embed) -> None:
        self._answers = list(answers)
        self._handler = handler
        self.requests: list[httpx2.Request] = []
        self.num_open = self.max_open = 0

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(request)
        self.num_open += 1
        self.max_open = max(self.max_open, self.num_open)
        await asyncio.sleep(0)
        self.num_open -= 1
        answer = self._answers.pop(0) if self._answers else self._handler(request)
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def source(tmp_path: Path) -> Path:
    return write_lines(tmp_path / "in.jsonl", make_rows(200))


def check_output(output: Path) -> None:
    expected = make_rows(200)
    assert [(row["id"], row["embedding"][0]) for row in read_rows(output)] == [
        (row["id"], len(row["text"])) for row in expected
    ]


def test_requests_are_repeated_while_the_server_is_away_or_busy(
    tmp_path: Path, source: Path, pauses: list[float], answer_with: Callable[..., None]
) -> None:
    troubles = [
        httpx2.ConnectError("refused"),
        httpx2.ReadTimeout("slow"),
        refuse(429, **{"retry-after": "7"}),
        refuse(503, **{"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}),
        refuse(502),
    ]
    answer_with(Script(*troubles))
    run_bulk(source, tmp_path / "out.jsonl", url=URL)
    check_output(tmp_path / "out.jsonl")
    assert len(pauses) == len(troubles)
    assert 7.0 in pauses


def test_a_server_that_stays_away_stops_the_job_which_can_be_continued(
    tmp_path: Path, source: Path, pauses: list[float], answer_with: Callable[..., None]
) -> None:
    answer_with(Script(embed_probe(), *[refuse(503, "going down")] * 100))
    with pytest.raises(StartupError, match=r"did not respond in 4 attempts: going down \(status 503\)"):
        run_bulk(source, tmp_path / "out.jsonl", url=URL, max_retries=3)
    answer_with(Script())
    run_bulk(source, tmp_path / "out.jsonl", url="http://elsewhere/v1")
    check_output(tmp_path / "out.jsonl")


def embed_probe() -> httpx2.Response:
    return embed(httpx2.Request("POST", URL, json={"input": ["probe"]}))


@pytest.mark.parametrize("status", [400, 413, 422, 500])
def test_rows_that_the_server_refuses_are_bad_rows(
    tmp_path: Path, pauses: list[float], answer_with: Callable[..., None], status: int
) -> None:
    def handle(request: httpx2.Request) -> httpx2.Response:
        return refuse(status, "bad text") if "poison" in request.content.decode() else embed(request)

    rows = [{"text": "poison" if index in (3, 77) else "good"} for index in range(100)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    answer_with(Script(handler=handle))
    assert run_bulk(source, tmp_path / "out.jsonl", url=URL).num_bad_rows == 2
    bad = read_bad_rows(tmp_path / "out.jsonl")
    assert [(row["row"], row["reason"]) for row in bad] == [
        (3, f"bad text (status {status})"),
        (77, f"bad text (status {status})"),
    ]


def test_a_server_that_fails_for_every_text_stops_the_job(
    tmp_path: Path, source: Path, pauses: list[float], answer_with: Callable[..., None]
) -> None:
    """Otherwise all rows would be bad rows."""
    answer_with(Script(embed_probe(), handler=lambda _: refuse(500, "device lost")))
    with pytest.raises(Exception, match="device lost"):
        run_bulk(source, tmp_path / "out.jsonl", url=URL)
    assert not (tmp_path / "out.jsonl").exists()


def test_one_failure_of_a_replica_makes_no_bad_row(
    tmp_path: Path, pauses: list[float], answer_with: Callable[..., None]
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"text": "good"}])
    answer_with(Script(embed_probe(), refuse(500)))
    assert run_bulk(source, tmp_path / "out.jsonl", url=URL).num_bad_rows == 0


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        (refuse(401, "no key"), r"/v1/embeddings refuses requests: no key \(status 401\)"),
        (refuse(404, "no model"), r"refuses requests: no model \(status 404\)"),
        (httpx2.Response(200, text="<html>"), "is not a JSON object"),
        (httpx2.Response(200, json={}), "no list 'data'"),
        (httpx2.Response(200, json={"data": [{}]}), "cannot read the response"),
        (refuse(400, "dimensions too large"), "dimensions too large"),
        (httpx2.Response(307, headers={"location": "/elsewhere"}), "status 307"),
    ],
)
def test_a_server_that_refuses_every_request_stops_the_job_at_once(
    tmp_path: Path, source: Path, answer_with: Callable[..., None], answer: httpx2.Response, message: str
) -> None:
    script = Script(answer)
    answer_with(script)
    with pytest.raises(StartupError, match=message):
        run_bulk(source, tmp_path / "out.jsonl", url=URL)
    assert len(script.requests) == 1
    assert list(tmp_path.iterdir()) == [source]


def test_requests_are_bounded_and_carry_key_lane_and_model(
    tmp_path: Path, source: Path, answer_with: Callable[..., None]
) -> None:
    script = Script()
    answer_with(script)
    run_bulk(
        source,
        tmp_path / "out.jsonl",
        url=URL,
        concurrency=3,
        inputs_per_request=10,
        url_api_key="secret-key",
    )
    check_output(tmp_path / "out.jsonl")
    assert script.max_open == 3
    bodies = [json.loads(request.content) for request in script.requests]
    assert max(len(body["input"]) for body in bodies) == 10
    assert {request.headers["x-priority"] for request in script.requests} == {"bulk"}
    assert {request.headers["authorization"] for request in script.requests} == {"Bearer secret-key"}
    # A server of another make gets OpenAI's fields alone.
    assert set(bodies[0]) == {"input", "model", "encoding_format"}


def test_a_wrong_number_of_results_stops_the_job(
    tmp_path: Path, source: Path, answer_with: Callable[..., None]
) -> None:
    answer_with(Script(embed_probe(), handler=lambda _: embed_probe()))
    with pytest.raises(Exception, match="1 results for 64 inputs"):
        run_bulk(source, tmp_path / "out.jsonl", url=URL)


def test_pauses_double_up_to_a_minute_unless_the_server_asks_for_longer() -> None:
    assert [round(choose_pause_s(attempt, None) / 2**attempt, 4) <= 0.5 for attempt in range(5)] == [True] * 5
    assert 30 <= choose_pause_s(30, None) <= 60
    assert choose_pause_s(0, 300) == 300
    assert read_retry_after("120", 0) == 120
    assert read_retry_after("Wed, 21 Oct 2015 07:28:00 GMT", 1445412420.0) == 60
    assert read_retry_after("soon", 0) is None


@pytest.mark.parametrize(
    ("task", "kind", "options"),
    [
        ("embed", "auto", {}),
        ("embed", "embedder", {"sparse": True}),
        ("embed", "multivector", {}),
        ("embed", "embedder", {"dimensions": 3, "prompt": "a "}),
        ("embed", "embedder", {"model": {"embedding_dtype": "float16"}}),
        ("rerank", "reranker", {"query": "q", "raw_scores": True}),
        ("classify", "classifier", {}),
    ],
)
def test_our_server_gives_what_the_engine_in_this_process_gives(
    tmp_path: Path,
    source: Path,
    answer_with: Callable[..., None],
    task: Task,
    kind: str,
    options: dict[str, Any],
) -> None:
    faults = f"kind={kind}"
    run_bulk(source, tmp_path / "here.parquet", task=task, faults=faults, **options)
    app = create_server(engine_args_list=[fake_args(faults)], url_prefix="/v1")
    answer_with(ServedApp(app))
    run_bulk(source, tmp_path / "there.parquet", task=task, faults=faults, url=URL, **options)
    assert read_rows(tmp_path / "there.parquet") == read_rows(tmp_path / "here.parquet")


class ServedApp(httpx2.AsyncBaseTransport):
    """Send requests to an app, whose lifespan begins with the first one."""

    def __init__(self, app: Any) -> None:
        self._app = app
        self._lifespan: Any = None
        self._transport = httpx2.ASGITransport(app)

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        if self._lifespan is None:
            self._lifespan = self._app.router.lifespan_context(self._app)
            await self._lifespan.__aenter__()
        return await self._transport.handle_async_request(request)

    async def aclose(self) -> None:
        if self._lifespan is not None:
            await self._lifespan.__aexit__(None, None, None)
