"""The Batch API of a server with several front ends: any of them is asked, the engine process computes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import httpx

from tests.cli.front_ends.conftest import NUM_FRONT_ENDS, FrontEndServer, StartFrontEnds, wait_until
from tests.support.server_process import DEADLINE_S


def request(server: FrontEndServer, method: str, path: str, **options: Any) -> httpx.Response:
    """Send a request on a connection of its own."""
    response = httpx.request(method, f"{server.url}/v1{path}", timeout=DEADLINE_S, verify=False, **options)
    assert response.status_code == 200, response.text
    return response


def upload(server: FrontEndServer, num_lines: int) -> str:
    lines = [
        {
            "custom_id": f"row-{number}",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": {"model": "debug", "input": f"text {number}"},
        }
        for number in range(num_lines)
    ]
    files = {"file": ("in.jsonl", "".join(json.dumps(line) + "\n" for line in lines).encode())}
    file_id: str = request(server, "POST", "/files", files=files, data={"purpose": "batch"}).json()["id"]
    return file_id


def create(server: FrontEndServer, file_id: str) -> str:
    body = {"input_file_id": file_id, "endpoint": "/v1/embeddings", "completion_window": "24h"}
    batch_id: str = request(server, "POST", "/batches", json=body).json()["id"]
    return batch_id


def read_rows(server: FrontEndServer, batch_id: str) -> list[str]:
    """Wait for the end of a batch; return the ids of its rows."""

    def find() -> dict[str, Any]:
        found: dict[str, Any] = request(server, "GET", f"/batches/{batch_id}").json()
        return found

    wait_until(lambda: find()["status"] == "completed")
    content = request(server, "GET", f"/files/{find()['output_file_id']}/content").content
    rows = [json.loads(line) for line in content.splitlines()]
    assert {row["response"]["status_code"] for row in rows} == {200}
    return [row["custom_id"] for row in rows]


def test_files_and_batches_are_visible_to_every_front_end(start: StartFrontEnds, tmp_path: Path) -> None:
    server = start("debug", "--batch-dir", str(tmp_path))
    file_id = upload(server, 3000)
    batch_id = create(server, file_id)
    for _ in range(10):
        assert [each["id"] for each in request(server, "GET", "/files").json()["data"]][-1] == file_id
        assert [each["id"] for each in request(server, "GET", "/batches").json()["data"]] == [batch_id]
    assert sorted(read_rows(server, batch_id)) == sorted(f"row-{number}" for number in range(3000))


def test_a_batch_goes_on_when_front_ends_end(start: StartFrontEnds, tmp_path: Path) -> None:
    server = start("debug?delay_s=0.02", "--batch-dir", str(tmp_path), "--batch-size", "1")
    batch_id = create(server, upload(server, 200))
    for victim in server.list_front_ends():
        victim.kill()
        server.wait_for_line("has ended; starting another")
    wait_until(lambda: len(server.list_front_ends()) == NUM_FRONT_ENDS)
    assert len(read_rows(server, batch_id)) == 200


def test_requests_of_front_ends_slow_a_batch_down(start: StartFrontEnds, tmp_path: Path) -> None:
    server = start("debug?delay_s=0.01", "--batch-dir", str(tmp_path), "--batch-size", "1")
    batch_id = create(server, upload(server, 400))

    def count_done() -> int:
        counts = request(server, "GET", f"/batches/{batch_id}").json()["request_counts"]
        return int(counts["completed"])

    for _ in range(20):
        assert server.embed().status_code == 200
    before = count_done()
    for _ in range(50):
        assert server.embed().status_code == 200
    assert count_done() - before < 40
    request(server, "POST", f"/batches/{batch_id}/cancel")
