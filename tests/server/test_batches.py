"""`/v1/files` and `/v1/batches`, with OpenAI's client where it says something about the protocol."""

from __future__ import annotations

import asyncio
import json
import re
import sqlite3
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import httpx2
import openai
import pytest

from infinity_emb.errors import StartupError
from infinity_emb.server.batches import result_files, runner, service
from infinity_emb.server.batches.pace import Pace
from infinity_emb.server.batches.store import BatchRecord, BatchStore
from tests.support.event_loop import PATIENCE_S
from tests.support.tiny_server import build_debug_app, client_of, debug_args, embed

pytestmark = pytest.mark.anyio
Line = dict[str, Any]
KEYS = ("first-key-0", "other-key-0")


def make_line(number: int, text: Any = "hello", **members: Any) -> Line:
    body = {"model": "debug", "input": text, **members}
    return {"custom_id": f"row-{number}", "method": "POST", "url": "/v1/embeddings", "body": body}


@asynccontextmanager
async def serve(folder: Path, faults: str = "", **config: Any) -> AsyncIterator[httpx.AsyncClient]:
    config.setdefault("batch_dir", str(folder / "batches"))
    async with client_of(build_debug_app(debug_args(f"debug?{faults}"), **config)) as client:
        yield client


@pytest.fixture
async def client(tmp_path: Path, anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(tmp_path) as client:
        yield client


def as_jsonl(lines: Sequence[Line | str]) -> bytes:
    return b"".join((line if isinstance(line, str) else json.dumps(line)).encode() + b"\n" for line in lines)


async def upload(
    client: httpx.AsyncClient, content: bytes, *, purpose: str = "batch", **form: str
) -> httpx.Response:
    files = {"file": ("in.jsonl", content)}
    return await client.post("/v1/files", files=files, data={"purpose": purpose, **form})


async def create(client: httpx.AsyncClient, lines: Sequence[Line | str], **members: Any) -> Line:
    file_id = (await upload(client, as_jsonl(lines))).json()["id"]
    body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h", **members}
    response = await client.post("/v1/batches", json=body)
    assert response.status_code == 200, response.text
    batch: Line = response.json()
    return batch


async def wait_for(client: httpx.AsyncClient, batch_id: str, is_reached: Callable[[Line], bool]) -> Line:
    deadline_s = time.monotonic() + PATIENCE_S
    while time.monotonic() < deadline_s:
        batch: Line = (await client.get(f"/v1/batches/{batch_id}")).json()
        if is_reached(batch):
            return batch
        await asyncio.sleep(0.01)
    raise AssertionError(f"waited in vain: {batch}")


async def finish(client: httpx.AsyncClient, batch_id: str) -> Line:
    ends = ("completed", "failed", "expired", "cancelled")
    return await wait_for(client, batch_id, lambda batch: batch["status"] in ends)


async def download(client: httpx.AsyncClient, file_id: str | None) -> list[Line]:
    if file_id is None:
        return []
    response = await client.get(f"/v1/files/{file_id}/content")
    assert response.status_code == 200
    return [json.loads(line) for line in response.content.splitlines()]


async def test_a_batch_gives_each_line_what_the_route_gives(client: httpx.AsyncClient) -> None:
    bodies: list[Line] = [
        {"input": "four"},
        {"input": ["a", "bb"], "dimensions": 3},
        {"input": "x", "encoding_format": "base64"},
        {"input": []},
        {"input": "x", "dimensions": 99},
        {"input": "x", "model": "nope/query"},
        {"input": 5},
        {},
        {"input": "x", "priority": "interactive", "timeout": 0.000001},
    ]
    lines = [make_line(number) | {"body": body} for number, body in enumerate(bodies)]
    batch = await finish(client, (await create(client, lines))["id"])
    assert batch["status"] == "completed"
    results = {
        line["custom_id"]: line["response"]
        for name in ("output_file_id", "error_file_id")
        for line in await download(client, batch[name])
    }
    assert len(results) == len(bodies)
    for number, body in enumerate(bodies):
        alone = await client.post("/v1/embeddings", json={**body, "timeout": None})
        found = results[f"row-{number}"]
        assert found["status_code"] == alone.status_code
        for key in ("data", "error", "usage", "model"):
            assert found["body"].get(key) == alone.json().get(key)
    num_failed = sum(result["status_code"] != 200 for result in results.values())
    assert batch["request_counts"] == {
        "total": len(bodies),
        "completed": len(bodies) - num_failed,
        "failed": num_failed,
    }


async def test_results_are_in_the_order_of_the_input(client: httpx.AsyncClient) -> None:
    lines = [make_line(number, "x" * (number * 7919 % 50 + 1)) for number in range(200)]
    batch = await finish(client, (await create(client, lines))["id"])
    output = await download(client, batch["output_file_id"])
    assert [line["custom_id"] for line in output] == [line["custom_id"] for line in lines]
    assert [line["response"]["body"]["data"][0]["embedding"][0] for line in output] == [
        len(line["body"]["input"]) for line in lines
    ]
    assert batch["error_file_id"] is None


@pytest.mark.parametrize(
    ("line", "code"),
    [
        ("{", "invalid_json_line"),
        ("[]", "invalid_json_line"),
        (make_line(0) | {"custom_id": None}, "missing_required_parameter"),
        (make_line(0) | {"custom_id": "x" * 600}, "missing_required_parameter"),
        (make_line(1), "duplicate_custom_id"),
        (make_line(0) | {"method": "GET"}, "invalid_method"),
        (make_line(0) | {"url": "/v1/chat/completions"}, "mismatched_url"),
        (make_line(0) | {"body": "x"}, "missing_required_parameter"),
    ],
)
async def test_a_file_with_a_malformed_line_fails_as_a_whole_with_the_line(
    client: httpx.AsyncClient, line: Any, code: str
) -> None:
    batch = await finish(client, (await create(client, [make_line(1), "", line]))["id"])
    assert batch["status"] == "failed"
    [problem] = batch["errors"]["data"]
    assert (problem["code"], problem["line"]) == (code, 3)
    assert batch["output_file_id"] is None


async def test_a_file_without_requests_or_with_too_many_fails(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infinity_emb.server.batches.lines.MAX_LINES", 3)
    for count, code in [(0, "empty_file"), (4, "too_many_requests")]:
        batch = await finish(client, (await create(client, list(map(make_line, range(count)))))["id"])
        assert [problem["code"] for problem in batch["errors"]["data"]] == [code]


async def test_a_line_that_makes_the_backend_fail_is_in_the_error_file(tmp_path: Path) -> None:
    async with serve(tmp_path, "fail_on=poison") as client:
        lines = [make_line(number, "poison" if number == 3 else "good") for number in range(10)]
        batch = await finish(client, (await create(client, lines))["id"])
        [error] = await download(client, batch["error_file_id"])
        assert error["custom_id"] == "row-3"
        assert error["response"]["status_code"] == 500
        assert len(await download(client, batch["output_file_id"])) == 9


async def test_a_batch_survives_a_restart_and_no_line_is_lost_or_twice(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(result_files, "RESULTS_PER_COMMIT", 5)
    lines = [make_line(number) for number in range(150)]
    async with serve(tmp_path, "delay_s=0.002") as client:
        batch_id = (await create(client, lines, metadata={"name": "mine"}))["id"]
        before = await wait_for(client, batch_id, lambda batch: batch["request_counts"]["completed"] >= 20)
        assert before["status"] == "in_progress"
    # A process that is killed leaves lines behind that no commit counts.
    for path in (tmp_path / "batches" / "files").iterdir():
        if path.stat().st_size and b'"response"' in path.read_bytes()[:200]:
            path.write_bytes(path.read_bytes() + b'{"half a li')
    async with serve(tmp_path) as client:
        batch = await finish(client, batch_id)
        assert batch["metadata"] == {"name": "mine"}
        output = await download(client, batch["output_file_id"])
        assert [line["custom_id"] for line in output] == [line["custom_id"] for line in lines]
        assert batch["request_counts"] == {"total": 150, "completed": 150, "failed": 0}


async def test_a_cancelled_batch_keeps_what_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MAX_RUNNING", 1)
    async with serve(tmp_path, "delay_s=0.01") as client:
        lines = [make_line(number) for number in range(2000)]
        running, waiting = [(await create(client, lines))["id"] for _ in range(2)]
        await wait_for(client, running, lambda batch: batch["request_counts"]["completed"] > 0)
        for batch_id in (waiting, running):
            assert (await client.post(f"/v1/batches/{batch_id}/cancel")).json()["status"] in (
                "cancelling",
                "cancelled",
            )
            batch = await finish(client, batch_id)
            assert batch["status"] == "cancelled"
            output = await download(client, batch["output_file_id"])
            assert len(output) == batch["request_counts"]["completed"] < len(lines)
        response = await client.post(f"/v1/batches/{running}/cancel")
        assert response.status_code == 409
        assert "is cancelled" in response.json()["error"]["message"]


async def test_lines_that_are_late_expire_with_an_error_each(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hours = [0]
    defaults: Any = service.BatchService.__init__.__kwdefaults__
    monkeypatch.setitem(defaults, "now_s", lambda: time.time() + 3600 * hours[0])
    monkeypatch.setattr(result_files, "RESULTS_PER_COMMIT", 5)
    async with serve(tmp_path, "delay_s=0.005") as client:
        lines = [make_line(number) for number in range(1000)]
        batch_id = (await create(client, lines))["id"]
        await wait_for(client, batch_id, lambda batch: batch["request_counts"]["completed"] >= 20)
        hours[0] = 25
        batch = await finish(client, batch_id)
        errors = await download(client, batch["error_file_id"])
        output = await download(client, batch["output_file_id"])
        assert batch["status"] == "expired"
        assert {line["error"]["code"] for line in errors} == {"batch_expired"}
        assert len(output) + len(errors) == len(lines)
        assert output


async def test_each_key_sees_its_own_files_and_batches_only(tmp_path: Path) -> None:
    async with serve(tmp_path, api_key=KEYS) as client:
        client.headers["authorization"] = f"Bearer {KEYS[0]}"
        batch = await finish_of(client)
        paths = [
            f"/v1/files/{batch['input_file_id']}",
            f"/v1/files/{batch['input_file_id']}/content",
            f"/v1/files/{batch['output_file_id']}/content",
            f"/v1/batches/{batch['id']}",
        ]
        assert [(await client.get(path)).status_code for path in paths] == [200] * 4
        client.headers["authorization"] = f"Bearer {KEYS[1]}"
        assert [(await client.get(path)).status_code for path in paths] == [404] * 4
        assert (await client.delete(paths[0])).status_code == 404
        assert (await client.post(f"{paths[3]}/cancel")).status_code == 404
        body = {"input_file_id": batch["input_file_id"], "endpoint": "/v1/embeddings"}
        assert (await client.post("/v1/batches", json=body)).status_code == 404
        for path in ("/v1/files", "/v1/batches"):
            assert (await client.get(path)).json()["data"] == []
        client.headers["authorization"] = "Bearer wrong"
        assert (await client.get("/v1/files")).status_code == 401


async def finish_of(client: httpx.AsyncClient) -> Line:
    return await finish(client, (await create(client, [make_line(0)]))["id"])


async def test_ids_are_random(client: httpx.AsyncClient) -> None:
    batches = [await finish_of(client) for _ in range(3)]
    names = ("id", "input_file_id", "output_file_id")
    ids = [batch[name] for batch in batches for name in names]
    assert all(re.fullmatch(r"(batch_|file-)[0-9a-f]{32}", each) for each in ids)
    assert len({each[-32:-24] for each in ids} | {each[-8:] for each in ids}) == 2 * len(ids)


@pytest.mark.parametrize("file_id", ["..%2fbatches.sqlite3", "../batches.sqlite3", "file-1", "%00", "lock"])
async def test_ids_are_no_paths(client: httpx.AsyncClient, file_id: str) -> None:
    response = await client.get(f"/v1/files/{file_id}/content")
    assert response.status_code == 404
    assert response.json()["error"]["type"] == "invalid_request_error"


async def test_files_have_openais_shape_and_can_be_deleted(client: httpx.AsyncClient) -> None:
    file = (await upload(client, b"x", **{"expires_after[seconds]": "3600"})).json()
    assert file["expires_at"] == file["created_at"] + 3600
    assert (file["object"], file["bytes"], file["filename"], file["purpose"], file["status"]) == (
        "file", 1, "in.jsonl", "batch", "processed",
    )  # fmt: skip
    assert (await client.get(f"/v1/files/{file['id']}")).json() == file
    assert (await client.get(f"/v1/files/{file['id']}/content")).content == b"x"
    assert (await client.delete(f"/v1/files/{file['id']}")).json()["deleted"] is True
    response = await client.get(f"/v1/files/{file['id']}")
    assert response.status_code == 404
    assert response.json()["error"]["message"].startswith("No such File object: file-")


async def test_lists_have_pages(client: httpx.AsyncClient) -> None:
    ids = [(await upload(client, b"x")).json()["id"] for _ in range(5)][::-1]
    page = (await client.get("/v1/files", params={"limit": 2})).json()
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[:2], True)
    page = (await client.get("/v1/files", params={"limit": 3, "after": page["last_id"]})).json()
    assert ([file["id"] for file in page["data"]], page["has_more"]) == (ids[2:], False)
    assert (await client.get("/v1/files", params={"purpose": "batch_output"})).json()["data"] == []
    assert (await client.get("/v1/files", params={"limit": "many"})).status_code == 400


async def test_the_input_of_an_unfinished_batch_is_not_deleted(tmp_path: Path) -> None:
    async with serve(tmp_path, "delay_s=0.05") as client:
        batch = await create(client, [make_line(number) for number in range(500)])
        assert (await client.delete(f"/v1/files/{batch['input_file_id']}")).status_code == 409
        await client.post(f"/v1/batches/{batch['id']}/cancel")
        await finish(client, batch["id"])
        assert (await client.delete(f"/v1/files/{batch['input_file_id']}")).status_code == 200


async def test_uploads_are_limited(tmp_path: Path) -> None:
    async with serve(tmp_path, batch_max_file_mb=1, batch_max_total_mb=2) as client:
        response = await upload(client, b"x" * (2**20 + 1))
        assert response.status_code == 413
        assert "--batch-max-file-mb" in response.json()["error"]["message"]

        async def stream() -> AsyncIterator[bytes]:
            yield b'--b\r\ncontent-disposition: form-data; name="file"; filename="x"\r\n\r\n'
            for _ in range(40):
                yield b"x" * 2**16

        headers = {"content-type": "multipart/form-data; boundary=b"}
        assert (await client.post("/v1/files", content=stream(), headers=headers)).status_code == 413
        assert (await upload(client, b"x" * 2**20)).status_code == 200
        response = await upload(client, b"y")
        assert response.status_code == 507
        assert "--batch-max-total-mb" in response.json()["error"]["message"]
        assert len(list((tmp_path / "batches" / "files").iterdir())) == 1


async def test_wrong_uploads_and_batches_are_refused(client: httpx.AsyncClient) -> None:
    responses = [
        await upload(client, b"x", purpose="fine-tune"),
        await upload(client, b"x", **{"expires_after[seconds]": "1"}),
        await client.post("/v1/files", data={"purpose": "batch"}, files={"other": b"x"}),
        await client.post("/v1/files", json={"purpose": "batch"}),
        await client.post("/v1/batches", json={"input_file_id": "file-0", "endpoint": "/v1/embeddings"}),
        await client.post("/v1/batches", json={"input_file_id": "file-0", "endpoint": "/v1/responses"}),
        await client.get("/v1/batches/batch_0"),
        await client.post(
            "/v1/files", headers={"content-type": "multipart/form-data; boundary=b"}, content=b"x"
        ),
    ]
    assert [response.status_code for response in responses] == [400, 400, 422, 415, 404, 422, 404, 400]
    assert all("message" in response.json()["error"] for response in responses)


@pytest.mark.parametrize("ttl", ["9" * 5000, "1e5", "-1", "\u0663\u0666", ""])
async def test_a_wrong_lifetime_is_refused_and_the_file_is_not_kept(ttl: str, tmp_path: Path) -> None:
    """A number of more than 4,300 digits was a 500, and no such file counted in the size of all."""
    async with serve(tmp_path) as client:
        for form in ({"expires_after[seconds]": ttl}, {"purpose": "x" * 5000}):
            response = await upload(client, b"x", **form)
            assert response.status_code == 400, response.text
            assert len(response.content) < 500
        assert not list((tmp_path / "batches" / "files").iterdir())


@pytest.mark.parametrize("origin", ["http://[", "http://[::1", "null", "//", "", "http://a]b", "x" * 5000])
async def test_an_origin_that_is_none_is_refused(origin: str, client: httpx.AsyncClient) -> None:
    """An unclosed bracket was a 500."""
    response = await client.post(
        "/v1/files", data={"purpose": "batch"}, files={"file": b"x"}, headers={"origin": origin}
    )
    assert response.status_code == 403, response.text


async def test_a_page_of_another_server_uploads_nothing(tmp_path: Path) -> None:
    foreign = {"origin": "http://evil.example"}
    async with serve(tmp_path) as client:
        file = {"file": ("in.jsonl", b"x")}
        response = await client.post("/v1/files", files=file, data={"purpose": "batch"}, headers=foreign)
        assert response.status_code == 403
        own = {"origin": "http://test"}
        response = await client.post("/v1/files", files=file, data={"purpose": "batch"}, headers=own)
        assert response.status_code == 200


async def test_a_page_of_an_allowed_origin_uploads(tmp_path: Path) -> None:
    async with serve(tmp_path, cors_origins=["http://app.example"]) as client:
        for origin, status in (("http://app.example", 200), ("http://evil.example", 403)):
            response = await client.post(
                "/v1/files",
                files={"file": ("in.jsonl", b"x")},
                data={"purpose": "batch"},
                headers={"origin": origin},
            )
            assert response.status_code == status


async def test_unfinished_batches_of_a_key_are_limited(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(service, "MAX_UNFINISHED_BATCHES", 0)
    file_id = (await upload(client, b"x")).json()["id"]
    response = await client.post("/v1/batches", json={"input_file_id": file_id, "endpoint": "/v1/embeddings"})
    assert response.status_code == 429


def test_only_unfinished_batches_of_the_key_count(tmp_path: Path) -> None:
    store = BatchStore(tmp_path)
    states = [("ours", "validating"), ("ours", "completed"), ("theirs", "validating"), ("ours", "validating")]
    try:
        added = [
            store.add_batch(
                BatchRecord(
                    id=f"batch_{number}",
                    owner=owner,
                    fields={"status": status},
                    output_file_id=f"file-{number}",
                    error_file_id=f"file-e{number}",
                ),
                max_unfinished=2,
                max_batches=10,
            )
            for number, (owner, status) in enumerate(
                [*states, ("ours", "cancelling"), ("theirs", "cancelling")]
            )
        ]
        assert added == [True] * 4 + [False, True]
    finally:
        store.close()


async def test_without_a_folder_there_are_no_routes() -> None:
    async with client_of(build_debug_app()) as client:
        assert (await client.get("/v1/files")).status_code == 404
        assert (await client.post("/v1/batches", json={})).status_code == 404


async def test_expired_files_are_deleted_at_the_next_start(tmp_path: Path) -> None:
    async with serve(tmp_path) as client:
        old, young = [(await upload(client, b"x")).json()["id"] for _ in range(2)]
    with sqlite3.connect(tmp_path / "batches" / "batches.sqlite3") as connection:
        connection.execute("UPDATE files SET expires_at = 0 WHERE id = ?", (old,))
    connection.close()
    async with serve(tmp_path) as client:
        deadline_s = time.monotonic() + PATIENCE_S
        while (await client.get(f"/v1/files/{old}")).status_code == 200:
            assert time.monotonic() < deadline_s
        assert (await client.get(f"/v1/files/{young}")).status_code == 200
    assert [path.name for path in (tmp_path / "batches" / "files").iterdir()] == [young]


async def test_one_server_at_a_time_uses_a_folder(tmp_path: Path) -> None:
    async with serve(tmp_path):
        with pytest.raises(StartupError, match="another server uses --batch-dir"):
            build_debug_app(batch_dir=str(tmp_path / "batches"))
    (tmp_path / "file").write_text("")
    with pytest.raises(StartupError, match="give a folder that can be written"):
        build_debug_app(batch_dir=str(tmp_path / "file"))


async def test_interactive_requests_go_before_the_lines_of_a_batch(tmp_path: Path) -> None:
    """Batches are bulk work, of which at most a few lines are ahead of a query."""
    async with serve(tmp_path, "delay_s=0.01") as client:
        batch = await create(client, [make_line(number) for number in range(3000)])
        await wait_for(client, batch["id"], lambda batch: batch["status"] == "in_progress")
        for _ in range(10):
            assert (await embed(client)).status_code == 200
        status = await client.get(f"/v1/batches/{batch['id']}")
        assert status.json()["request_counts"]["completed"] < 1500
        await client.post(f"/v1/batches/{batch['id']}/cancel")
        await finish(client, batch["id"])


async def test_a_batch_goes_slowly_while_other_requests_come(tmp_path: Path) -> None:
    async with serve(tmp_path) as client:
        batch = await create(client, [make_line(number) for number in range(100)])
        for _ in range(30):
            assert (await embed(client)).status_code == 200
            await asyncio.sleep(0.01)
        counts = (await client.get(f"/v1/batches/{batch['id']}")).json()["request_counts"]
        assert counts["completed"] < 50
        assert (await finish(client, batch["id"]))["request_counts"]["completed"] == 100


def test_the_pause_between_lines_follows_their_duration_and_the_window(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now_s = 100.0
    monkeypatch.setattr("infinity_emb.server.batches.pace.time.monotonic", lambda: now_s)
    slow = Pace()
    assert not slow.is_busy
    slow.note_request()
    assert slow.is_busy
    day_s = 24 * 3600.0
    for duration_s, num_left, left_s, pause_s in [
        (0.001, 1000, day_s, 0.1),
        (0.05, 1000, day_s, 1.0),
        (5.0, 1000, day_s, 2.0),
        (5.0, 1000, 100.0, 0.05),
        (5.0, 0, 0.0, 0.0),
    ]:
        slow.note_line(duration_s, num_left, left_s)
        assert slow._next_line_s == pytest.approx(now_s + pause_s)


async def test_openais_client_uploads_computes_and_downloads(tmp_path: Path) -> None:
    app = build_debug_app(batch_dir=str(tmp_path / "batches"))
    http_client = httpx2.AsyncClient(transport=httpx2.ASGITransport(app))
    async with client_of(app) as served, http_client:
        client = openai.AsyncOpenAI(base_url="http://test/v1", api_key="any", http_client=http_client)
        lines = [make_line(number, "" if number % 100 else 5) for number in range(300)]
        file = await client.files.create(file=("in.jsonl", as_jsonl(lines)), purpose="batch")
        batch = await client.batches.create(
            input_file_id=file.id, endpoint="/v1/embeddings", completion_window="24h", metadata={"a": "b"}
        )
        await finish(served, batch.id)
        batch = await client.batches.retrieve(batch.id)
        assert batch.request_counts is not None
        assert (batch.request_counts.completed, batch.request_counts.failed) == (297, 3)
        assert batch.output_file_id is not None
        content = await client.files.content(batch.output_file_id)
        assert len(content.text.splitlines()) == 297
        assert [each.id async for each in client.batches.list(limit=1)] == [batch.id]
        assert len([each async for each in client.files.list()]) == 3
        deleted = await client.files.delete(file.id)
        assert deleted.deleted
