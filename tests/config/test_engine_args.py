from __future__ import annotations

import dataclasses
import inspect
import os
import pydoc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from infinity_emb.config.engine_args import (
    ENGINE_PARTS,
    EngineArgs,
    check_distinct_names,
    engine_args_per_model,
)
from infinity_emb.config.environment import Given, collect_given, find_unknown_variables
from infinity_emb.config.model_options import DEFAULT_MODEL
from infinity_emb.config.options import list_options
from infinity_emb.config.server_config import SERVER_PARTS, ServerConfig
from infinity_emb.errors import StartupError
from infinity_emb.types import Device, Dtype, EmbeddingDtype, InferenceEngine, ModelKind


def test_every_field_that_users_give_is_declared_as_an_option() -> None:
    for config in (EngineArgs, ServerConfig):
        declared = {each.name for each in list_options(config)}
        assert {each.name for each in dataclasses.fields(config)} - declared <= {
            "served_model_aliases",
            "needs_trial",
        }


def test_flags_variables_and_field_names_are_unique_over_both_configs() -> None:
    options = [each for config in (EngineArgs, ServerConfig) for each in list_options(config)]
    for names in ({each.flag for each in options}, {each.env for each in options}):
        assert len(names) == len(options)
    assert len({each.name for each in options}) == len(options)


def test_each_default_passes_its_own_checks_and_keeps_its_type() -> None:
    for config, made in ((EngineArgs, EngineArgs()), (ServerConfig, ServerConfig())):
        for each in list_options(config):
            value = getattr(made, each.name)
            assert value is None or isinstance(value, each.kind)


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
    flags = {option.flag for config in (EngineArgs, ServerConfig) for option in list_options(config)}
    assert {f"--{name}" for name in UPSTREAM_FLAGS} <= flags


def test_no_variable_of_infinity_emb_0_0_77_is_unknown() -> None:
    assert find_unknown_variables(dict.fromkeys(UPSTREAM_VARIABLES, "1"), EngineArgs, ServerConfig) == {}


