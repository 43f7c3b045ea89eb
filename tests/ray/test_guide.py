"""The blocks of docs/guides/ray.md that need Ray."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from ray.serve._private.build_app import build_app
from ray.serve.schema import ServeDeploySchema

from infinity_emb.ray_serve import build
from scripts.site.pages import list_blocks, read_page

pytestmark = pytest.mark.filterwarnings("default")

BLOCKS = list_blocks(read_page("docs/guides/ray.md"))
MODEL = 'EngineArgs("BAAI/bge-small-en-v1.5")'


def read_block(language: str) -> str:
    [text] = [block.text for block in BLOCKS if block.language == language]
    return text


def test_the_application_can_be_built() -> None:
    config = yaml.safe_load(read_block("yaml"))
    ServeDeploySchema.model_validate(config)
    [application] = config["applications"]
    built = build_app(build(application["args"]), name="infinity")
    assert [each.name for each in built.deployments] == [each["name"] for each in application["deployments"]]


@pytest.mark.slow
@pytest.mark.usefixtures("cluster")
def test_the_dataset_is_computed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "texts").mkdir()
    pq.write_table(pa.table({"id": [1, 2], "body": ["a text", None]}), tmp_path / "texts" / "0.parquet")
    source = read_block("python").replace(MODEL, 'EngineArgs("debug", engine="debugengine")')
    for name in ("texts", "vectors"):
        source = source.replace(f'"{name}"', f'"{tmp_path / name}"')
    assert MODEL not in source
    exec(compile(source, "<page>", "exec"), {"__name__": "__main__"})
    assert "1 rows, 1 without a vector" in capsys.readouterr().out
