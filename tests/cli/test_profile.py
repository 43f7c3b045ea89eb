from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace

import pytest

from infinity_emb.cli import main
from infinity_emb.cli.profile import measure as measuring
from infinity_emb.cli.profile.measure import Profile, measure
from infinity_emb.cli.profile.report import explain_bottleneck, format_table
from infinity_emb.config.engine_args import EngineArgs
from infinity_emb.errors import StartupError
from tests.support.small_models.embedders import save_small_model
from tests.support.tiny_server import debug_args

DELAY_S = 0.05


@pytest.fixture(autouse=True)
def _few_requests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(measuring, "MAX_REQUESTS", 3)
    monkeypatch.setattr(measuring, "NUM_WARM_UP", 1)


@pytest.fixture(scope="module")
def profile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Profile]:
    """The profile of a small torch model."""
    folder = save_small_model(tmp_path_factory.mktemp("model"), "bert")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(measuring, "MAX_REQUESTS", 3)
        yield measure(EngineArgs(model_name_or_path=str(folder), device="cpu", model_warmup=False))


def test_the_stages_add_up_to_the_request() -> None:
    profile = measure(debug_args(f"debug?delay_s={DELAY_S}"))
    assert list(profile.stage_s) == ["parse", "tokenize", "queue", "copy", "forward", "wake", "encode"]
    assert profile.num_requests == 3
    assert profile.stage_s["forward"] >= DELAY_S
    assert 0.8 * profile.request_s < sum(profile.stage_s.values()) <= profile.request_s
    assert profile.bottleneck == "forward"


@pytest.mark.model
def test_the_batch_of_a_torch_model_is_told_apart(profile: Profile) -> None:
    stages = ["parse", "tokenize", "queue", "copy", "layers", "pool", "wake", "encode"]
    assert list(profile.stage_s) == stages
    assert all(seconds > 0 for seconds in profile.stage_s.values())
    assert 0.5 * profile.request_s < sum(profile.stage_s.values()) <= profile.request_s
    assert sum(profile.stage_s.values()) + profile.rest_s == pytest.approx(profile.request_s)
    assert 0 < (profile.products_s or 0) < profile.stage_s["layers"]


@pytest.mark.parametrize("kind", ["reranker", "classifier", "sparse", "multivector", "embedder"])
def test_every_kind_of_model_is_profiled(kind: str) -> None:
    profile = measure(debug_args(f"debug?kind={kind}"))
    assert profile.num_texts == measuring.MAX_TEXTS
    assert profile.num_tokens > profile.num_texts


def test_requests_are_made_to_fit_one_batch() -> None:
    profile = measure(debug_args(max_batch_tokens=400))
    assert profile.num_texts in (4, 8)
    assert profile.num_tokens <= 400


def test_a_cache_is_not_profiled() -> None:
    assert "cache" not in measure(debug_args(vector_memory_cache_mb=1)).stage_s


def test_a_model_that_fails_is_an_error() -> None:
    with pytest.raises(StartupError, match=r"cannot be profiled: .*told to fail"):
        measure(debug_args("debug?fail_on=a"))


@pytest.mark.model
def test_the_bottleneck_is_what_can_be_gained(profile: Profile) -> None:
    stage_s = {"parse": 2.0, "tokenize": 3.0, "layers": 10.0, "encode": 1.0}
    busy = replace(profile, stage_s=stage_s, request_s=16.5, products_s=5.0)
    assert (busy.limit_share, busy.rest_s, busy.bottleneck) == (0.5, 0.5, "layers")
    full = replace(busy, products_s=9.0)
    assert (full.limit_share, full.bottleneck) == (0.9, "tokenize")
    assert "the layers are at the device's limit" in explain_bottleneck(full)
    unknown = replace(busy, products_s=None)
    assert (unknown.limit_share, unknown.bottleneck) == (None, "layers")
    assert "this engine or dtype" in explain_bottleneck(unknown)
    assert replace(busy, request_s=30.0).bottleneck == "rest"


@pytest.mark.model
def test_the_table_has_each_stage_per_token_and_as_a_share(profile: Profile) -> None:
    stage_s = {"parse": 0.001, "layers": 0.008, "encode": 0.0005}
    lines = list(
        format_table(replace(profile, stage_s=stage_s, request_s=0.01, products_s=0.006, num_tokens=100))
    )
    assert lines[2:8] == [
        "stage               ms  us/token   share",
        "parse            1.000    10.000   10.0%",
        "layers           8.000    80.000   80.0%",
        "encode           0.500     5.000    5.0%",
        "rest             0.500     5.000    5.0%",
        "request         10.000   100.000  100.0%",
    ]
    assert lines[9].startswith("layers: 75% of the device's limit")
    assert lines[10].startswith("10000 tokens/s; next bottleneck: layers")


def test_machines_get_a_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["profile", "--model-id", "debug", "--engine", "debugengine", "--json"]) == 0
    [line] = capsys.readouterr().out.splitlines()
    printed = json.loads(line)
    assert sum(printed["stage_s"].values()) == pytest.approx(printed["request_s"])
    assert (printed["model"], printed["limit_share"]) == ("debug", None)


def test_people_get_a_table_per_model(capsys: pytest.CaptureFixture[str]) -> None:
    models = ["--model-id", "debug", "--model-id", "debug?kind=reranker", "--served-model-name", "a"]
    assert main(["profile", *models, "--served-model-name", "b", "--engine", "debugengine"]) == 0
    out = capsys.readouterr().out
    assert out.startswith("a: engine debugengine")
    assert "\n\nb: engine debugengine" in out
