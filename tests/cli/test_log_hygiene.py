"""What clients send, and what they are answered, stands in no log, however much is logged."""

from __future__ import annotations

import json
import re
import signal
from typing import Any

import httpx
import pytest

from tests.support.server_process import DEADLINE_S, FAKE, StartServer

# Words that stand in no message of ours, and a length whose vector nobody else's is.
SECRET = "Xylophon-Quittung "
TEXT = SECRET + "." * (3919 - len(SECRET))
KEY = "sesam-oeffne-dich"
MEDIA = f"data:image/png;base64,{'U2VzYW0h' * 9}"
URLS = [f"http://{SECRET.strip()}.invalid/a.png?signature={KEY}", "http://127.0.0.1/?token=" + KEY]

# Path, and a body that is answered; each is also sent with what cannot be.
GOOD: list[tuple[str, dict[str, Any]]] = [
    ("/embeddings", {"input": [TEXT]}),
    ("/embeddings", {"input": TEXT, "encoding_format": "base64"}),
    ("/embed", {"inputs": TEXT}),
    ("/v1/embed", {"texts": [TEXT], "model": "embedder"}),
    (
        "/v2/embed",
        {
            "texts": [TEXT],
            "model": "embedder",
            "input_type": "search_query",
            "embedding_types": ["float"],
        },
    ),
    ("/api/embed", {"input": TEXT, "model": "embedder"}),
    ("/api/embeddings", {"prompt": TEXT, "model": "embedder"}),
    ("/rerank", {"query": TEXT, "documents": [TEXT], "model": "reranker"}),
    ("/v2/rerank", {"query": TEXT, "documents": [TEXT], "model": "reranker"}),
    ("/ranking", {"query": {"text": TEXT}, "passages": [{"text": TEXT}], "model": "reranker"}),
    ("/score", {"queries": TEXT, "documents": [TEXT], "model": "reranker"}),
    ("/pooling", {"input": TEXT, "model": "embedder"}),
    ("/embed_sparse", {"inputs": TEXT}),
    ("/tokenize", {"inputs": TEXT}),
]
POISONED: list[tuple[str, dict[str, Any]]] = [
    ("/embeddings", {"input": [f"poison {TEXT}", TEXT]}),
    ("/embeddings", {"input": [f"nan {TEXT}", TEXT]}),
    ("/embed", {"inputs": f"poison {TEXT}"}),
    ("/api/embed", {"input": f"poison {TEXT}", "model": "embedder"}),
    ("/v2/embed", {"texts": [f"poison {TEXT}"], "model": "embedder"}),
]
BAD: list[tuple[str, dict[str, Any]]] = [
    *((path, {**body, "model": TEXT}) for path, body in GOOD),
    *((path, {name: {TEXT: [TEXT]} for name in body}) for path, body in GOOD),
    ("/embeddings", {"input": [MEDIA], "modality": "image"}),
    *(("/embeddings", {"input": [url], "modality": "image"}) for url in URLS),
    ("/embeddings", {"input": [TEXT], "modality": "audio"}),
    ("/embeddings", {"input": TEXT, "dimensions": 99}),
    ("/embeddings", {"input": TEXT * 3, "truncate": False}),
]


@pytest.mark.parametrize("level", ["debug", "trace"])
def test_no_text_key_or_vector_is_logged(level: str, serve: StartServer) -> None:
    models = ["embedder?kind=embedder&fail_on=poison&nan_on=nan", "reranker?kind=reranker"]
    names = [f"--served-model-name={model.partition('?')[0]}" for model in models]
    server = serve(
        *FAKE, *(f"--model-id={model}" for model in models), *names, "--api-key", KEY, "--log-level", level
    )
    statuses: dict[str, list[int]] = {"good": [], "poisoned": [], "bad": []}
    headers = {"Authorization": f"Bearer {KEY}", "content-type": "application/json"}
    with httpx.Client(base_url=server.url, timeout=DEADLINE_S, headers=headers) as client:
        for kind, requests in (("good", GOOD), ("poisoned", POISONED), ("bad", BAD)):
            for path, body in requests:
                # As Python writes JSON, lone surrogates are escapes.
                statuses[kind].append(client.post(path, content=json.dumps(body)).status_code)
        assert client.post("/embeddings", content=f'{{"input": "{TEXT}').status_code == 422
        wrong_key = {"Authorization": f"Bearer {KEY}x"}
        assert client.post("/embeddings", json={"input": TEXT}, headers=wrong_key).status_code == 401
    _, rest = server.stop(signal.SIGTERM)
    log = "".join(server.lines) + rest
    assert statuses["good"] == [200] * len(GOOD)
    assert all(status >= 400 for status in statuses["bad"])
    assert "batch of 2 failed" in log
    assert log.count("POST /") > len(GOOD) + len(BAD)
    for secret in (SECRET.strip(), KEY, "U2VzYW0h", "....", "signature=", "token="):
        assert secret.lower() not in log.lower(), secret
    assert not re.search(r"3919\.0|poison X|array\(", log)
