from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infinity_emb.bulk import line_stream
from tests.support.bulk_jobs import (
    list_lengths,
    read_bad_rows,
    read_rows,
    run_bulk,
    write_lines,
    write_table,
)

GOOD = '{"text": "good"}'


@pytest.mark.parametrize("output_name", ["out.jsonl", "out.parquet", "out.npy"])
@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": ', "not valid JSON"),
        ('{"text": NaN}', "not valid JSON"),
        ('"text"', "a JSON str, not an object"),
        ("[1]", "a JSON list, not an object"),
        ("{}", "column 'text' is missing or null"),
        ('{"text": null}', "column 'text' is missing or null"),
        ('{"text": 3}', "column 'text' is int, not text"),
        ('{"text": ["a"]}', "column 'text' is list, not text"),
        (r'{"text": "\ud800"}', "not valid JSON"),
        ("\0\1\2", "not valid JSON"),
    ],
)
def test_a_bad_line_is_left_out_and_the_others_are_computed(
    tmp_path: Path, line: str, reason: str, output_name: str
) -> None:
    source = write_lines(tmp_path / "in.jsonl", [GOOD, "", line, GOOD])
    summary = run_bulk(source, tmp_path / output_name)
    assert list_lengths(read_rows(tmp_path / output_name)) == [4, 4]
    [bad] = read_bad_rows(tmp_path / output_name)
    assert summary.num_bad_rows == 1
    assert reason in bad["reason"]
    assert (bad["row"], bad["line"], bad["file"], bad["content"]) == (1, 3, str(source), line)


def test_the_reason_of_a_row_whose_query_fails_names_the_query(tmp_path: Path) -> None:
    rows = [
        {"query": query, "text": text} for query, text in [("q", "good"), ("poison", "b"), ("q", "poison")]
    ]
    run_bulk(
        write_lines(tmp_path / "in.jsonl", rows),
        tmp_path / "out.jsonl",
        task="rerank",
        faults="kind=embedder&fail_on=poison",
    )
    query, text = (row["reason"] for row in read_bad_rows(tmp_path / "out.jsonl"))
    assert query.startswith("query could not be computed")
    assert text.startswith("could not be computed")


def test_bytes_that_are_no_utf8_are_bad_rows_in_every_format(tmp_path: Path) -> None:
    broken = b"a\xff"
    (tmp_path / "in.jsonl").write_bytes(b'{"text": "%b"}\n{"text": "good"}\n' % broken)
    (tmp_path / "in.txt").write_bytes(broken + b"\ngood\n")
    (tmp_path / "in.csv").write_bytes(b"text,other\n%b,x\ngood,y\ngood,%b\n" % (broken, broken))
    texts = pa.array([broken, b"good"]).view(pa.string())
    write_table(tmp_path / "in.parquet", pa.table({"text": texts}))
    for name, num_bad in [("in.jsonl", 1), ("in.txt", 1), ("in.csv", 2), ("in.parquet", 1)]:
        output = tmp_path / f"{name}.npy"
        run_bulk(tmp_path / name, output)
        assert list_lengths(read_rows(output)) == [4]
        assert len(read_bad_rows(output)) == num_bad


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        ("a", "the row has 1 fields, the header has 2"),
        ("a,b,c", "the row has 3 fields, the header has 2"),
        ('"a"b,c', "not valid CSV"),
        ('"never closed,x', "not valid CSV"),
    ],
)
def test_a_bad_record_of_a_csv_file_is_left_out(tmp_path: Path, row: str, reason: str) -> None:
    source = tmp_path / "in.csv"
    source.write_text(f'text,other\ngood,x\n"go\nod",x\n{row}\n')
    run_bulk(source, tmp_path / "out.jsonl")
    assert [row["text"] for row in read_rows(tmp_path / "out.jsonl")] == ["good", "go\nod"]
    [bad] = read_bad_rows(tmp_path / "out.jsonl")
    assert reason in bad["reason"]
    assert (bad["row"], bad["line"]) == (2, 5)


def test_a_line_that_would_not_fit_into_memory_is_a_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(line_stream, "_CHUNK_BYTES", 16)
    monkeypatch.setattr(line_stream.iterate_lines, "__kwdefaults__", {"max_bytes": 64})
    source = write_lines(tmp_path / "in.jsonl", [GOOD, json.dumps({"text": "x" * 1000}), GOOD])
    run_bulk(source, tmp_path / "out.jsonl")
    assert list_lengths(read_rows(tmp_path / "out.jsonl")) == [4, 4]
    [bad] = read_bad_rows(tmp_path / "out.jsonl")
    assert (bad["line"], "split it" in bad["reason"]) == (2, True)


