from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from dataclasses import replace

import pytest

from infinity_emb.cli.log_setup import configure_logging, describe_model
from infinity_emb.scheduling.request_context import DEFAULT_REQUEST, RequestContext, set_request
from infinity_emb.types import ModelInfo, ModelKind

INFO = ModelInfo(
    kind=ModelKind.embedder,
    outputs=("dense",),
    embedding_dimension=384,
    max_tokens=256,
    capabilities=("embed",),
    dtype="bfloat16",
    dtype_reason="the device is made for it",
    device="cuda:0",
    attention="packed",
    attention_reason="BertModel takes the interface",
    pooling="mean",
    prompts={"query": "find: ", "document": ""},
    default_prompt_name=None,
    revision="1234abcd",
    source="hub",
    engine="torch",
    engine_reason="optimum is no faster",
)


@pytest.fixture
def _logging_as_before() -> Iterator[None]:
    loggers = [logging.getLogger(name) for name in (None, "infinity_emb", "uvicorn")]
    levels, handlers = [each.level for each in loggers], list(loggers[0].handlers)
    loggers[0].handlers = []  # so that basicConfig does not close what pytest put there
    yield
    loggers[0].handlers = handlers
    for each, level in zip(loggers, levels, strict=True):
        each.setLevel(level)


@pytest.mark.usefixtures("_logging_as_before")
@pytest.mark.parametrize(
    ("level", "shown"),
    [
        ("info", {"infinity_emb": logging.INFO, "uvicorn.access": logging.WARNING, "httpx": logging.WARNING}),
        ("debug", {"infinity_emb": logging.DEBUG, "uvicorn.access": logging.DEBUG, "httpx": logging.WARNING}),
        ("trace", {"infinity_emb": 5, "uvicorn.error": 5, "httpx": logging.WARNING}),
        ("error", {"infinity_emb": logging.ERROR, "uvicorn.error": logging.ERROR, "httpx": logging.ERROR}),
    ],
)
def test_the_level_is_that_of_this_package_and_others_are_heard_from_warnings_on(
    level: str, shown: dict[str, int]
) -> None:
    configure_logging(level)
    assert {name: logging.getLogger(name).getEffectiveLevel() for name in shown} == shown


@pytest.mark.usefixtures("_logging_as_before")
def test_a_line_is_plain_and_goes_to_stderr(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info")
    logging.getLogger("infinity_emb").info("ready %d", 1)
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.endswith(" INFO infinity_emb: ready 1\n")


def test_the_lines_about_a_model_say_everything_that_was_detected_and_why() -> None:
    assert describe_model("org/name", INFO, max_batch_tokens=16_384) == [
        "model 'org/name': embedder (embed), from hub, revision 1234abcd",
        "  engine torch (optimum is no faster), device cuda:0",
        "  dtype bfloat16 (the device is made for it)",
        "  batches packed (BertModel takes the interface), up to 16384 tokens",
        "  dense, dimension 384, pooling mean; texts truncated to 256 tokens (right); prompts: query",
    ]


def test_the_lines_about_a_scoring_model_name_its_activation_and_labels() -> None:
    reranker = replace(INFO, kind=ModelKind.reranker, outputs=(), activation="sigmoid", max_tokens=None)
    lines = describe_model("org/name", reranker, max_batch_tokens=512)
    assert lines[4] == "  scores, activation sigmoid; texts of any length; prompts: query"
    classifier = replace(
        reranker, kind=ModelKind.classifier, labels=tuple("abcdefghij"), activation="softmax"
    )
    lines = describe_model("org/name", classifier, max_batch_tokens=512)
    assert lines[4].startswith("  10 labels (a, b, c, d, e, f, g, h, …), activation softmax;")


@pytest.mark.usefixtures("_logging_as_before")
def test_lines_of_json_have_the_id_of_the_request_that_they_are_about(
    capsys: pytest.CaptureFixture[str],
) -> None:
    configure_logging("info", "json")
    logger = logging.getLogger("infinity_emb")
    logger.info("two %s", 'lines\nand a "quote"')
    set_request(RequestContext(request_id="r-17"))
    try:
        raise ValueError("wrong")
    except ValueError:
        logger.exception("failed")
    finally:
        set_request(DEFAULT_REQUEST)

    first, second = map(json.loads, capsys.readouterr().err.splitlines())
    assert first.pop("time").endswith("+00:00")
    assert first == {"level": "info", "logger": "infinity_emb", "message": 'two lines\nand a "quote"'}
    assert (second["level"], second["request_id"]) == ("error", "r-17")
    assert second["exception"].endswith("ValueError: wrong\n")
