from __future__ import annotations

import csv
import datetime
import gzip
import io
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infinity_emb.errors import StartupError
from tests.support.bulk_jobs import (
    list_lengths,
    make_rows,
    read_bad_rows,
    read_rows,
    run_bulk,
    write_lines,
    write_table,
)

ROWS = make_rows(300)
MIXED = b'{"text": "a", "x": 1}\n{"text": "b", "x": "y"}\n'
LENGTHS = [len(row["text"]) for row in ROWS]


def write_input(folder: Path, name: str) -> Path:
    path = folder / name
    if name.endswith((".parquet", ".arrow", ".arrows")):
        return write_table(path, pa.Table.from_pylist(ROWS))
    if name.endswith((".csv", ".tsv")):
        with path.open("w", newline="") as file:
            writer = csv.DictWriter(file, ["id", "text"], delimiter="," if name.endswith(".csv") else "\t")
            writer.writeheader()
            writer.writerows(ROWS)
        return path
    if name.endswith(".txt"):
        path.write_text("\n".join(row["text"] for row in ROWS))
        return path
    write_lines(folder / "rows.jsonl", ROWS)
    if name.endswith(".gz"):
        path.write_bytes(gzip.compress((folder / "rows.jsonl").read_bytes()))
    return path


@pytest.mark.parametrize("name", ["in.parquet", "in.arrow", "in.arrows", "in.csv", "in.tsv", "in.txt",
                                  "rows.jsonl", "rows.jsonl.gz"])  # fmt: skip
@pytest.mark.parametrize("output_name", ["out.parquet", "out.jsonl", "out.npy"])
def test_every_input_becomes_every_output_in_the_order_of_the_input(
    tmp_path: Path, name: str, output_name: str
) -> None:
    source, output = write_input(tmp_path, name), tmp_path / output_name
    summary = run_bulk(source, output)
    rows = read_rows(output)
    assert summary.num_rows == len(ROWS)
    assert summary.num_bad_rows == 0
    assert list_lengths(rows) == LENGTHS
    if output_name != "out.npy":
        assert [row["text"] for row in rows] == [row["text"] for row in ROWS]
    if output_name != "out.npy" and name != "in.txt":
        assert [int(row["id"]) for row in rows] == [row["id"] for row in ROWS]
    assert {path.name for path in tmp_path.iterdir()} == {name, output_name} | (
        {"rows.jsonl"} if name[0] == "r" else set()
    )


