"""Static models against sentence-transformers, which reads the same folders with torch."""

from __future__ import annotations

import asyncio
import functools
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from safetensors.torch import load_file, save_file
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, Normalize
from sentence_transformers.sentence_transformer.modules import StaticEmbedding
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import BertPreTokenizer
from tokenizers.processors import TemplateProcessing

from infinity_emb import AsyncEmbeddingEngine, EngineArgs
from infinity_emb.backends.static.backend import StaticBackend, mean_rows
from infinity_emb.backends.static.load import is_static
from infinity_emb.backends.static.table import read_table
from infinity_emb.engine.results import Embeddings, EmbedOptions
from infinity_emb.errors import BackendFailed, InputTooLong, StartupError
from infinity_emb.types import ModelKind

pytestmark = pytest.mark.model

Float32Array = npt.NDArray[np.float32]
NUM_WORDS = 300
DIMENSION = 24
TOLERANCE = 2e-5
# A long text, texts without a token, an unknown word, and many short ones of many lengths.
TEXTS = [
    " ".join(f"word{number % NUM_WORDS}" for number in range(20_000)),
    *("", "   ", "unheard-of word1", "word5"),
    *(" ".join(f"word{(length * 7 + at) % NUM_WORDS}" for at in range(length)) for length in range(1, 60)),
]


def make_tokenizer(*, max_length: int | None = None, side: str = "right") -> Tokenizer:
    """One token a word; with special tokens, which a static model is not to add."""
    vocabulary = {"[UNK]": 0, "[CLS]": 1, "[SEP]": 2}
    vocabulary |= {f"word{number}": number + 3 for number in range(NUM_WORDS)}
    tokenizer = Tokenizer(WordLevel(vocabulary, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = BertPreTokenizer()
    tokenizer.post_processor = TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 1), ("[SEP]", 2)]
    )
    if max_length is not None:
        tokenizer.enable_truncation(max_length, direction=side)
    return tokenizer


def make_table(num_rows: int = NUM_WORDS + 3) -> torch.Tensor:
    return torch.randn(num_rows, DIMENSION, generator=torch.Generator().manual_seed(0))


def save_model(folder: Path, *, tokenizer: Tokenizer | None = None, **options: Any) -> Path:
    """A folder as sentence-transformers saves it; `normalize` and all that SentenceTransformer takes."""
    modules: list[torch.nn.Module] = [StaticEmbedding(tokenizer or make_tokenizer(), make_table())]
    if options.pop("normalize", False):
        modules.append(Normalize())
    SentenceTransformer(modules=modules, device="cpu", **options).save_pretrained(str(folder))
    return folder


def save_model2vec(folder: Path, tensors: dict[str, torch.Tensor], *, normalize: bool = False) -> Path:
    """A folder as model2vec 0.10 saves it."""
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / "model.safetensors")
    make_tokenizer(max_length=512).save(str(folder / "tokenizer.json"))
    modules = [{"idx": 0, "name": "0", "path": ".", "type": "sentence_transformers.models.StaticEmbedding"}]
    if normalize:
        modules.append(
            {"idx": 1, "name": "1", "path": "1_Normalize", "type": "sentence_transformers.models.Normalize"}
        )
    (folder / "modules.json").write_text(json.dumps(modules))
    config = {"model_type": "model2vec", "architectures": ["StaticModel"], "normalize": normalize}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


_DEFAULTS = EmbedOptions()


def load(folder: Path, **options: Any) -> AsyncEmbeddingEngine:
    engine = AsyncEmbeddingEngine.from_args(EngineArgs(model_name_or_path=str(folder), **options))
    assert engine.slot.model is not None
    assert isinstance(engine.slot.model.replicas[0], StaticBackend)
    return engine


def embed(folder: Path, texts: list[str], options: EmbedOptions = _DEFAULTS, **args: Any) -> Float32Array:
    async def run() -> Embeddings:
        async with load(folder, **args) as engine:
            return await engine.encode(texts, options)

    dense = asyncio.run(run()).dense
    assert dense is not None
    return np.array(dense)


def reference(folder: Path, texts: list[str] = TEXTS, **options: Any) -> Float32Array:
    model = SentenceTransformer(str(folder), device="cpu").float()
    rows: Float32Array = model.encode(texts, show_progress_bar=False, **options)
    return rows


