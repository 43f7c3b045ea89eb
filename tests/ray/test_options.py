"""The arguments of an application."""

from __future__ import annotations

from typing import Any

import pytest

from infinity_emb.errors import StartupError
from infinity_emb.ray_serve.options import ServeOptions, read_server_config

pytestmark = pytest.mark.filterwarnings("default")


def test_the_members_of_one_model_may_stand_alone() -> None:
    options = ServeOptions.from_args({"model_id": "org/model", "dtype": "float32", "max_queue_items": "5"})
    [(name, model)] = options.models.items()
    assert (name, model.model_name_or_path, model.max_queue_items) == ("org-model", "org/model", 5)
    assert not options.has_router


def test_several_models_have_a_router() -> None:
    options = ServeOptions.from_args(
        {"models": [{"model_id": "a"}, {"model_name_or_path": "b", "served_model_name": "c"}]}
    )
    assert list(options.models) == ["a", "c"]
    assert options.has_router


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"models": [{"modelid": "a"}]}, "no option 'modelid'; did you mean 'model_id'"),
        ({"models": []}, "no models"),
        ({"models": [{"model_id": "a"}], "sever": {}}, "args has no field 'sever'; did you mean 'server'"),
        ({"models": [{"model_id": "a/b"}, {"model_id": "a-b"}]}, "must differ"),
        ({"models": [{"model_id": "a"}, {"model_id": "a"}]}, "two models are served as 'a'"),
        ({"model_id": "a", "server": {"batch_dir": "/x"}}, "batch_dir concerns one server"),
        ({"model_id": "a", "server": {"admin_key": "a-long-key"}}, "admin_key concerns one server"),
    ],
)
def test_a_wrong_argument_is_explained(args: dict[str, Any], message: str) -> None:
    with pytest.raises(StartupError, match=message):
        ServeOptions.from_args(args)


def test_options_that_are_left_out_come_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("INFINITY_API_KEY", "a-long-key")
    config = read_server_config({"max_client_batch_size": 3})
    assert config.api_key == ("a-long-key",)
    assert (config.max_client_batch_size, config.metrics, config.ui) == (3, "off", False)
