from __future__ import annotations

import pytest

from infinity_emb.cli.health_check import find_health_url


@pytest.mark.parametrize(
    ("command_line", "environ", "url"),
    [
        ("/venv/bin/python /venv/bin/infinity_emb v2", {}, "http://127.0.0.1:7997/health"),
        ("python infinity_emb v2 --model-id a --port 8080", {}, "http://127.0.0.1:8080/health"),
        (
            "/sbin/docker-init -- infinity_emb --port=81 --model-id a --model-id b",
            {},
            "http://127.0.0.1:81/health",
        ),
        ("/sbin/docker-init -- entrypoint.sh v2 --port 81", {}, "http://127.0.0.1:81/health"),
        ("python infinity_emb v2", {"INFINITY_PORT": "90"}, "http://127.0.0.1:90/health"),
        ("python infinity_emb v2 --port 8080", {"INFINITY_PORT": "90"}, "http://127.0.0.1:8080/health"),
        ("python infinity_emb v2 --host ::", {}, "http://[::1]:7997/health"),
        ("python infinity_emb v2 --host 10.0.0.7", {}, "http://10.0.0.7:7997/health"),
        ("sleep 60", {}, "http://127.0.0.1:7997/health"),
    ],
)
def test_the_health_check_asks_at_the_address_that_the_server_listens_on(
    command_line: str, environ: dict[str, str], url: str
) -> None:
    words = [*command_line.split(" "), ""]  # the kernel ends each word with a null byte
    assert find_health_url(words, environ) == url