def test_parquet_holds_a_list_of_fixed_size_in_the_dtype_of_the_vectors(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    for dtype, expected in [("float32", pa.float32()), ("float16", pa.float16()), ("ubinary", pa.uint8())]:
        output = tmp_path / f"{dtype}.parquet"
        run_bulk(source, output, model={"embedding_dtype": dtype})
        kind = pq.read_schema(output).field("embedding").type
        assert kind == pa.list_(expected, 2 if dtype == "ubinary" else 13)


def test_other_columns_keep_their_types(tmp_path: Path) -> None:
    now = datetime.datetime.fromisoformat("2026-01-02T03:04:05.123456")
    table = pa.table(
        {
            "text": pa.array(["a", "bb"]).dictionary_encode(),
            "nested": [{"x": [1, 2]}, None],
            "at": pa.array([now, None], pa.timestamp("ns")),
            "small": pa.array([1, 2], pa.int8()),
        }
    )
    source = write_table(tmp_path / "in.parquet", table)
    run_bulk(source, tmp_path / "out.parquet")
    run_bulk(source, tmp_path / "out.jsonl")
    assert pq.read_table(tmp_path / "out.parquet").drop_columns("embedding").equals(pq.read_table(source))
    assert read_rows(tmp_path / "out.jsonl")[0]["at"] == now.isoformat()


def test_json_lines_are_copied_as_they_stand(tmp_path: Path) -> None:
    """Numbers keep their digits, and members of different types stand in one column."""
    lines = [
        '{"text": "abc", "n": 1.10, "big": 123456789012345678901234567890}',
        '{"n": "x", "text": "ä"}',
        '{"text":""}',
    ]
    source = write_lines(tmp_path / "in.jsonl", lines)
    run_bulk(source, tmp_path / "out.jsonl")
    written = (tmp_path / "out.jsonl").read_text(encoding="utf-8").splitlines()
    assert [line.partition(',"embedding":')[0] + "}" for line in written] == lines
    assert list_lengths(read_rows(tmp_path / "out.jsonl")) == [3, 1, 0]


@pytest.mark.parametrize(("keep", "expected"), [(("id",), {"id", "embedding"}), (("none",), {"embedding"})])
@pytest.mark.parametrize("name", ["in.parquet", "in.csv", "rows.jsonl"])
@pytest.mark.parametrize("output_name", ["out.parquet", "out.jsonl"])
def test_only_chosen_columns_are_copied(
    tmp_path: Path, name: str, output_name: str, keep: tuple[str, ...], expected: set[str]
) -> None:
    run_bulk(write_input(tmp_path, name), tmp_path / output_name, keep_columns=keep)
    rows = read_rows(tmp_path / output_name)
    assert list_lengths(rows) == LENGTHS
    assert set(rows[0]) == expected


def test_shards_have_the_rows_that_were_asked_for(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    run_bulk(source, tmp_path / "out", rows_per_shard=120)
    assert [len(read_rows(path)) for path in sorted((tmp_path / "out").iterdir())] == [120, 120, 60]
    assert [row["id"] for row in read_rows(tmp_path / "out")] == list(range(300))


def test_a_number_of_rows_that_fills_the_last_shard_makes_no_empty_one(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", ROWS)
    run_bulk(source, f"{tmp_path}/out/", rows_per_shard=150, output_format="npy")
    assert [path.name for path in sorted((tmp_path / "out").iterdir())] == [
        "part-00000.npy",
        "part-00001.npy",
    ]


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl", "out.npy", "out/"])
def test_an_empty_input_becomes_an_empty_output(tmp_path: Path, name: str) -> None:
    source = write_lines(tmp_path / "in.jsonl", [])
    run_bulk(source, f"{tmp_path}/{name}")
    assert read_rows(tmp_path / name) == []
    if name == "out.npy":
        assert np.load(tmp_path / name).shape == (0, 13)


def test_a_glob_a_folder_and_a_list_name_several_files_in_order(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for number in range(3):
        write_lines(folder / f"{number}.jsonl", ROWS[100 * number : 100 * (number + 1)])
    (folder / "readme.md").write_text("not data")
    inputs: list[Any] = [f"{folder}/*.jsonl", folder, sorted(folder.glob("*.jsonl"))]
    for number, each in enumerate(inputs):
        output = tmp_path / f"{number}.jsonl"
        run_bulk(each, output)
        assert [row["id"] for row in read_rows(output)] == list(range(300))


def test_an_address_is_read_through_its_filesystem(tmp_path: Path) -> None:
    write_lines(tmp_path / "a.jsonl", ROWS[:10])
    write_lines(tmp_path / "b.jsonl", ROWS[10:20])
    run_bulk(f"{(tmp_path / 'a.jsonl').as_uri()}", tmp_path / "one.npy")
    run_bulk(f"{tmp_path.as_uri()}/*.jsonl", tmp_path / "all.npy")
    assert list_lengths(read_rows(tmp_path / "one.npy")) == LENGTHS[:10]
    assert list_lengths(read_rows(tmp_path / "all.npy")) == LENGTHS[:20]


def test_standard_input_is_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "".join(json.dumps(row) + "\n" for row in ROWS)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(text.encode())))
    run_bulk("-", tmp_path / "out.jsonl", input_format="jsonl")
    assert [row["id"] for row in read_rows(tmp_path / "out.jsonl")] == list(range(300))


def test_queries_and_documents_are_scored(tmp_path: Path) -> None:
    rows = [{"query": f"q{index % 3}", "text": "d" * (index + 1)} for index in range(50)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    run_bulk(source, tmp_path / "own.jsonl", task="rerank", faults="kind=reranker", raw_scores=True)
    run_bulk(
        source, tmp_path / "one.npy", task="rerank", faults="kind=reranker", query="one", raw_scores=True
    )
    assert [row["score"] for row in read_rows(tmp_path / "own.jsonl")] == list(range(1, 51))
    assert np.load(tmp_path / "one.npy").tolist() == list(range(1, 51))
    assert np.load(tmp_path / "one.npy").dtype == np.float32


def test_texts_are_classified(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"text": "abc"}])
    run_bulk(source, tmp_path / "out.parquet", task="classify", faults="kind=classifier", raw_scores=True)
    labels = [{"label": "characters", "score": 3.0}, {"label": "none", "score": 0.0}]
    assert read_rows(tmp_path / "out.parquet") == [{"text": "abc", "classification": labels}]


@pytest.mark.parametrize("name", ["out.parquet", "out.jsonl"])
def test_sparse_vectors_and_vectors_per_token_are_written(tmp_path: Path, name: str) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"text": "aab"}, {"text": "b"}])
    run_bulk(source, tmp_path / name, faults="kind=embedder", sparse=True)
    sparse = [row["sparse_embedding"] for row in read_rows(tmp_path / name)]
    assert sparse == [{"indices": [97, 98], "values": [2, 1]}, {"indices": [98], "values": [1]}]
    run_bulk(source, tmp_path / name, faults="kind=multivector", overwrite=True)
    vectors = [row["embedding"] for row in read_rows(tmp_path / name)]
    assert vectors == [[[97.0] * 13, [97.0] * 13, [98.0] * 13], [[98.0] * 13]]