@pytest.mark.parametrize(
    ("rows", "reason"),
    [
        ([{"text": "good", "n": 1}, {"text": "bad", "n": "one"}], "column 'n' is not int64"),
        ([{"text": "good", "n": 1}, {"text": "bad", "n": 2**70}], "column 'n' is not int64"),
        ([{"text": "good", "n": 1}, {"text": "bad", "m": 1}], "column 'm' is in none of the first"),
    ],
)
def test_a_row_that_parquet_cannot_hold_is_a_bad_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[Any], reason: str
) -> None:
    monkeypatch.setattr("infinity_emb.bulk.reading.SAMPLE_ROWS", 1)
    source = write_lines(tmp_path / "in.jsonl", rows)
    run_bulk(source, tmp_path / "out.parquet")
    assert [row["text"] for row in read_rows(tmp_path / "out.parquet")] == ["good"]
    assert reason in read_bad_rows(tmp_path / "out.parquet")[0]["reason"]
    run_bulk(source, tmp_path / "out.jsonl")
    assert [row["text"] for row in read_rows(tmp_path / "out.jsonl")] == ["good", "bad"]


def test_a_later_row_with_the_column_of_the_results_is_a_bad_row(tmp_path: Path) -> None:
    source = write_lines(tmp_path / "in.jsonl", [GOOD, {"text": "bad", "embedding": 1}])
    run_bulk(source, tmp_path / "out.jsonl")
    assert len(read_rows(tmp_path / "out.jsonl")) == 1
    assert "already; choose another --output-column" in read_bad_rows(tmp_path / "out.jsonl")[0]["reason"]


@pytest.mark.parametrize(
    ("faults", "options", "text", "reason"),
    [
        ("", {"truncate": False}, "x" * 9000, "9000 tokens"),
        ("fail_on=poison", {}, "poison", ""),
        ("nan_on=poison", {}, "poison", ""),
        ("wrong_count_on=poison", {}, "poison", ""),
    ],
)
def test_texts_that_cannot_be_computed_are_bad_rows_and_no_other(
    tmp_path: Path, faults: str, options: dict[str, Any], text: str, reason: str
) -> None:
    rows = [{"id": index, "text": text if index in (0, 17, 18, 99) else "good"} for index in range(100)]
    source = write_lines(tmp_path / "in.jsonl", rows)
    summary = run_bulk(source, tmp_path / "out.jsonl", faults=faults, **options)
    assert [row["id"] for row in read_rows(tmp_path / "out.jsonl")] == [
        index for index in range(100) if index not in (0, 17, 18, 99)
    ]
    bad = read_bad_rows(tmp_path / "out.jsonl")
    assert [(row["row"], row["line"]) for row in bad] == [(0, 1), (17, 18), (18, 19), (99, 100)]
    assert all(reason in row["reason"] for row in bad)
    assert (summary.num_rows, summary.num_bad_rows) == (100, 4)


def test_all_rows_may_be_bad(tmp_path: Path) -> None:
    source = write_table(tmp_path / "in.parquet", pa.table({"text": pa.nulls(3), "x": [1, 2, 3]}))
    for name in ("out.parquet", "out.jsonl", "out.npy"):
        assert run_bulk(source, tmp_path / name).num_bad_rows == 3
        assert read_rows(tmp_path / name) == []
        assert [row["line"] for row in read_bad_rows(tmp_path / name)] == [1, 2, 3]


def test_numbers_of_bad_rows_count_over_files_and_windows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("infinity_emb.bulk.reading.MAX_WINDOW_ROWS", 7)
    rows = [{"text": None if index % 10 == 3 else "good"} for index in range(50)]
    files = [write_lines(tmp_path / f"{n}.jsonl", rows[20 * n : 20 * (n + 1)]) for n in range(3)]
    run_bulk(files, tmp_path / "out", rows_per_shard=12)
    bad = [(row["row"], Path(row["file"]).name, row["line"]) for row in read_bad_rows(tmp_path / "out")]
    assert bad == [
        (3, "0.jsonl", 4),
        (13, "0.jsonl", 14),
        (23, "1.jsonl", 4),
        (33, "1.jsonl", 14),
        (43, "2.jsonl", 4),
    ]
    assert len(read_rows(tmp_path / "out")) == 45