def assert_same(rows: Float32Array, expected: Float32Array) -> None:
    assert rows.shape == expected.shape
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, expected, rtol=0, atol=TOLERANCE)


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_model(tmp_path_factory.mktemp("plain"))


# Vectors


@pytest.mark.parametrize("normalize", [False, True])
def test_vectors_are_those_of_sentence_transformers(tmp_path: Path, normalize: bool) -> None:
    folder = save_model(tmp_path, normalize=normalize)
    rows = embed(folder, TEXTS)
    assert_same(rows, reference(folder))
    assert not rows[TEXTS.index("")].any()


def test_a_prompt_goes_before_the_text(tmp_path: Path) -> None:
    folder = save_model(
        tmp_path, prompts={"query": "word7 word8 ", "other": "word9 "}, default_prompt_name="other"
    )
    assert_same(embed(folder, TEXTS), reference(folder))
    assert_same(
        embed(folder, TEXTS, EmbedOptions(input_type="query")), reference(folder, prompt_name="query")
    )
    assert_same(embed(folder, TEXTS, EmbedOptions(prompt="word2 ")), reference(folder, prompt="word2 "))


@pytest.mark.parametrize("wanted", [5, 1000])
def test_truncate_dim_keeps_the_first_values_as_they_are(tmp_path: Path, wanted: int) -> None:
    folder = save_model(tmp_path, normalize=True, truncate_dim=wanted)
    assert_same(embed(folder, TEXTS), reference(folder))
    assert load(folder).info.embedding_dimension == min(wanted, DIMENSION)


@pytest.mark.parametrize("side", ["right", "left"])
def test_the_tokenizers_own_limit_cuts_without_room_for_special_tokens(tmp_path: Path, side: str) -> None:
    folder = save_model(tmp_path, tokenizer=make_tokenizer(max_length=11, side=side))
    assert_same(embed(folder, TEXTS), reference(folder))
    info = load(folder).info
    assert (info.max_tokens, info.truncation_side) == (11, side)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_table_of_another_number_format_is_computed_in_float32(tmp_path: Path, dtype: torch.dtype) -> None:
    folder = save_model(tmp_path)
    path = folder / "model.safetensors"
    path = path if path.exists() else folder / "0_StaticEmbedding" / "model.safetensors"
    save_file({name: tensor.to(dtype) for name, tensor in load_file(path).items()}, path)
    assert_same(embed(folder, TEXTS), reference(folder))


