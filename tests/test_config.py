from __future__ import annotations

import dataclasses
from dataclasses import replace
from typing import Any

import pytest

from infinity_emb.config import (
    DEFAULT_MODEL,
    EngineArgs,
    ServerConfig,
    check_distinct_names,
    engine_args_per_model,
    given_options,
)
from infinity_emb.errors import StartupError
from infinity_emb.options import (
    Given,
    env_name,
    flag_name,
    option_fields,
    option_kind,
    unknown_env_names,
)
from infinity_emb.primitives import Device, Dtype, EmbeddingDtype, InferenceEngine, ModelKind


def test_every_field_but_the_aliases_is_declared_as_an_option() -> None:
    for config in (EngineArgs, ServerConfig):
        declared = {each.name for each in option_fields(config)}
        assert {each.name for each in dataclasses.fields(config)} - declared <= {"served_model_aliases"}


def test_flags_variables_and_field_names_are_unique_over_both_configs() -> None:
    options = [each for config in (EngineArgs, ServerConfig) for each in option_fields(config)]
    for names in ({flag_name(each) for each in options}, {env_name(each) for each in options}):
        assert len(names) == len(options)
    assert len({each.name for each in options}) == len(options)


def test_each_default_passes_its_own_checks_and_keeps_its_type() -> None:
    for config, made in ((EngineArgs, EngineArgs()), (ServerConfig, ServerConfig())):
        for each in option_fields(config):
            value = getattr(made, each.name)
            assert value is None or isinstance(value, option_kind(config, each))


# What compose files and command lines of infinity_emb 0.0.77 hold.
UPSTREAM_FLAGS = [
    "model-id",
    "served-model-name",
    "batch-size",
    "revision",
    "trust-remote-code",
    "engine",
    "model-warmup",
    "vector-disk-cache",
    "device",
    "device-id",
    "lengths-via-tokenize",
    "dtype",
    "embedding-dtype",
    "pooling-method",
    "compile",
    "bettertransformer",
    "preload-only",
    "host",
    "port",
    "url-prefix",
    "redirect-slash",
    "log-level",
    "permissive-cors",
    "api-key",
    "proxy-root-path",
    "onnx-disable-optimize",
    "onnx-do-not-prefer-quantized",
]
UPSTREAM_VARIABLES = [f"INFINITY_{flag.replace('-', '_').upper()}" for flag in UPSTREAM_FLAGS] + [
    "INFINITY_QUEUE_SIZE",
    "INFINITY_MAX_CLIENT_BATCH_SIZE",
    "INFINITY_CALIBRATION_DATASET_URL",
    "INFINITY_ANONYMOUS_USAGE_STATS",
    "INFINITY_HOME",
    "INFINITY_DISABLE_OPTIMUM",
    "DO_NOT_TRACK",
]


def test_every_flag_of_infinity_emb_0_0_77_exists() -> None:
    flags = {flag_name(each) for config in (EngineArgs, ServerConfig) for each in option_fields(config)}
    assert set(UPSTREAM_FLAGS) <= flags


def test_no_variable_of_infinity_emb_0_0_77_is_unknown() -> None:
    assert unknown_env_names(dict.fromkeys(UPSTREAM_VARIABLES, "1"), EngineArgs, ServerConfig) == {}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("INFINITY_MODLE_ID", "INFINITY_MODEL_ID"), ("INFINITY_XYZZY_PLUGH_FROB", None)],
)
def test_an_unknown_variable_comes_with_the_nearest_name(name: str, nearest: str | None) -> None:
    assert unknown_env_names({name: "1", "HOME": "/"}, EngineArgs, ServerConfig) == {name: nearest}


