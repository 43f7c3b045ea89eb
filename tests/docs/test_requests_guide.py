"""What docs/requests.md shows works as pasted, on one server; the fake engine stands in for most models."""

from __future__ import annotations

import base64
import json
import re
import shlex
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest

from tests.support.server_process import DEADLINE_S, serving

pytestmark = pytest.mark.model

GUIDE = (Path(__file__).parents[2] / "docs" / "requests.md").read_text(encoding="utf-8")
DEFAULT_URL = "http://localhost:7997"
BUNDLED = "minilm"
STAND_INS = {
    "m3": "debug?kind=embedder",
    "reranker": "debug?kind=reranker",
    "classifier": "debug?kind=classifier",
    "splade": "debug?kind=sparse",
    "clip": "debug?kind=embedder&delay_s=0",
}
TEXT = "Munich is in Germany."

Answers = dict[str, Any]
Ask = Callable[..., Any]


def sections() -> dict[str, str]:
    """Heading → text."""
    parts = re.split(r"^## (.+)\n", GUIDE, flags=re.MULTILINE)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def blocks(text: str) -> list[str]:
    return re.findall(r"```sh\n(.*?)```", text, re.DOTALL)


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the server keeps the ranges of int8 vectors."""
    return tmp_path_factory.mktemp("home")


@pytest.fixture(scope="module")
def url(home: Path) -> Iterator[str]:
    """A server of the guide's models, the bundled one and stand-ins."""
    options = ["--no-model-warmup"]
    for name in models_of_the_guide():
        model, engine = (STAND_INS[name], "debugengine") if name in STAND_INS else (bundled_model(), "torch")
        options += ["--model-id", model, "--served-model-name", name, "--engine", engine]
    with serving(*options, INFINITY_HOME=str(home)) as url:
        yield url


