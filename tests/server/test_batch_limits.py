"""What one client may do with `/v1/files` and `/v1/batches`: bombs in lines, floods, and large results."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from infinity_emb.server.batches import lines, result_files, runner, service
from infinity_emb.server.batches.lines import LineRequest, LineResponse
from infinity_emb.server.batches.result_files import Result, ResultFiles
from infinity_emb.server.batches.store import BatchRecord, BatchStore, StorageFull
from infinity_emb.server.requests.json_counts import MAX_COUNTS, MAX_WIDE_BYTES
from tests.server.test_batches import KEYS, create, download, finish, make_line, serve, upload

pytestmark = pytest.mark.anyio

BOUNDARY = b"--b\r\ncontent-disposition: form-data; name="


@pytest.fixture
async def client(tmp_path: Path, anyio_backend: str) -> AsyncIterator[httpx.AsyncClient]:
    async with serve(tmp_path) as client:
        yield client


def make_bomb(value: str) -> str:
    return json.dumps(make_line(0) | {"body": {"input": "x", "other": "?"}}).replace('"?"', value)


@pytest.mark.parametrize(
    ("value", "code"),
    [
        ("[" + "[]," * MAX_COUNTS.num_containers + "[]]", "invalid_json_line"),
        ("[" + "1," * MAX_COUNTS.num_values + "1]", "invalid_json_line"),
        ("[" * 300 + "]" * 300, "invalid_json_line"),
        ("[" * 2000 + "]" * 2000, "invalid_json_line"),
        ('"' + "x" * MAX_WIDE_BYTES + '\U0001f600"', "line_too_long"),
        ("1e999", "invalid_json_line"),
    ],
)
async def test_a_line_has_the_limits_of_a_body(value: str, code: str, client: httpx.AsyncClient) -> None:
    """Millions of lists in a line held the event loop for seconds, and lists in lists stopped the batch."""
    batch = await finish(client, (await create(client, [make_line(1), make_bomb(value)]))["id"])
    assert batch["status"] == "failed"
    [problem] = batch["errors"]["data"]
    assert (problem["code"], problem["line"]) == (code, 2), problem
    assert len(problem["message"]) < 500


async def test_results_stop_at_the_limit_of_all_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A file of a megabyte could become results of gigabytes, and fill the disk."""
    monkeypatch.setattr(result_files, "RESULTS_PER_COMMIT", 8)
    async with serve(tmp_path, batch_max_file_mb=1, batch_max_total_mb=2) as client:
        lines = [make_line(number, ["x"] * 2000) for number in range(40)]
        batch = await finish(client, (await create(client, lines))["id"])
        assert batch["status"] == "failed"
        [problem] = batch["errors"]["data"]
        assert problem["code"] == "storage_full"
        output = await download(client, batch["output_file_id"])
        assert 0 < len(output) == batch["request_counts"]["completed"] < len(lines)
        files = (tmp_path / "batches" / "files").iterdir()
        assert sum(path.stat().st_size for path in files) <= 2 * 2**20


async def test_uploads_leave_room_for_results(tmp_path: Path) -> None:
    """One key could end the batches of all others by filling the limit with its files."""
    async with serve(tmp_path, batch_max_file_mb=1, batch_max_total_mb=2) as client:
        file_id = (await upload(client, json.dumps(make_line(0)).encode())).json()["id"]
        statuses = [(await upload(client, b"x" * size)).status_code for size in (2**19, 3 * 2**17, 1)]
        assert statuses == [200, 200, 507]
        body = {"input_file_id": file_id, "endpoint": "/v1/embeddings"}
        batch = (await client.post("/v1/batches", json=body)).json()
        assert (await finish(client, batch["id"]))["status"] == "completed"


def make_record(status: str = "in_progress") -> BatchRecord:
    counts = {"total": 0, "completed": 0, "failed": 0}
    return BatchRecord(
        id="batch_0",
        owner="",
        fields={"status": status, "request_counts": counts},
        output_file_id="file-output",
        error_file_id="file-error",
    )


