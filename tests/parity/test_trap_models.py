"""Folders with one thing wrong: refused by name, or served as sentence-transformers serves them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from infinity_emb.errors import StartupError
from tests.parity import references
from tests.parity.conftest import Serve
from tests.parity.references import copied, load_embedder, load_reranker
from tests.parity.serving import LONG, assert_same_scores, assert_same_vectors
from tests.support.small_models.changes import drop_weights, prefix_weights, rewrite_json
from tests.support.small_models.traps import BASES, TRAPS

pytestmark = pytest.mark.model

EMBEDDERS = ("bert", "roberta", "bare bert", "projected", "pieces", "bytes", "llama")
REFUSED = [name for name, trap in TRAPS.items() if trap.refused]
# Of the prefixed ones, the reference is the folder before the change; the rest are compared elsewhere.
SERVED = [
    name
    for name, trap in TRAPS.items()
    if not trap.refused
    and trap.base in (*EMBEDDERS, "reranker")
    and (trap.has_reference or "names begin" in name or "prefix" in name)
]
ENGINES = ["torch", "optimum", "openvino", "ctranslate2"]
# Faults of each kind; the other engines load a model as torch does.
REFUSED_BY_ALL = [
    "a layer is missing",
    "NaN in all weights",
    "zero in all weights",
    "no vocabulary, BERT",
    "a tokenizer of another class",
    "the pooling folder is missing",
    "weights are a pointer",
]

GetBase = Callable[[str], Path]


@pytest.fixture(scope="module")
def get_base(tmp_path_factory: pytest.TempPathFactory) -> GetBase:
    made: dict[str, Path] = {}

    def get(name: str) -> Path:
        if name not in made:
            made[name] = BASES[name](tmp_path_factory.mktemp("base"))
        return made[name]

    return get


@pytest.mark.parametrize("name", REFUSED)
def test_what_can_only_be_wrong_is_refused_by_name(
    name: str, get_base: GetBase, serve: Serve, tmp_path: Path
) -> None:
    trap = TRAPS[name]
    folder = copied(get_base(trap.base), tmp_path / "model")
    trap.change(folder)
    with pytest.raises(StartupError, match=trap.refused) as caught:
        serve(folder)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("engine", ENGINES[1:])
@pytest.mark.parametrize("name", REFUSED_BY_ALL)
def test_every_engine_refuses_it(
    name: str, engine: str, get_base: GetBase, serve: Serve, tmp_path: Path
) -> None:
    trap = TRAPS[name]
    folder = copied(get_base(trap.base), tmp_path / "model")
    trap.change(folder)
    with pytest.raises(StartupError, match=trap.refused) as caught:
        serve(folder, engine=engine)
    assert str(folder) in str(caught.value)


@pytest.mark.parametrize("name", SERVED)
def test_what_is_served_equals_the_reference(
    name: str, get_base: GetBase, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    trap = TRAPS[name]
    folder = copied(get_base(trap.base), tmp_path / "model")
    trap.change(folder)
    reference = folder if trap.has_reference else get_base(trap.base)
    inputs = [*texts[:8], LONG, "The quick brown fox, while thirteen wizards debate."]
    served = serve(folder)
    if trap.base == "reranker":
        expected = references.scores(load_reranker(reference), texts[0], inputs)
        assert_same_scores(served.scores(texts[0], inputs), expected)
    else:
        assert_same_vectors(served.embed(inputs), references.vectors(load_embedder(reference).encode, inputs))


@pytest.mark.parametrize("engine", ENGINES[1:])
def test_every_engine_removes_a_prefix(
    engine: str, get_base: GetBase, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    folder = copied(get_base("bert"), tmp_path / "model")
    prefix_weights(folder, "module.")
    expected = references.vectors(load_embedder(get_base("bert")).encode, texts[:8])
    assert_same_vectors(serve(folder, engine=engine).embed(texts[:8]), expected)


def test_missing_weights_are_served_on_request(
    get_base: GetBase, serve: Serve, texts: list[str], tmp_path: Path
) -> None:
    folder = copied(get_base("bert"), tmp_path / "model")
    drop_weights(folder, r"layer\.1\.")
    served = serve(folder, allow_missing_weights=True)
    assert served.embed(texts[:4]).shape[0] == 4


@pytest.mark.parametrize(
    ("flags", "is_warned"),
    [
        ({"add_eos_token": True}, True),
        ({"add_eos_token": True, "add_bos_token": False}, True),
        ({"add_eos_token": False}, False),
        ({"add_eos_token": None}, False),
    ],
    ids=str,
)
def test_an_end_token_that_is_lost_is_lost_in_sentence_transformers_too(
    flags: dict[str, bool | None],
    is_warned: bool,
    get_base: GetBase,
    serve: Serve,
    texts: list[str],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """transformers reads the template of tokenizer.json and not the flags, so a warning is all there is."""
    path = copied(get_base("llama"), tmp_path / "model")
    TRAPS["the end token is lost"].change(path)
    rewrite_json(path / "tokenizer_config.json", **flags)
    served, reference = serve(path), load_embedder(path)
    ids = [token.id for token in served.model.vocabulary.tokenize(texts[0])]
    assert ids == reference.tokenizer(texts[0])["input_ids"]
    assert reference.tokenizer.eos_token_id not in ids
    assert_same_vectors(served.embed(texts[:3]), references.vectors(reference.encode, texts[:3]))
    assert ("says add_eos_token" in caplog.text) is is_warned