@pytest.mark.parametrize(
    ("name", "nearest"),
    [("INFINITY_MODLE_ID", "INFINITY_MODEL_ID"), ("INFINITY_XYZZY_PLUGH_FROB", None)],
)
def test_an_unknown_variable_comes_with_the_nearest_name(name: str, nearest: str | None) -> None:
    assert find_unknown_variables({name: "1", "HOME": "/"}, EngineArgs, ServerConfig) == {name: nearest}


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
    assert find_unknown_variables(environ, EngineArgs, ServerConfig) == {}
    assert ServerConfig.from_env(environ).port == 7997


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, {"model_name_or_path": DEFAULT_MODEL, "served_model_name": DEFAULT_MODEL, "revision": None}),
        ({"model_name_or_path": "/models/org/name/"}, {"served_model_name": "org/name"}),
        ({"model_name_or_path": "name"}, {"served_model_name": "name"}),
        ({"model_name_or_path": "./my-model"}, {"served_model_name": "my-model"}),
        ({"model_name_or_path": "../models/./my-model/"}, {"served_model_name": "models/my-model"}),
        ({"model_name_or_path": "."}, {"served_model_name": Path.cwd().name}),
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
        ({"dtype": "flaot16"}, "^dtype must be one of .*, got 'flaot16'; did you mean 'float16'?"),
        ({"dtype": "Float16"}, "^dtype must be one of .*, got 'Float16'; did you mean 'float16'?"),
        (
            {"engine": "zzz"},
            "^engine must be one of torch, .*, debugengine, auto, got 'zzz'",
        ),
        (
            {"model_kind": "rerank"},
            "^model_kind must be one of auto, .*, got 'rerank'; did you mean 'reranker'?",
        ),
        (
            {"embedding_dtype": "int4"},
            "^embedding_dtype must be one of float32, float16, int8, uint8.*, got 'int4'",
        ),
        ({"batch_size": 0}, "^batch_size must be at least 1, got 0"),
        ({"batch_size": "many"}, "^batch_size must be an integer, got 'many'"),
        ({"batch_size": 1.5}, "^batch_size must be an integer, got 1.5"),
        ({"batch_size": True}, "^batch_size must be an integer, got True"),
        ({"compile": "perhaps"}, "^compile must be true or false, got 'perhaps'"),
        ({"device_id": "0,x"}, "^device_id must be a list of integers such as 0,1, got '0,x'"),
        ({"device_id": 3}, "^device_id must be a list of integers such as 0,1, got 3"),
        ({"device_id": "-1"}, "^device_id must not be negative, got '-1'"),
        ({"revision": 7}, "^revision must be text, got 7"),
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
        ({"redirect_slash": None}, {"redirect_slash": "/ui"}),
        ({"port": "0"}, {"port": 0}),
        ({"host": ""}, {"host": "0.0.0.0"}),
        ({"api_key": "a;b \n"}, {"api_key": ("a;b",)}),
        ({"api_key": ["a", "", " b"]}, {"api_key": ("a", "b")}),
        ({"api_key": None}, {"api_key": ()}),
        ({}, {"api_servers": 1}),
        ({"api_servers": "auto"}, {"api_servers": "auto"}),
        ({"api_servers": " Auto"}, {"api_servers": "auto"}),
        ({"api_servers": "3"}, {"api_servers": 3}),
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
        ({"url_prefix": "v1"}, "^url_prefix must start with / and not end with /.*, got 'v1'"),
        ({"url_prefix": "/v1/"}, "^url_prefix must start with / and not end with /.*, got '/v1/'"),
        ({"redirect_slash": "docs"}, "^redirect_slash must be empty or start with /, got 'docs'"),
        ({"port": 65536}, "^port must be at most 65535, got 65536"),
        ({"api_servers": 0}, "^api_servers must be at least 1, got 0"),
        ({"api_servers": "many"}, "^api_servers must be auto or an integer, got 'many'"),
        ({"port": -1}, "^port must be at least 0, got -1"),
        ({"api_key": 5}, "^api_key must be text or a list of texts$"),
        ({"api_key": ["secret", 5]}, "^api_key must be text or a list of texts$"),
        ({"log_level": "warn"}, "^log_level must be one of .*, got 'warn'; did you mean 'warning'"),
    ],
)
def test_a_wrong_value_of_the_server_names_the_option_and_what_is_allowed(
    given: dict[str, Any], message: str
) -> None:
    with pytest.raises(StartupError, match=message):
        ServerConfig(**given)


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"dtype": "fp16"}, {"dtype": Dtype.float16}),
        ({"dtype": "bf16"}, {"dtype": Dtype.bfloat16}),
        (
            {"dtype": "fp32", "embedding_dtype": "fp16"},
            {"dtype": Dtype.float32, "embedding_dtype": "float16"},
        ),
        ({"device": "gpu"}, {"device": Device.cuda}),
    ],
)
def test_a_common_name_of_a_dtype_or_device_is_understood(
    given: dict[str, Any], expected: dict[str, Any]
) -> None:
    args = EngineArgs(**given)
    assert {name: getattr(args, name) for name in expected} == expected


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
    given: dict[str, Any] = {"onnx_file": "a.onnx"}
    assert EngineArgs(**given).graph_file == "a.onnx"
    assert replace(EngineArgs(**given), batch_size=2).graph_file == "a.onnx"
    assert EngineArgs(graph_file="a.xml").graph_file == "a.xml"
    with pytest.raises(
        StartupError, match="graph_file and onnx_file are two names of one option; give only graph_file"
    ):
        EngineArgs(graph_file="a.xml", **given)


def test_a_name_that_is_given_in_python_is_one_name() -> None:
    assert EngineArgs(served_model_name="x,y").served_model_name == "x,y"


def test_keys_are_not_shown() -> None:
    config = ServerConfig(api_key=("secret-1", "secret-2"))
    assert "secret" not in f"{config} {config!r}"
    assert "port=7997" in repr(config)


def test_two_models_of_one_name_are_refused() -> None:
    with pytest.raises(
        StartupError, match="two models are served as 'a'; give each a different --served-model-name"
    ):
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
        (
            {"INFINITY_DTYPE": "flaot16"},
            "INFINITY_DTYPE must be one of .*, got 'flaot16'; did you mean 'float16'",
        ),
        ({"INFINITY_QUEUE_SIZE": "many"}, "INFINITY_QUEUE_SIZE must be an integer, got 'many'"),
        ({"INFINITY_COMPILE": "2"}, "INFINITY_COMPILE must be true or false, got '2'"),
        ({"INFINITY_BATCH_SIZE": "0"}, "INFINITY_BATCH_SIZE must be at least 1, got 0"),
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
        ({"INFINITY_PORT": "http"}, "INFINITY_PORT must be an integer, got 'http'"),
        ({"INFINITY_URL_PREFIX": "v1"}, "INFINITY_URL_PREFIX must start with /.*, got 'v1'"),
        ({"INFINITY_LOG_LEVEL": "warn"}, "INFINITY_LOG_LEVEL must be one of .*, got 'warn'"),
    ],
)
def test_a_wrong_variable_of_the_server_is_named_as_the_variable(
    environ: dict[str, str], message: str
) -> None:
    with pytest.raises(StartupError, match=rf"^{message}"):
        ServerConfig.from_env(environ)