MAPPING = torch.arange(NUM_WORDS + 3) * 7 % 40
WEIGHTS = torch.rand(NUM_WORDS + 3, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize(
    "tensors",
    [
        {"embeddings": make_table()},
        {"embeddings": make_table(40), "mapping": MAPPING},
        {"embeddings": make_table(), "weights": WEIGHTS},
        {"embeddings": make_table(40), "mapping": MAPPING, "weights": WEIGHTS},
        {"embeddings": make_table(40).half(), "mapping": MAPPING.int(), "weights": WEIGHTS.double()},
        {"embeddings": make_table(40).mul(40).char(), "mapping": MAPPING, "weights": WEIGHTS.half()},
    ],
)
@pytest.mark.parametrize("normalize", [False, True])
def test_what_model2vec_saves_is_folded_into_one_table(
    tmp_path: Path, tensors: dict[str, torch.Tensor], normalize: bool
) -> None:
    folder = save_model2vec(tmp_path, tensors, normalize=normalize)
    assert_same(embed(folder, TEXTS), reference(folder))


def test_a_table_of_whole_numbers_is_computed_in_float32(tmp_path: Path) -> None:
    table = make_table().mul(40).char()
    as_float = save_model2vec(tmp_path / "float", {"embeddings": table.float()})
    folder = save_model2vec(tmp_path / "whole", {"embeddings": table})
    assert_same(embed(folder, TEXTS), reference(as_float))


@pytest.mark.parametrize("normalize", [False, True])
def test_a_model2vec_folder_without_modules_is_read_like_one_with_them(
    tmp_path: Path, normalize: bool
) -> None:
    folder = save_model2vec(tmp_path, {"embeddings": make_table()}, normalize=normalize)
    expected = reference(folder)
    (folder / "modules.json").unlink()
    assert_same(embed(folder, TEXTS), expected)


def test_many_requests_at_once_get_each_its_own_vectors(plain: Path) -> None:
    expected = reference(plain)

    async def run() -> list[Any]:
        async with load(plain, tokenizer_threads=4) as engine:
            starts = [number % 40 for number in range(200)]
            answers = await asyncio.gather(
                *(engine.embed(TEXTS[start : start + 1 + start % 9]) for start in starts)
            )
            return list(zip(starts, answers, strict=True))

    for start, (vectors, _) in asyncio.run(run()):
        assert_same(np.array(vectors), expected[start : start + len(vectors)])


def test_a_vector_does_not_depend_on_its_company(plain: Path) -> None:
    together = embed(plain, TEXTS)
    alone = np.concatenate([embed(plain, [text]) for text in TEXTS[:10]])
    np.testing.assert_array_equal(together[:10], alone)


# The file


def lengthen_header(path: Path) -> None:
    """By one space, so that the numbers behind it begin at an odd byte."""
    content = path.read_bytes()
    size = int.from_bytes(content[:8], "little")
    path.write_bytes((size + 1).to_bytes(8, "little") + content[8 : 8 + size] + b" " + content[8 + size :])


def test_a_float32_table_stays_in_its_file_unless_it_lies_askew(tmp_path: Path) -> None:
    folder = save_model2vec(tmp_path, {"embeddings": make_table()})
    path = folder / "model.safetensors"
    expected = reference(folder)
    assert not read_table(path).flags.writeable
    lengthen_header(path)
    assert read_table(path).flags.aligned
    assert_same(embed(folder, TEXTS), expected)


# Lengths


def test_a_text_over_the_limit_is_refused_where_nothing_may_be_cut(tmp_path: Path) -> None:
    folder = save_model(tmp_path, tokenizer=make_tokenizer(max_length=11))
    with pytest.raises(InputTooLong, match=r"input 1 has .* tokens, the limit is 11"):
        embed(folder, ["word1", "word1 " * 12], EmbedOptions(truncation="off"))


def test_a_long_text_in_pieces_has_the_mean_of_all_its_tokens(tmp_path: Path) -> None:
    folder = save_model(tmp_path / "cut", tokenizer=make_tokenizer(max_length=16))
    whole = save_model(tmp_path / "whole")
    texts = ["word1 word2", " ".join(f"word{number}" for number in range(95))]
    assert_same(embed(folder, texts, EmbedOptions(chunking=True)), reference(whole, texts))


def test_passages_of_one_text_have_vectors_of_their_own(plain: Path) -> None:
    passages = ["word1 word2 word3.", "unheard-of", "word4 " * 40]

    async def run() -> Embeddings:
        async with load(plain) as engine:
            return await engine.encode_passages(passages)

    answer = asyncio.run(run())
    assert answer.dense is not None
    assert_same(np.array(answer.dense), reference(plain, passages))


def test_a_long_bag_is_gathered_in_parts_and_an_empty_one_is_zero() -> None:
    table = make_table().numpy()
    bags = [np.arange(length, dtype=np.int32) % len(table) for length in (10_000, 0, 3)]
    offsets = torch.tensor([0, 10_000, 10_000])
    expected = torch.nn.functional.embedding_bag(
        torch.from_numpy(np.concatenate(bags)).long(), torch.from_numpy(table), offsets, mode="mean"
    )
    assert_same(mean_rows(table, bags), expected.numpy())


# What is served


def test_what_is_detected_is_shown(tmp_path: Path) -> None:
    info = load(save_model(tmp_path, similarity_fn_name="dot")).info
    assert (info.kind, info.capabilities, info.outputs) == (
        ModelKind.embedder,
        ("embed", "rerank"),
        ("dense",),
    )
    assert (info.attention, info.pooling, info.similarity) == ("none", "mean", "dot")
    assert (info.max_tokens, info.prompts) == (None, {"query": "", "document": ""})


def test_documents_are_ranked_by_the_cosine(plain: Path) -> None:
    texts = ["word1 word2", "word9 word8", "word2 word1 word3"]
    query, *documents = reference(plain, texts, normalize_embeddings=True)

    async def run() -> Any:
        async with load(plain) as engine:
            return (await engine.rerank(query=texts[0], docs=texts[1:]))[0]

    scores = {each.index: each.relevance_score for each in asyncio.run(run())}
    assert scores == pytest.approx(dict(enumerate(documents @ query)), abs=TOLERANCE)


def test_serving_a_static_model_imports_no_compute_library(plain: Path) -> None:
    script = """
import asyncio, sys
from infinity_emb import AsyncEmbeddingEngine, EngineArgs

async def run():
    args = EngineArgs(model_name_or_path=sys.argv[1])
    async with AsyncEmbeddingEngine.from_args(args) as engine:
        vectors, _ = await engine.embed(["word1 word2", ""])
        await engine.rerank(query="word1", docs=["word2", "word3"])
    print(len(vectors[0]), *({"torch", "transformers", "sentence_transformers"} & sys.modules.keys()))

asyncio.run(run())
"""
    command = [sys.executable, "-c", script, str(plain)]
    output = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert output.split() == [str(DIMENSION)]


TYPE_PATHS = [
    "sentence_transformers.models.{0}",
    "sentence_transformers.models.{0}.{0}",
    "sentence_transformers.sentence_transformer.modules.{0}",
]


def rewrite_json(path: Path, change: Any) -> None:
    value = json.loads(path.read_text())
    path.write_text(json.dumps(change(value) or value))


def set_types(pattern: str) -> Any:
    return lambda modules: [
        module | {"type": pattern.format(module["type"].rpartition(".")[2])} for module in modules
    ]


@pytest.mark.parametrize("pattern", TYPE_PATHS)
def test_a_static_model_is_known_by_the_names_of_every_version(tmp_path: Path, pattern: str) -> None:
    folder = save_model(tmp_path, normalize=True)
    rewrite_json(folder / "modules.json", set_types(pattern))
    assert is_static(folder)


def save_with_dense(folder: Path) -> None:
    modules: list[torch.nn.Module] = [StaticEmbedding(make_tokenizer(), make_table()), Dense(DIMENSION, 8)]
    SentenceTransformer(modules=modules, device="cpu").save_pretrained(str(folder))


def save_with(folder: Path, file: str, change: Any) -> None:
    rewrite_json(save_model(folder, normalize=True) / file, change)


def save_pickle(folder: Path) -> None:
    for path in save_model(folder).rglob("model.safetensors"):
        path.rename(path.with_name("pytorch_model.bin"))


def save_with_normalize_of_tokens(folder: Path) -> None:
    save_model(folder, normalize=True)
    (folder / "1_Normalize").mkdir(exist_ok=True)
    (folder / "1_Normalize" / "config.json").write_text('{"module_input_name": "token_embeddings"}')


@pytest.mark.parametrize(
    "save",
    [
        save_with_dense,
        save_pickle,
        save_with_normalize_of_tokens,
        functools.partial(save_with, file="modules.json", change=set_types("own_code.{0}")),
        functools.partial(save_with, file="modules.json", change=lambda modules: modules[1:]),
        functools.partial(
            save_with, file="modules.json", change=lambda modules: modules[0].update(path="../elsewhere")
        ),
        functools.partial(
            save_with, file="modules.json", change=lambda modules: modules[0].update(kwargs=["task"])
        ),
        functools.partial(
            save_with,
            file="config_sentence_transformers.json",
            change=lambda config: config.update(model_type="SparseEncoder"),
        ),
    ],
)
def test_what_needs_more_than_a_table_is_left_to_torch(tmp_path: Path, save: Any) -> None:
    save(tmp_path)
    assert not is_static(tmp_path)


def test_a_folder_of_transformers_is_not_static(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "bert", "architectures": ["BertModel"]}')
    assert not is_static(tmp_path)


@pytest.mark.parametrize("options", [{"device": "cuda"}, {"dtype": "float16"}])
def test_options_that_change_nothing_are_said_in_one_line(
    plain: Path, options: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    load(plain, **options)
    (message,) = caplog.messages
    assert message.endswith(f"--{next(iter(options))} {next(iter(options.values()))} has no effect")


def test_usual_options_are_not_talked_about(plain: Path, caplog: pytest.LogCaptureFixture) -> None:
    load(plain, device="cpu", dtype="float32", pooling_method="mean")
    assert not caplog.messages


# What is refused


def save_broken(folder: Path, **tensors: torch.Tensor) -> Path:
    return save_model2vec(folder, {"embeddings": make_table(40)} | tensors)


@pytest.mark.parametrize(
    ("tensors", "words"),
    [
        ({"embeddings": torch.zeros(40)}, r"a table of shape \(40,\)"),
        ({"embeddings": torch.zeros(40, 2, 2)}, r"a table of shape \(40, 2, 2\)"),
        ({"embeddings": torch.zeros(0, 8)}, r"a table of shape \(0, 8\)"),
        ({"mapping": MAPPING + 1}, "maps .* tokens to rows that it does not have, such as 40 of 40"),
        ({"mapping": MAPPING - 1}, "such as -1 of 40"),
        ({"mapping": MAPPING.float()}, "a mapping of shape .* and dtype float32"),
        ({"mapping": MAPPING[:, None]}, r"a mapping of shape \(303, 1\)"),
        ({"mapping": MAPPING, "weights": torch.ones(40)}, r"weights of shape \(40,\) for 303 tokens"),
    ],
)
def test_tensors_that_make_no_table_are_refused(
    tmp_path: Path, tensors: dict[str, torch.Tensor], words: str
) -> None:
    with pytest.raises(StartupError, match=rf"model\.safetensors .*{words}"):
        load(save_broken(tmp_path, **tensors))


def test_a_file_without_a_table_is_refused_with_what_it_has(tmp_path: Path) -> None:
    folder = save_model2vec(tmp_path, {"other": make_table()})
    with pytest.raises(StartupError, match=r"model\.safetensors has neither .* it has \['other'\]"):
        load(folder)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"short",
        b"\xff" * 64,
        b"\x02" + b"\0" * 7 + b"[]",
        b"\x10" + b"\0" * 7 + b'{"embeddings":1}',
        (72).to_bytes(8, "little")
        + b'{"embeddings":{"dtype":"F32","shape":[40,8],"data_offsets":[0,1280]}}   ',
        (70).to_bytes(8, "little")
        + b'{"embeddings":{"dtype":"F8","shape":[2,2],"data_offsets":[0,4]}}      '
        + b"\0" * 4,
        (66).to_bytes(8, "little")
        + b'{"embeddings":{"dtype":"F32","shape":[1,2],"data_offsets":[0,4]}} '
        + b"\0" * 8,
    ],
)
def test_a_broken_weights_file_is_one_readable_error(tmp_path: Path, content: bytes) -> None:
    folder = save_broken(tmp_path)
    (folder / "model.safetensors").write_bytes(content)
    with pytest.raises(StartupError, match=r"model\.safetensors cannot be read as a safetensors file"):
        load(folder)