def test_options_of_the_texts_reach_the_model(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [{"body": "abc"}])
    run_bulk(
        source, tmp_path / "out.jsonl", text_column="body", prompt="12: ", output_column="v", dimensions=2
    )
    [row] = read_rows(tmp_path / "out.jsonl")
    assert set(row) == {"body", "v"}
    assert len(row["v"]) == 2
    run_bulk(source, tmp_path / "out.jsonl", text_column="body", prompt="12: ", overwrite=True)
    assert list_lengths(read_rows(tmp_path / "out.jsonl")) == [7]


def test_types_of_columns_come_from_the_first_rows_and_columns_without_values_are_text(
    tmp_path: Path,
) -> None:
    rows = [
        {"text": "a", "n": 1, "empty": None, "list": []},
        {"text": "b", "n": 2.5},
        {"n": None, "text": "c"},
    ]
    run_bulk(write_lines(tmp_path / "in.jsonl", rows), tmp_path / "out.parquet")
    schema = pq.read_schema(tmp_path / "out.parquet")
    assert (schema.field("n").type, schema.field("empty").type) == (pa.float64(), pa.string())
    assert [row["n"] for row in read_rows(tmp_path / "out.parquet")] == [1, 2.5, None]
    assert read_bad_rows(tmp_path / "out.parquet") == []


def case(message: str, name: str, content: Any, output: str = "out.parquet", **options: Any) -> Any:
    return pytest.param(message, name, content, output, options, id=message)


@pytest.mark.parametrize(
    ("message", "name", "content", "output", "options"),
    [
        case("no input file matches", "*.jsonl", None),
        case("cannot be read", "missing.jsonl", None),
        case("cannot be read", "nope://bucket/x.jsonl", None),
        case("does not tell its format; set --input-format", "in.bin", b"x"),
        case("it has 'txt'.*--text-column; did you mean 'txt'", "in.jsonl", b'{"txt": 1}\n'),
        case("has no column 'text'", "in.csv", b"a,b\n1,2\n"),
        case("has no header: the file is empty", "in.csv", b""),
        case("has a name twice", "in.csv", b"text,text\n"),
        case("is int64, not text", "in.parquet", pa.table({"text": [1]})),
        case("has no column 'x'.*--keep-columns", "in.jsonl", b'{"text": "a"}\n', keep_columns=("x",)),
        case("has a column 'embedding' already", "in.parquet", pa.table({"text": ["a"], "embedding": [1]})),
        case("has a column 'embedding' already", "in.jsonl", b'{"text": "a", "embedding": 1}\n'),
        case("values of different types.*--keep-columns", "in.jsonl", MIXED),
        case("is not a Parquet file", "in.parquet", b"no parquet"),
        case("is not a Arrow file", "in.arrow", b"ARROW1 but not really"),
        case("no column 'query'", "in.csv", b"text\na\n", task="rerank", faults="kind=reranker"),
        case("does not match the name", "in.txt", b"a\n", output_format="npy"),
        case("--rows-per-shard needs a folder", "in.txt", b"a\n", rows_per_shard=5),
        case("is an address", "in.txt", b"a\n", "s3://bucket/out.parquet"),
        case("is also an input", "in.jsonl", b'{"text": "a"}\n', "in.jsonl"),
        case("npy file holds one vector", "in.txt", b"a\n", "out.npy", sparse=True, faults="kind=sparse"),
        case("Select between 1 and 13", "in.txt", b"a\n", dimensions=99),
        case("does not support 'rerank'", "in.txt", b"a\n", task="rerank", query="x"),
    ],
)  # fmt: skip
def test_a_job_that_cannot_run_is_refused_before_any_row(
    tmp_path: Path, message: str, name: str, content: Any, output: str, options: dict[str, Any]
) -> None:
    source = name if "://" in name else tmp_path / name
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        write_table(tmp_path / name, content)
    before = set(tmp_path.iterdir())
    with pytest.raises(StartupError, match=message):
        run_bulk(source, output if "://" in output else tmp_path / output, **options)
    assert set(tmp_path.iterdir()) == before


def test_files_of_other_columns_or_formats_are_refused(tmp_path: Path) -> None:
    one = write_table(tmp_path / "a.parquet", pa.table({"text": ["a"], "x": [1]}))
    two = write_table(tmp_path / "b.parquet", pa.table({"text": ["a"], "x": ["1"]}))
    three = write_lines(tmp_path / "c.jsonl", [{"text": "a"}])
    with pytest.raises(
        StartupError, match=r"b\.parquet has other columns than .*x: string in place of .*x: int64"
    ):
        run_bulk([one, two], tmp_path / "out.parquet")
    with pytest.raises(StartupError, match=r"several formats \(jsonl, parquet\)"):
        run_bulk([one, three], tmp_path / "out.parquet")
    with pytest.raises(StartupError, match="give it alone"):
        run_bulk([one, "-"], tmp_path / "out.parquet")
    run_bulk([one, two], tmp_path / "out.parquet", keep_columns=("text",))
    assert len(read_rows(tmp_path / "out.parquet")) == 2