@pytest.fixture(scope="module")
def answers(url: str) -> Answers:
    """What each section's example is answered."""
    answered = {}
    for title, text in sections().items():
        (block,) = blocks(text)
        assert DEFAULT_URL in block
        done = subprocess.run(
            ["bash", "-s"],
            input=block.replace(DEFAULT_URL, url).replace("curl", "curl -sS"),
            capture_output=True,
            text=True,
            timeout=DEADLINE_S,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answered[title] = json.loads(done.stdout)
    return answered


@pytest.fixture
def ask(url: str) -> Ask:
    def ask(path: str, **members: Any) -> Any:
        answer = httpx.post(f"{url}{path}", json=members, timeout=DEADLINE_S)
        assert answer.status_code == 200, answer.text
        return answer.json()

    return ask


def server_command() -> list[str]:
    """The words of the command that the guide begins with."""
    (command,) = re.findall(r"^    (infinity_emb v2 .*?)\n\n", GUIDE, re.DOTALL | re.MULTILINE)
    return shlex.split(command)


def models_of_the_guide() -> list[str]:
    return [
        name
        for flag, name in zip(server_command(), server_command()[1:], strict=False)
        if flag == "--served-model-name"
    ]


def bundled_model() -> str:
    return server_command()[server_command().index("--model-id") + 1]


def test_the_examples_name_models_of_the_server_that_the_guide_starts() -> None:
    named = set(re.findall(r'"model": "(.+?)"', GUIDE))
    assert named == set(models_of_the_guide()) == {BUNDLED, *STAND_INS}


def test_the_guide_is_short_enough_to_be_read() -> None:
    assert len(GUIDE.splitlines()) <= 200


def test_only_the_example_of_an_error_is_one(answers: Answers) -> None:
    assert [title for title, answer in answers.items() if "error" in answer] == ["Errors"]
    error = answers["Errors"]["error"]
    assert error["param"] == "dimensions"
    assert error["code"] == 400


def test_a_prompt_counts_before_its_name_and_that_before_the_input_type(answers: Answers, ask: Ask) -> None:
    """The stand-in's vectors are the number of characters; its prompt for queries is `query: `."""

    def length(**members: Any) -> int:
        return int(ask("/embeddings", input=TEXT, **members)["data"][0]["embedding"][0])

    assert answers["Prompts and tasks"]["data"][0]["embedding"][0] == len("query: Where is Munich?")
    own, query = len(TEXT), len("query: ") + len(TEXT)
    for word in ("query", "search_query", "RETRIEVAL_QUERY"):
        assert length(model="m3", input_type=word) == query
    assert length(model="m3", task="passage") == own
    assert length(model="m3", prompt_name="document", input_type="query") == own
    assert length(model="m3", prompt="", prompt_name="query") == own
    assert length(model="m3", prompt="12345", prompt_name="query") == own + 5
    assert [length(model=name) for name in ("m3:query", "m3:document", "m3:passage")] == [query, own, own]


def test_each_output_has_a_member_of_its_own(answers: Answers) -> None:
    (member,) = answers["Outputs"]["data"]
    assert np.shape(member["embedding"]) == (13,)
    assert np.shape(member["multivector_embedding"]) == (len(TEXT), 13)
    assert len(member["sparse_embedding"]["indices"]) == len(set(TEXT))


def test_int8_is_mapped_back_with_the_rows_of_the_cached_file(answers: Answers, ask: Ask, home: Path) -> None:
    (path,) = (home / "infinity_emb" / "calibration").glob("*.npy")
    rows = np.load(path)
    low, high = rows.min(axis=0), rows.max(axis=0)
    sent = base64.b64decode(answers["Dtypes"]["data"][0]["embedding"])
    int8 = np.frombuffer(sent, dtype=np.int8)
    mapped = low + (int8 + 128.5) * (high - low) / 255
    exact = ask("/embeddings", model="m3", input=TEXT)["data"][0]["embedding"]
    assert len(rows) > 400
    assert np.abs(mapped - exact).max() <= (high - low).max() / 255 / 2 * 1.001


def test_fewer_dimensions_have_length_1(answers: Answers) -> None:
    vector = np.array(answers["Dimensions"]["data"][0]["embedding"])
    assert vector.shape == (128,)
    assert np.linalg.norm(vector) == pytest.approx(1)


def test_chunking_leaves_a_text_that_fits_as_it_is(answers: Answers, ask: Ask) -> None:
    whole = ask("/embeddings", model=BUNDLED, input=["A very long text.", "Another one."])
    assert len(answers["Long texts"]["data"]) == 2
    for chunked, expected in zip(answers["Long texts"]["data"], whole["data"], strict=True):
        assert np.allclose(chunked["embedding"], expected["embedding"], atol=1e-6)


@pytest.mark.parametrize(
    "members",
    [{"truncate": "START"}, {"truncate": "END"}, {"truncation_side": "left"}, {"truncate": True}],
    ids=str,
)
def test_a_text_over_the_limit_is_cut_where_it_is_said(ask: Ask, members: dict[str, Any]) -> None:
    one, two = ("river " * 300, "bank " * 300)
    answer = ask("/embeddings", model=BUNDLED, input=[one + two, one, two], **members)
    both, first, second = (np.array(each["embedding"]) for each in answer["data"])
    is_left = "START" in members.values() or "left" in members.values()
    assert (both @ second > both @ first) is np.bool_(is_left)


def test_a_text_over_the_limit_is_refused_on_demand(url: str) -> None:
    members = {"model": BUNDLED, "input": ["river " * 300], "truncate": False}
    answer = httpx.post(f"{url}/embeddings", json=members, timeout=DEADLINE_S)
    assert answer.status_code == 400
    assert "input 0 has " in answer.json()["error"]["message"]


def test_late_chunking_tells_where_each_passage_stands(answers: Answers, ask: Ask) -> None:
    passages = ["Munich is in Germany.", "It has 1.5 million inhabitants."]
    whole = " ".join(passages)
    found = [each["late_chunking"]["char_range"] for each in answers["Late chunking"]["data"]]
    assert [whole[start:end].strip() for start, end in found] == passages
    alone = ask("/embeddings", model=BUNDLED, input=passages)["data"]
    for late, each in zip(answers["Late chunking"]["data"], alone, strict=True):
        assert not np.allclose(late["embedding"], each["embedding"], atol=1e-3), "it knows its context"
    chunks = ask("/embeddings", model=BUNDLED, input=whole, late_chunking={"chunk_size": 6})["data"]
    ranges = [each["late_chunking"]["char_range"] for each in chunks]
    assert len(ranges) > 2
    assert "".join(whole[start:end] for start, end in ranges) == whole


def test_the_best_documents_come_with_their_texts(answers: Answers, ask: Ask) -> None:
    """The stand-in's scores are half of the document's characters; raw ones are all of them."""
    (best,) = answers["Reranking"]["results"]
    assert best == {"relevance_score": len(TEXT) / 2, "index": 1, "document": TEXT}
    documents = [{"text": TEXT}, "The sky is blue."]
    raw = ask("/rerank", model="reranker", query="?", documents=documents, raw_scores=True)
    assert [each["relevance_score"] for each in raw["results"]] == [len(TEXT), 16]


def test_texts_and_pairs_have_labels(answers: Answers) -> None:
    labels = [[each["label"] for each in member] for member in answers["Classification"]["data"]]
    assert labels == [["characters", "none"]] * 2


def test_both_routes_answer_the_same_sparse_vector(answers: Answers, ask: Ask) -> None:
    (entries,) = answers["Sparse vectors"]
    (member,) = ask("/embeddings", model="splade", input=TEXT, outputs=["sparse"])["data"]
    assert member["sparse_embedding"] == {
        "indices": [each["index"] for each in entries],
        "values": [each["value"] for each in entries],
    }


def test_an_image_has_a_vector_and_private_addresses_are_refused(answers: Answers, url: str) -> None:
    assert answers["Images and audio"]["data"][0]["embedding"] == [4] * 13, "as high as the image"
    for address in ("http://127.0.0.1/a.png", "http://169.254.169.254/a.png", "http://10.0.0.1/a.png"):
        members = {"model": "clip", "modality": "image", "input": [address]}
        answer = httpx.post(f"{url}/embeddings", json=members, timeout=DEADLINE_S)
        assert answer.status_code == 400
        assert "public" in answer.json()["error"]["message"]