def test_results_leave_room_for_uploads_that_are_being_received(tmp_path: Path) -> None:
    """Only whole files counted, so that together they could exceed the limit."""
    store, batch = BatchStore(tmp_path), make_record()
    files = ResultFiles(store, batch, threading.Lock(), max_total_bytes=100)
    try:
        store.reserve("file-upload", 91, 100)
        files.add(Result(b"x" * 10, is_error=False))
        with pytest.raises(StorageFull, match=r"have 91 bytes, and with 10 more .* the limit of 100"):
            files.commit()
        assert batch.output_bytes == 0
        store.release("file-upload")
        files.commit()
        store.reserve("file-upload", 90, 100)
        files.commit()
        assert (batch.output_bytes, batch.num_lines) == (10, 1)
    finally:
        files.close()
        store.close()


async def test_results_count_as_files(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only uploads counted, so a key could have any number of files by way of batches."""
    monkeypatch.setattr("infinity_emb.server.batches.store.MAX_FILES", 4)
    batch = await finish(client, (await create(client, [make_line(0)]))["id"])
    assert (await upload(client, b"x")).status_code == 200
    body = {"input_file_id": batch["input_file_id"], "endpoint": "/v1/embeddings"}
    response = await client.post("/v1/batches", json=body)
    assert response.status_code == 400
    assert "there are 3 files" in response.json()["error"]["message"]
    assert (await upload(client, b"y")).status_code == 200
    assert (await upload(client, b"z")).status_code == 400
    for file_id in (batch["output_file_id"], (await client.get("/v1/files")).json()["data"][0]["id"]):
        await client.delete(f"/v1/files/{file_id}")
    batch = (await client.post("/v1/batches", json=body)).json()
    assert (await finish(client, batch["id"]))["status"] == "completed"


async def test_a_batch_that_cannot_go_on_fails(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """It once stayed unfinished until the next start, and its file could not be deleted."""
    write = lines.write_response

    def write_all_but_the_second(request: LineRequest, response: LineResponse) -> bytes:
        if request.custom_id == "row-1":
            raise ArithmeticError("a fault of the server")
        return write(request, response)

    monkeypatch.setattr(runner, "write_response", write_all_but_the_second)
    batch = await finish(client, (await create(client, [make_line(number) for number in range(2)]))["id"])

    assert (batch["status"], batch["errors"]["data"][0]["code"]) == ("failed", "server_error")
    assert "a fault of the server" in caplog.text
    assert (await client.delete(f"/v1/files/{batch['input_file_id']}")).status_code == 200


async def test_large_lines_run_beside_few_others(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sixteen lines of 32 MB each were in memory for each of four batches, and their responses."""
    most: dict[str, int] = {"lines": 0, "inputs": 0}
    has_room = runner._has_room

    def watch(pending: Any, request: Any) -> bool:
        most["lines"] = max(most["lines"], len(pending))
        most["inputs"] = max(most["inputs"], sum(each.request.num_inputs for each in pending))
        return has_room(pending, request)

    monkeypatch.setattr(runner, "_has_room", watch)
    lines = [make_line(number, ["x"] * 800) for number in range(40)]
    batch = await finish(client, (await create(client, lines))["id"])
    assert batch["request_counts"]["completed"] == 40
    assert most["inputs"] <= runner.MAX_INPUTS_AT_ONCE
    assert most["lines"] == 2


async def test_blank_lines_are_limited(client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """A thread read 200 million of them for minutes, again and again."""
    monkeypatch.setattr("infinity_emb.server.batches.lines.MAX_LINES", 3)
    for num_blank, status in ((3, "completed"), (4, "failed")):
        lines = [*map(make_line, range(3)), *[""] * num_blank]
        batch = await finish(client, (await create(client, lines))["id"])
        assert batch["status"] == status
    assert [problem["code"] for problem in batch["errors"]["data"]] == ["too_many_requests"]


async def test_a_key_with_many_batches_leaves_a_place_to_others(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """They ran in the order in which they were created: for a day, if the first ones were large enough."""
    monkeypatch.setattr(runner, "MAX_RUNNING", 2)
    async with serve(tmp_path, "delay_s=0.2", api_key=KEYS) as client:
        client.headers["authorization"] = f"Bearer {KEYS[0]}"
        ids = [(await create(client, list(map(make_line, range(1000)))))["id"] for _ in range(4)]
        client.headers["authorization"] = f"Bearer {KEYS[1]}"
        assert (await finish(client, (await create(client, [make_line(0)]))["id"]))["status"] == "completed"
        client.headers["authorization"] = f"Bearer {KEYS[0]}"
        batches = [(await client.get(f"/v1/batches/{each}")).json() for each in ids]
        assert [batch["status"] for batch in batches[1:]] == ["validating"] * 3
        for each in ids:
            await client.post(f"/v1/batches/{each}/cancel")


async def test_batches_that_are_created_at_once_are_limited_too(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each of them saw the number before all others."""
    monkeypatch.setattr(service, "MAX_UNFINISHED_BATCHES", 3)
    async with serve(tmp_path, "delay_s=0.2") as client:
        lines = [make_line(number) for number in range(200)]
        file_id = (await upload(client, "\n".join(map(json.dumps, lines)).encode())).json()["id"]
        body = {"input_file_id": file_id, "endpoint": "/v1/embeddings"}
        responses = await asyncio.gather(*(client.post("/v1/batches", json=body) for _ in range(20)))
        statuses = sorted(response.status_code for response in responses)
        assert statuses == [200] * 3 + [429] * 17
        for batch in (await client.get("/v1/batches")).json()["data"]:
            await client.post(f"/v1/batches/{batch['id']}/cancel")


async def test_old_batches_make_room_for_new_ones(
    client: httpx.AsyncClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Finished batches were kept for 30 days, however many there were, and listed all at once."""
    monkeypatch.setattr(service, "MAX_BATCHES", 3)
    ids = [(await finish(client, (await create(client, [make_line(0)]))["id"]))["id"] for _ in range(6)]
    listed = (await client.get("/v1/batches")).json()
    assert [batch["id"] for batch in listed["data"]] == ids[:2:-1]
    assert (await client.get(f"/v1/batches/{ids[0]}")).status_code == 404


async def test_a_page_of_batches_reads_these_batches_alone(client: httpx.AsyncClient, tmp_path: Path) -> None:
    ids = [(await finish(client, (await create(client, [make_line(0)]))["id"]))["id"] for _ in range(5)]
    with sqlite3.connect(tmp_path / "batches" / "batches.sqlite3") as connection:
        connection.execute("UPDATE batches SET fields = '?' WHERE id IN (?, ?)", (ids[0], ids[4]))
    connection.close()
    page = (await client.get("/v1/batches", params={"limit": 2, "after": ids[4]})).json()
    assert ([batch["id"] for batch in page["data"]], page["has_more"]) == (ids[3:1:-1], True)
    assert (page["first_id"], page["last_id"]) == (ids[3], ids[2])


@pytest.mark.parametrize("charset", ["utf-7", "undefined", "idna", "punycode", "unicode_escape", "latin-1"])
async def test_a_form_in_another_charset_is_refused(charset: str, client: httpx.AsyncClient) -> None:
    """A name in UTF-7 can have half of a surrogate pair, which was a 500, and Punycode takes hours."""
    parts = [b'"purpose"\r\n\r\nbatch\r\n', b'"file"; filename="+2AA-"\r\n\r\nx\r\n']
    content = b"".join(BOUNDARY + part for part in parts) + b"--b--\r\n"
    headers = {"content-type": f"multipart/form-data; charset={charset}; boundary=b"}
    response = await client.post("/v1/files", content=content, headers=headers)
    assert response.status_code == 415, response.text
    headers = {"content-type": "Multipart/Form-Data; charset=UTF-8; boundary=b"}
    assert (await client.post("/v1/files", content=content, headers=headers)).status_code == 200


async def test_a_file_that_could_not_be_recorded_is_not_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise sqlite3.OperationalError("database or disk is full")

    async with serve(tmp_path) as client:
        with monkeypatch.context() as patch:
            patch.setattr(BatchStore, "add_file", fail)
            assert (await upload(client, json.dumps(make_line(0)).encode())).status_code == 500
        assert not list((tmp_path / "batches" / "files").iterdir())
        assert (await upload(client, json.dumps(make_line(0)).encode())).status_code == 200


async def test_expired_files_are_deleted_also_after_an_error_of_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    is_deleted = threading.Event()
    errors = [sqlite3.OperationalError("disk I/O error"), OSError("no space left")]

    def list_expired_files(*_: object) -> list[str]:
        if errors:
            raise errors.pop()
        is_deleted.set()
        return []

    monkeypatch.setattr(service, "_CLEANING_PAUSE_S", 0.01)
    monkeypatch.setattr(BatchStore, "list_expired_files", list_expired_files)
    async with serve(tmp_path):
        assert await asyncio.to_thread(is_deleted.wait, 30)