def test_variables_that_kubernetes_sets_for_a_service_named_infinity_are_no_options() -> None:
    """Such a service's INFINITY_PORT is an address, and would end the start of a server beside it."""
    environ = {
        "INFINITY_SERVICE_HOST": "10.0.0.1",
        "INFINITY_SERVICE_PORT": "7997",
        "INFINITY_SERVICE_PORT_HTTP": "7997",
        "INFINITY_PORT": "tcp://10.0.0.1:7997",
        "INFINITY_PORT_7997_TCP": "tcp://10.0.0.1:7997",
        "INFINITY_PORT_7997_TCP_PROTO": "tcp",
        "INFINITY_PORT_7997_TCP_PORT": "7997",
        "INFINITY_PORT_7997_TCP_ADDR": "10.0.0.1",
    }
    assert unknown_env_names(environ, EngineArgs, ServerConfig) == {}
    assert ServerConfig.from_env(environ).port == 7997


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"model_name_or_path": DEFAULT_MODEL, "served_model_name": DEFAULT_MODEL, "revision": None}),
        ({"model_name_or_path": "/models/org/name/"}, {"served_model_name": "org/name"}),
        ({"model_name_or_path": "name"}, {"served_model_name": "name"}),
        ({"engine": "debugengine", "device": "cpu"}, {"engine": InferenceEngine.debugengine}),
        ({"device": None}, {"device": Device.auto}),
        ({"dtype": Dtype.float16}, {"dtype": Dtype.float16}),
        ({"dtype": ""}, {"dtype": Dtype.auto}),
        ({"revision": ""}, {"revision": None}),
        ({"batch_size": "8"}, {"batch_size": 8}),
        ({"batch_size": ""}, {"batch_size": 1024}),
        ({"compile": "TRUE"}, {"compile": True}),
        ({"model_warmup": "no"}, {"model_warmup": False}),
        ({"model_warmup": 0}, {"model_warmup": False}),
        ({"model_warmup": ""}, {"model_warmup": True}),
        ({"model_kind": "reranker"}, {"model_kind": ModelKind.reranker}),
        ({"model_kind": ""}, {"model_kind": ModelKind.auto}),
        ({"embedding_dtype": "int8"}, {"embedding_dtype": EmbeddingDtype.int8}),
        ({"calibration_file": ""}, {"calibration_file": ""}),
        ({"calibration_file": "texts.txt"}, {"calibration_file": "texts.txt"}),
        ({"device_id": "0,1"}, {"device_id": (0, 1)}),
        ({"device_id": [2]}, {"device_id": (2,)}),
        ({"device_id": ""}, {"device_id": ()}),
    ],
)
def test_engine_args_turn_what_is_given_into_the_declared_type(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    values = EngineArgs(**given).to_dict()
    assert {name: values[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"dtype": "flaot16"}, "--dtype 'flaot16' is not one of .*; did you mean 'float16'?"),
        ({"dtype": "Float16"}, "--dtype 'Float16' is not one of .*; did you mean 'float16'?"),
        ({"engine": "zzz"}, "--engine 'zzz' is not one of torch, .*, openvino, neuron, debugengine, auto$"),
        ({"model_kind": "rerank"}, "--model-kind 'rerank' is not one of auto, .*; did you mean 'reranker'?"),
        ({"embedding_dtype": "int4"}, "--embedding-dtype 'int4' is not one of float32, float16, int8, uint8"),
        ({"batch_size": 0}, "--batch-size 0 is under the limit of 1"),
        ({"batch_size": "many"}, "--batch-size 'many' is not a whole number"),
        ({"batch_size": 1.5}, "--batch-size 1.5 is not a whole number"),
        ({"batch_size": True}, "--batch-size True is not a whole number"),
        ({"compile": "perhaps"}, "--compile 'perhaps' is neither true nor false"),
        ({"device_id": "0,x"}, "--device-id '0,x' is not a list of numbers such as 0,1"),
        ({"device_id": 3}, "--device-id 3 is not a list of numbers"),
        ({"device_id": "-1"}, "--device-id '-1' has a negative number"),
        ({"revision": 7}, "--revision 7 is not text"),
    ],
)
def test_a_wrong_value_of_a_model_names_the_option_and_what_is_allowed(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(StartupError, match=message.replace("?", r"\?")):
        EngineArgs(**given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"url_prefix": "/"}, {"url_prefix": ""}),
        ({"url_prefix": "/v1"}, {"url_prefix": "/v1"}),
        ({"redirect_slash": ""}, {"redirect_slash": ""}),
        ({"redirect_slash": None}, {"redirect_slash": "/docs"}),
        ({"port": "0"}, {"port": 0}),
        ({"host": ""}, {"host": "0.0.0.0"}),
        ({"api_key": "a;b \n"}, {"api_key": ("a;b",)}),
        ({"api_key": ["a", "", " b"]}, {"api_key": ("a", "b")}),
        ({"api_key": ""}, {"api_key": ()}),
        ({"api_key": None}, {"api_key": ()}),
    ],
)
def test_server_config_turns_what_is_given_into_the_declared_type(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    config = ServerConfig(**given)
    assert {name: getattr(config, name) for name in expected} == expected


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"url_prefix": "v1"}, "--url-prefix 'v1' must start with / and not end with /"),
        ({"url_prefix": "/v1/"}, "--url-prefix '/v1/' must start with / and not end with /"),
        ({"redirect_slash": "docs"}, "--redirect-slash 'docs' must be empty or start with /"),
        ({"port": 65536}, "--port 65536 is over the limit of 65535"),
        ({"port": -1}, "--port -1 is under the limit of 0"),
        ({"api_key": 5}, "--api-key is neither a text nor a list of texts$"),
        ({"api_key": ["secret", 5]}, "--api-key is neither a text nor a list of texts$"),
        ({"log_level": "warn"}, "--log-level 'warn' is not one of .*; did you mean 'warning'"),
    ],
)
def test_a_wrong_value_of_the_server_names_the_option_and_what_is_allowed(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(StartupError, match=message):
        ServerConfig(**given)


def test_copy_is_equal_and_args_are_hashable_and_frozen() -> None:
    args = EngineArgs(model_name_or_path="a", batch_size=3)
    assert args.copy() == args
    assert hash(args.copy()) == hash(args)
    with pytest.raises(dataclasses.FrozenInstanceError):
        args.batch_size = 4  # type: ignore[misc]  # what is tested


def test_a_single_value_holds_for_all_models_and_several_go_by_position() -> None:
    both = engine_args_per_model(
        {
            "model_name_or_path": ["a", "b"],
            "dtype": ["float32"],
            "batch_size": [1, 2],
            "compile": [True, False],
        }
    )
    assert [(args.dtype, args.batch_size, args.compile) for args in both] == [
        (Dtype.float32, 1, True),
        (Dtype.float32, 2, False),
    ]


@pytest.mark.parametrize("models", [["a"], ["a", "b", "c"]])
def test_another_number_of_values_than_models_is_refused(models: list[str]) -> None:
    with pytest.raises(StartupError, match=rf"--dtype was given 2 values for {len(models)} models"):
        engine_args_per_model({"model_name_or_path": models, "dtype": ["float32", "float16"]})


@pytest.mark.parametrize(
    ("names", "name", "aliases"),
    [
        (["x"], "x", ()),
        (["x", "y", "z"], "x", ("y", "z")),
        (["x", "x"], "x", ()),
        (["", "y"], "a", ("y",)),
        (["x", ""], "x", ()),
        (["x,y"], "x", ("y",)),
        (["x, y ,,x,z,"], "x", ("y", "z")),
        ([",y"], "a", ("y",)),
        (["x,y", "z"], "x", ("y", "z")),
    ],
)
def test_several_names_of_one_model_are_its_name_and_its_aliases(
    names: list[str], name: str, aliases: tuple[str, ...]
) -> None:
    [args] = engine_args_per_model({"model_name_or_path": ["a"], "served_model_name": names})
    assert (args.served_model_name, args.served_model_aliases) == (name, aliases)


def test_each_of_several_models_has_aliases_behind_commas() -> None:
    environ = {"INFINITY_MODEL_ID": "a;b;c", "INFINITY_SERVED_MODEL_NAME": "x,y; ;z,u,v"}
    assert [(args.served_model_name, args.served_model_aliases) for args in EngineArgs.from_env(environ)] == [
        ("x", ("y",)),
        ("b", ()),
        ("z", ("u", "v")),
    ]


def test_an_alias_that_another_model_has_is_refused() -> None:
    with pytest.raises(StartupError, match="two models are served as 'y'"):
        engine_args_per_model({"model_name_or_path": ["a", "b"], "served_model_name": ["x,y", "z,y"]})


def test_onnx_file_is_another_name_for_graph_file() -> None:
    assert EngineArgs(onnx_file="a.onnx").graph_file == "a.onnx"
    assert replace(EngineArgs(onnx_file="a.onnx"), batch_size=2).graph_file == "a.onnx"
    assert EngineArgs(graph_file="a.xml").graph_file == "a.xml"
    with pytest.raises(StartupError, match=r"--graph-file 'a\.xml' and --onnx-file 'a\.onnx' are two files"):
        EngineArgs(graph_file="a.xml", onnx_file="a.onnx")


def test_a_name_that_is_given_in_python_is_one_name() -> None:
    assert EngineArgs(served_model_name="x,y").served_model_name == "x,y"


def test_keys_are_not_shown() -> None:
    config = ServerConfig(api_key=("secret-1", "secret-2"))
    assert "secret" not in f"{config} {config!r}"
    assert "port=7997" in repr(config)


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(StartupError, match="two models are served as 'a'; give each a --served-model-name"):
        engine_args_per_model({"model_name_or_path": ["a", "a"]})
    with pytest.raises(StartupError, match="two models are served as 'b'"):
        check_distinct_names(
            [
                EngineArgs(model_name_or_path="a", served_model_aliases=("b",)),
                EngineArgs(served_model_name="b"),
            ]
        )


def test_the_environment_is_read_as_lists_for_models_and_as_text_for_the_server() -> None:
    environ = {
        "INFINITY_MODEL_ID": "a; b;",
        "INFINITY_COMPILE": "true;0",
        "INFINITY_MODEL_KIND": "embedder;reranker",
        "INFINITY_CALIBRATION_FILE": "texts.txt",
        "INFINITY_DTYPE": "float32",
        "INFINITY_QUEUE_SIZE": "7",
        "INFINITY_API_KEY": "one;two",
        "INFINITY_REDIRECT_SLASH": "",
        "INFINITY_PORT": "",
    }
    both = EngineArgs.from_env(environ)
    assert [args.model_name_or_path for args in both] == ["a", "b"]
    assert [args.compile for args in both] == [True, False]
    assert [args.model_kind for args in both] == [ModelKind.embedder, ModelKind.reranker]
    assert {args.dtype for args in both} == {Dtype.float32}
    assert {args.calibration_file for args in both} == {"texts.txt"}
    assert {args.max_queue_items for args in both} == {7}
    config = ServerConfig.from_env(environ)
    assert (config.api_key, config.redirect_slash, config.port) == (("one;two",), "", 7997)


def test_an_empty_environment_gives_the_defaults() -> None:
    assert EngineArgs.from_env({}) == [EngineArgs()]
    assert ServerConfig.from_env({}) == ServerConfig()


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"INFINITY_DTYPE": "flaot16"}, "INFINITY_DTYPE 'flaot16' is not one of .*; did you mean 'float16'"),
        ({"INFINITY_QUEUE_SIZE": "many"}, "INFINITY_QUEUE_SIZE 'many' is not a whole number"),
        ({"INFINITY_COMPILE": "2"}, "INFINITY_COMPILE '2' is neither true nor false"),
        ({"INFINITY_BATCH_SIZE": "0"}, "INFINITY_BATCH_SIZE 0 is under the limit of 1"),
        (
            {"INFINITY_MODEL_ID": "a;b;c", "INFINITY_DTYPE": "auto;auto"},
            "INFINITY_DTYPE was given 2 values for 3",
        ),
    ],
)
def test_a_wrong_variable_of_a_model_is_named_as_the_variable(environ: dict[str, str], message: str) -> None:
    with pytest.raises(StartupError, match=rf"^{message}"):
        EngineArgs.from_env(environ)


@pytest.mark.parametrize(
    ("environ", "message"),
    [
        ({"INFINITY_PORT": "http"}, "INFINITY_PORT 'http' is not a whole number"),
        ({"INFINITY_URL_PREFIX": "v1"}, "INFINITY_URL_PREFIX 'v1' must start with /"),
        ({"INFINITY_LOG_LEVEL": "warn"}, "INFINITY_LOG_LEVEL 'warn' is not one of"),
    ],
)
def test_a_wrong_variable_of_the_server_is_named_as_the_variable(
    environ: dict[str, str], message: str
) -> None:
    with pytest.raises(StartupError, match=rf"^{message}"):
        ServerConfig.from_env(environ)


def test_a_flag_counts_before_its_variable_and_says_where_it_came_from() -> None:
    environ = {"INFINITY_DTYPE": "float16", "INFINITY_DEVICE": "cpu"}
    given = given_options(EngineArgs, {"dtype": ["float32"], "device": None, "revision": []}, environ)
    assert given == {"dtype": Given(["float32"], "--dtype"), "device": Given(["cpu"], "INFINITY_DEVICE")}