@pytest.mark.parametrize("name", ["model.safetensors", "tokenizer.json"])
def test_a_missing_file_is_named(tmp_path: Path, name: str) -> None:
    folder = save_broken(tmp_path)
    (folder / name).unlink()
    with pytest.raises(StartupError, match=name.replace(".", r"\.")):
        load(folder)


def test_a_broken_tokenizer_is_named(tmp_path: Path) -> None:
    folder = save_broken(tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(StartupError, match=r"tokenizer\.json is not a tokenizer file"):
        load(folder)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"default_prompt_name": "absent"}, "names 'absent' as default prompt"),
        ({"truncate_dim": 0}, "truncate_dim=0"),
        ({"truncate_dim": "8"}, 'truncate_dim="8"'),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(tmp_path: Path, config: dict[str, Any], words: str) -> None:
    folder = save_broken(tmp_path)
    (folder / "config_sentence_transformers.json").write_text(json.dumps(config))
    with pytest.raises(StartupError, match=rf"config_sentence_transformers\.json .*{words}"):
        load(folder)


def test_another_pooling_is_refused(plain: Path) -> None:
    with pytest.raises(StartupError, match="--pooling-method cls cannot be used"):
        load(plain, pooling_method="cls")


def test_a_token_without_a_row_fails_its_own_text_alone(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = save_model2vec(tmp_path, {"embeddings": make_table(100)})
    assert_same(embed(folder, ["word1 word2"]), reference(folder, ["word1 word2"]))
    with pytest.raises(BackendFailed, match="input 1 could not be computed: IndexError"):
        embed(folder, ["word1", "word200"])
    assert "100 rows: it may be another model's" in caplog.text