def test_a_flag_counts_before_its_variable_and_says_where_it_came_from() -> None:
    environ = {"INFINITY_DTYPE": "float16", "INFINITY_DEVICE": "cpu"}
    given = collect_given(
        EngineArgs, {"dtype": ["float32"], "device": None, "revision": []}, environ, is_per_model=True
    )
    assert given == {"dtype": Given(["float32"], "--dtype"), "device": Given(["cpu"], "INFINITY_DEVICE")}


def test_every_option_of_a_model_belongs_to_one_part() -> None:
    args = EngineArgs(model_name_or_path="a", max_queue_items=3, vector_disk_cache=True, media_hosts="none")
    parts = (args.load, args.queue, args.cache, args.media)
    names = [field.name for part in parts for field in dataclasses.fields(part)]
    ignored = {option.name for option in list_options(EngineArgs) if option.spec.is_ignored}
    assert sorted(names) == sorted({field.name for field in dataclasses.fields(EngineArgs)} - ignored)
    for part in parts:
        for field in dataclasses.fields(part):
            assert getattr(part, field.name) == getattr(args, field.name)


def test_headings_cover_every_option_once() -> None:
    for config, parts in ((EngineArgs, ENGINE_PARTS), (ServerConfig, SERVER_PARTS)):
        options = [option for part in parts.values() for option in list_options(part)]
        assert options == list(list_options(config))


def test_an_option_under_its_old_name_has_the_same_effect() -> None:
    assert ServerConfig(answer_write_timeout_s=7).response_write_timeout_s == 7  # type: ignore[call-arg]
    environ = {"INFINITY_ANSWER_WRITE_TIMEOUT_S": "8"}
    assert ServerConfig.from_env(environ).response_write_timeout_s == 8
    assert find_unknown_variables(environ, ServerConfig) == {}
    given = collect_given(ServerConfig, {"answer_write_timeout_s": ["9"]}, {}, is_per_model=False)
    assert given == {"response_write_timeout_s": Given(["9"], "--answer-write-timeout-s")}
    both = {"answer_write_timeout_s": ["9"], "response_write_timeout_s": ["8"]}
    with pytest.raises(StartupError, match="two names of one option; give only --response-write-timeout-s"):
        collect_given(ServerConfig, both, {}, is_per_model=False)


def test_a_keyword_that_is_no_option_is_a_type_error() -> None:
    with pytest.raises(TypeError, match="modle_kind"):
        EngineArgs(modle_kind="reranker")  # type: ignore[call-arg]


def test_the_model_may_be_given_by_position() -> None:
    """It was a TypeError: 0.0.77's class is a plain dataclass."""
    args = EngineArgs("org/model", dtype="float16")
    assert args == EngineArgs(model_name_or_path="org/model", dtype="float16")
    assert args.load == args.copy().load
    assert EngineArgs(None) == EngineArgs("") == EngineArgs()
    with pytest.raises(TypeError, match="positional"):
        EngineArgs("org/model", "main")  # type: ignore[call-arg]
    with pytest.raises(TypeError, match="model_name_or_path"):
        EngineArgs("org/model", model_name_or_path="org/other")  # type: ignore[misc]


def test_help_describes_every_option() -> None:
    """It was one sentence and forty names."""
    text = pydoc.plain(pydoc.render_doc(EngineArgs))
    described = " ".join(text.split()).replace(" | ", " ")
    for option in list_options(EngineArgs):
        assert f" {option.name} (" in described
        assert option.spec.help in described
    assert f" dtype ({', '.join(Dtype.__members__)}; default auto): " in described
    assert "batch_size (int; default 1024): " in described
    assert max(map(len, (EngineArgs.__doc__ or "").splitlines())) <= 110
    signature = inspect.signature(EngineArgs)
    assert {option.name for option in list_options(EngineArgs)} <= set(signature.parameters)
    assert signature.parameters["model_name_or_path"].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (os.fsdecode("./möbel".encode()), "möbel"),
        ("./m\udcc3\udcb6bel", "möbel"),  # as a process in the locale C reads it
        ("./m\udcffbel", "m\ufffdbel"),
        ("./m\ud83dbel", "m?bel"),
    ],
)
def test_a_path_of_any_bytes_has_a_name_that_can_be_sent(given: str, expected: str) -> None:
    """Every request got a 500, since the name in the response could not be encoded."""
    args = EngineArgs(given)
    assert (args.model_name_or_path, args.served_model_name) == (given, expected)
    named = engine_args_per_model({"model_name_or_path": ["m"], "served_model_name": ["a", given]})
    assert named[0].list_names() == ["a", f"./{expected}"]
