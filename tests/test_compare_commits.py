"""Two checkouts are measured in turn; here, with a benchmark that prints fixed numbers."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from scripts import compare_commits
from scripts.compare_commits import (
    Benchmark,
    BenchmarkFailed,
    Comparison,
    add_worktree,
    check_import,
    format_table,
    main,
    parse_benchmarks,
    read_figures,
    run_benchmark,
)

BENCHMARK = """
import json, pathlib, sys
with open({log!r}, "a") as log:
    log.write({name!r} + " " + " ".join(sys.argv[1:]) + "\\n")
print("a table")
ratios = {{"speed": {{"median": {value}, "rounds": [{value}, {value}]}}}}
footprint = {{"server": {{"resident_mib": 100.0}}}}
print(json.dumps({{"machine": "one", "ratios": ratios, "footprint": footprint}}))
"""


def make_checkout(folder: Path, value: float) -> Path:
    """Write a package and a benchmark that gives `value`; each run adds a line to `log` beside the folder."""
    for name in ("infinity_emb", "benchmarks"):
        (folder / name).mkdir(parents=True)
        (folder / name / "__init__.py").touch()
    source = BENCHMARK.format(log=str(folder.parent / "log"), name=folder.name, value=value)
    (folder / "benchmarks" / "serve.py").write_text(source)
    return folder


def git(folder: Path, *arguments: str) -> None:
    identity = ["-c", "user.name=A", "-c", "user.email=a@example.com"]
    subprocess.run(["git", "-C", folder, *identity, *arguments], check=True, capture_output=True)


def commit_all(folder: Path) -> Path:
    git(folder, "init")
    git(folder, "add", "--all")
    git(folder, "commit", "-m", "First")
    return folder


def test_the_sides_take_turns_and_the_last_line_is_json(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base, head = (commit_all(make_checkout(tmp_path / name, value)) for name, value in (("a", 2), ("b", 3)))
    flags = ["--benchmark", "serve --model x", "--turns", "2", "--rounds", "4"]
    assert main(["--base-dir", str(base), "--head-dir", str(head), *flags]) == 0
    assert (tmp_path / "log").read_text().splitlines() == [
        f"{name} --model x --rounds 4" for name in ("a", "b", "a", "b")
    ]
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["figures"]["serve.speed"] == {"base": [2] * 4, "head": [3] * 4, "ratio": 1.5, "spread": 0}
    assert result["figures"]["serve.server.resident_mib"]["ratio"] == 1


def test_a_failed_run_does_not_lose_the_others(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    base, head = (commit_all(make_checkout(tmp_path / name, 2)) for name in ("a", "b"))
    (head / "benchmarks" / "serve.py").unlink()
    assert main(["--base-dir", str(base), "--head-dir", str(head), "--benchmark", "serve", "--quick"]) == 1
    output = capsys.readouterr()
    assert json.loads(output.out.splitlines()[-1])["figures"]["serve.speed"]["head"] == []
    assert "No module named benchmarks.serve" in output.err


def test_a_commit_is_checked_out_for_the_run_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout = commit_all(make_checkout(tmp_path / "a", 2))
    serve = checkout / "benchmarks" / "serve.py"
    serve.write_text(serve.read_text().replace("[2, 2]", "[1, 1]"))
    monkeypatch.setattr(compare_commits, "ROOT", checkout)
    main(["HEAD", "--head-dir", str(checkout), "--benchmark", "serve", "--quick"])
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["figures"]["serve.speed"]["ratio"] == 0.5
    assert result["head"] == f"{result['base']}-dirty"
    worktrees = subprocess.run(
        ["git", "-C", checkout, "worktree", "list"], check=True, capture_output=True, text=True
    )
    assert len(worktrees.stdout.splitlines()) == 1


def test_an_unknown_commit_is_an_error(tmp_path: Path) -> None:
    checkout = commit_all(make_checkout(tmp_path / "a", 2))
    with pytest.raises(RuntimeError, match="no-such-commit"), add_worktree(checkout, "no-such-commit"):
        pass


def test_a_checkout_without_the_package_is_refused(tmp_path: Path) -> None:
    check_import(make_checkout(tmp_path / "a", 2))
    with pytest.raises(RuntimeError, match="does not import its own infinity_emb"):
        check_import(tmp_path)


def test_a_benchmark_that_fails_is_named_with_its_error(tmp_path: Path) -> None:
    checkout = make_checkout(tmp_path / "a", 2)
    (checkout / "benchmarks" / "serve.py").write_text("raise SystemExit('no model')")
    with pytest.raises(BenchmarkFailed, match=r"serve in .* ended with code 1:\nno model"):
        run_benchmark(checkout, Benchmark(name="serve"))


@pytest.mark.parametrize("output", ["", "a table\n", '{"accuracy": {}}\n', "[1]\n"])
def test_output_without_figures_is_an_error(output: str) -> None:
    with pytest.raises(ValueError, match="not the JSON of a benchmark"):
        read_figures(output)


def test_quick_makes_the_workload_smaller_unless_flags_are_given() -> None:
    cache, flagged = parse_benchmarks(["cache", "cache --model bundled"], rounds=1, is_quick=True)
    assert cache.arguments == ["--model", "fake", "--rounds", "1"]
    assert flagged.arguments == ["--model", "bundled", "--rounds", "1"]


def test_the_spread_is_that_of_the_noisier_side_and_needs_two_values_of_each() -> None:
    assert Comparison(base=[1.0, 2.0, 3.0], head=[4.0, 4.0]).spread == 1
    assert Comparison(base=[1.0, 2.0], head=[4.0]).spread is None
    assert Comparison(base=[1.0, 2.0]).spread is None


def test_a_checkout_that_changes_during_the_run_is_an_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkout = make_checkout(tmp_path / "a", 2)
    serve = checkout / "benchmarks" / "serve.py"
    serve.write_text(serve.read_text() + f"open({str(serve)!r}, 'a').write('# changed')")
    commit_all(checkout)
    flags = ["--head-dir", str(checkout), "--benchmark", "serve", "--quick"]
    assert main(["--base-dir", str(checkout), *flags]) == 1
    assert "changed during the run" in capsys.readouterr().err


def test_rounds_among_the_flags_of_a_benchmark_stay() -> None:
    [benchmark] = parse_benchmarks(["kinds --rounds 2"], rounds=5, is_quick=False)
    assert benchmark.arguments == ["--rounds", "2"]


def test_a_figure_of_one_side_has_no_ratio() -> None:
    comparisons = {"old": Comparison(base=[2.0]), "both": Comparison(base=[1.0, 2.0, 3.0], head=[4.0])}
    assert comparisons["both"].ratio == 2
    assert comparisons["both"].spread is None
    _, old, both = format_table(comparisons)
    assert old.split() == ["old", "2.000", "[2.000–2.000]", "-", "-", "-"]
    assert both.split() == ["both", "2.000", "[1.000–3.000]", "4.000", "[4.000–4.000]", "2.000", "-"]
