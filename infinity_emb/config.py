"""Every option, declared once: type, default and help stand at the dataclass field.

Command line flags (`cli/commands.py`), environment names, `docs/settings.md` and the Python API are derived
from these fields, and a test compares them. How a declaration is read stands in `options.py`. Nothing here
reads the environment by itself: `from_env` and `given_options` are called at an entry point. Knows nothing of
models, devices or HTTP beyond their names. Over 300 lines, so that all options stand on one page.
"""

# ruff: noqa: RUF009 - `option` returns a dataclass field, and its defaults are immutable

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import Field, InitVar, dataclass, fields, replace
from typing import Any

from infinity_emb.errors import StartupError
from infinity_emb.options import (
    Given,
    env_name,
    env_text,
    env_values,
    flag_name,
    is_repeated,
    option,
    option_fields,
    parse_option,
    settle_options,
)
from infinity_emb.primitives import (
    Device,
    Dtype,
    EmbeddingDtype,
    InferenceEngine,
    ModelKind,
    PoolingMethod,
    TokenIdsOf,
)

DEFAULT_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
_HOST = re.compile(r"(\*\.)?[A-Za-z0-9:._-]+|\[[0-9a-fA-F:.]+\]")
LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")


def _check_prefix(value: str) -> str | None:
    is_fine = value in ("", "/") or (value.startswith("/") and not value.endswith("/"))
    return None if is_fine else "must start with / and not end with /"


def _check_hosts(value: str) -> str | None:
    is_fine = all(_HOST.fullmatch(each.strip()) for each in value.split(",") if each.strip())
    return None if is_fine else "must be host names behind commas, without scheme, port or path"


def _check_redirect(value: str) -> str | None:
    return None if not value or value.startswith("/") else "must be empty or start with /"


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineArgs:
    """One served model: what to load, where, and within which limits."""

    model_name_or_path: str = option(
        DEFAULT_MODEL, "Hub id or local folder of the model.", flag="model-id", env="MODEL_ID"
    )
    batch_size: int = option(
        1024, "Most texts in one forward pass; batches are measured in tokens first.", minimum=1
    )
    revision: str | None = option(None, "Branch, tag or commit of the hub model.")
    trust_remote_code: bool = option(
        False, "Run Python code that comes with the model. Whoever wrote the model then runs code here."
    )
    engine: InferenceEngine = option(
        InferenceEngine.torch,
        "Library that computes; auto measures at the first start which of those installed is the fastest for"
        " this model on this machine, among those that answer as torch does.",
    )
    model_kind: ModelKind = option(
        ModelKind.auto,
        "What the model is served as; auto is what its files say. A language model that reranks by yes or no"
        " is told by its name, or by this option.",
    )
    model_warmup: bool = option(True, "Measure the best batch size in tokens before the server is ready.")
    vector_disk_cache: bool = option(
        False,
        "Keep what texts and pairs were answered in a file under INFINITY_HOME, HF_HOME or ~/.cache, for all"
        " models and the next start.",
    )
    vector_disk_cache_mb: int = option(
        4096, "Megabytes of that file; what was written first leaves first.", minimum=1
    )
    vector_memory_cache_mb: int = option(
        0,
        "Megabytes per model for keeping the same in memory; 0 keeps nothing. With either cache, equal texts"
        " of requests at the same time are computed once.",
        minimum=0,
    )
    device: Device = option(Device.auto, "Device to compute on.")
    device_id: tuple[int, ...] = option(
        (), "Devices by number, as in `0,1`: one replica of the model on each."
    )
    lengths_via_tokenize: bool = option(
        True, "Count tokens for `usage`; the tokens that were embedded are always counted.", no_effect=True
    )
    dtype: Dtype = option(Dtype.auto, "Number format of the weights; auto chooses by device.")
    embedding_dtype: EmbeddingDtype = option(
        EmbeddingDtype.float32, "Number format of the vectors, where a request asks for no other."
    )
    token_ids: TokenIdsOf = option(
        TokenIdsOf.refuse,
        "Whose token ids a request may send instead of texts: nobody's, the model's own, which are taken as"
        " they are, or those of OpenAI's embedding models, which become texts: infinity-emb[tiktoken].",
    )
    calibration_file: str = option(
        "", "Texts, one a line, that int8 and uint8 vectors take their ranges from; the package has its own."
    )
    pooling_method: PoolingMethod = option(
        PoolingMethod.auto, "Pooling; auto is what the model's own files say."
    )
    compile: bool = option(
        False, "Use torch.compile; it does not pay here, see docs/measurements.md.", no_effect=True
    )
    bettertransformer: bool = option(
        True, "Use fast attention; it is always the fastest that the model allows.", no_effect=True
    )
    served_model_name: str = option(
        "",
        "Name in the API, and behind commas its aliases: `name,alias`. The default is the last two parts of"
        " the model id. With one model it may be given several times: the others are aliases.",
    )
    graph_file: str = option(
        "",
        "ONNX or OpenVINO file of the model's repository, as `onnx/model_O3.onnx`. The default is its float32"
        " file, or one of the `--dtype`. A float32 file that does not answer as torch does is made anew.",
    )
    onnx_file: str = option("", "Another name for `--graph-file`.")
    onnx_provider: str = option(
        "auto",
        "What onnxruntime computes with; auto follows `--device`, and takes a GPU before the CPU.",
        choices=("auto", "cpu", "cuda", "tensorrt", "rocm", "migraphx", "coreml", "openvino", "dml"),
    )
    onnx_disable_optimize: bool = option(False, "Let onnxruntime compute ONNX graphs as they are written.")
    onnx_do_not_prefer_quantized: bool = option(
        False, "Pass over quantised ONNX files; without `--dtype int8` none is preferred.", no_effect=True
    )
    max_batch_tokens: int = option(
        0, "Tokens in one forward pass; 0 measures the best number at start.", minimum=0
    )
    max_queue_items: int = option(
        32_000, "Texts that may wait per model; more are refused with 429.", env="QUEUE_SIZE", minimum=1
    )
    max_queue_tokens: int = option(
        8_000_000, "Tokens that may wait per model; more are refused with 429.", minimum=1
    )
    max_queue_wait_s: int = option(
        120,
        "Seconds that a request may be expected to wait, by the speed that was measured; more is refused with"
        " 429. 0 never refuses for that.",
        minimum=0,
    )
    request_timeout_s: int = option(
        0,
        "Seconds after which a request is dropped with 504, unless it names its own `timeout`. 0 never"
        " drops one.",
        minimum=0,
    )
    batch_timeout_s: int = option(
        300,
        "Seconds after which a forward pass is taken for hung: its requests fail and the process ends. 0"
        " waits for ever.",
        minimum=0,
    )
    idle_unload_s: int = option(
        0,
        "Seconds without a request after which the model is given up; the next request loads it again, and"
        " waits for that. 0 keeps it.",
        minimum=0,
    )
    max_queue_pixels: int = option(
        1_024_000_000,
        "Pixels of decoded images that may wait per model, at 3 bytes each; more are refused with 429.",
        minimum=1,
    )
    max_queue_audio_s: int = option(
        4 * 3600, "Seconds of decoded sound that may wait per model; more are refused with 429.", minimum=1
    )
    media_hosts: str = option(
        "",
        "Hosts that images and audio are fetched from, behind commas: `cdn.example.com,*.example.org`. Empty"
        " is every public host, and `none` is no host at all; private addresses are never fetched.",
        check=_check_hosts,
    )
    max_request_tokens: int = option(
        0,
        "Tokens in one request; more are refused with 400. 0 sets no limit; OpenAI's own is 300000.",
        minimum=0,
    )
    threads: int = option(0, "Compute threads on a CPU; 0 takes what the container may use.", minimum=0)
    tokenizer_threads: int = option(0, "Tokenizing threads; 0 chooses by cores.", minimum=0)
    served_model_aliases: tuple[str, ...] = ()
    # Arguments of 0.0.77 that code still passes: a cache, whose place is not chosen by it, and a placement.
    vector_disk_cache_path: InitVar[str | bool | None] = None
    _loading_strategy: InitVar[object] = None

    def __post_init__(self, vector_disk_cache_path: str | bool | None, _loading_strategy: object) -> None:
        if vector_disk_cache_path is not None:
            object.__setattr__(self, "vector_disk_cache", bool(vector_disk_cache_path))
        settle_options(self)
        if self.onnx_file and self.graph_file not in ("", self.onnx_file):
            raise StartupError(
                f"--graph-file {self.graph_file!r} and --onnx-file {self.onnx_file!r} are two files; give one"
            )
        object.__setattr__(self, "graph_file", self.graph_file or self.onnx_file)
        if not self.served_model_name:
            object.__setattr__(self, "served_model_name", _short_name(self.model_name_or_path))

    def to_dict(self) -> dict[str, Any]:
        """Field names and values."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def copy(self) -> EngineArgs:
        """An equal instance."""
        return replace(self)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> list[EngineArgs]:
        """Read `INFINITY_*`: one instance per `;`-separated model, single values for all of them.

        Raises StartupError for a value that does not parse or a list of another length.
        """
        return cls.from_given(given_options(cls, {}, environ))

    @classmethod
    def from_given(cls, given: Mapping[str, Given]) -> list[EngineArgs]:
        """One instance per model: values by position, a single value for all.

        given: field name → one value, or one per model.
        Raises StartupError naming what the user wrote a wrong value to.
        """
        sources = {name: column.source for name, column in given.items()}
        values = {
            each.name: [
                parse_option(cls, each, value, source=sources[each.name]) for value in given[each.name].values
            ]
            for each in option_fields(cls)
            if each.name in given
        }
        return engine_args_per_model(values, sources)


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerConfig:
    """The HTTP server: where it listens, what it lets in."""

    host: str = option("0.0.0.0", "Address to listen on.")
    port: int = option(7997, "Port to listen on; 0 takes a free one.", minimum=0, maximum=65535)
    url_prefix: str = option("", "Prefix of the API routes, such as `/api`.", check=_check_prefix)
    redirect_slash: str = option(
        "/docs", "Where GET / leads; empty switches it off.", check=_check_redirect, may_be_empty=True
    )
    log_level: str = option("info", "Least important log lines that are shown.", choices=LOG_LEVELS)
    log_format: str = option(
        "text", "How log lines are written: for people, or one JSON object each.", choices=("text", "json")
    )
    permissive_cors: bool = option(False, "Let browsers of every origin call the API.")
    api_key: tuple[str, ...] = option(
        (),
        "Key that the API asks for; may be given several times, and each of them counts. Without a key"
        " everybody is let in.",
        is_secret=True,
    )
    api_key_file: str = option(
        "", "File with more such keys, one a line; # begins a comment. It is read again when it changes."
    )
    admin_key: str = option(
        "",
        "Key that `/admin/models` asks for, where models are loaded and unloaded while the server runs; such"
        " routes exist only where there is one.",
        is_secret=True,
    )
    docs: bool = option(True, "Serve the documentation page, and /openapi.json, to everybody.")
    metrics: str = option(
        "open",
        "Who may read /metrics: everybody, who has a key, or with off nobody.",
        choices=("open", "key", "off"),
    )
    proxy_root_path: str = option("", "Path under which a proxy serves this server.")
    preload_only: bool = option(False, "Load and warm up every model, then exit.")
    max_client_batch_size: int = option(2048, "Most inputs in one request.", minimum=1)
    max_body_bytes: int = option(32 * 2**20, "Largest request body in bytes; larger ones get 413.", minimum=1)
    max_total_body_bytes: int = option(
        2**30,
        "Bytes of request bodies that may be under way at once, beyond which there are 503s.",
        minimum=1,
    )
    max_connections: int = option(
        4096, "Open connections, beyond which what is posted is refused with 503.", minimum=1
    )
    request_read_timeout_s: int = option(
        60, "Seconds that a client has to send a whole request; a slower one gets 408.", minimum=1
    )
    answer_write_timeout_s: int = option(
        60, "Seconds that an answer may lie unread before the connection is closed.", minimum=1
    )
    shutdown_timeout_s: int = option(
        25, "Seconds that accepted requests get to finish after SIGTERM or Ctrl-C.", minimum=0
    )

    def __post_init__(self) -> None:
        settle_options(self)
        if self.metrics == "key" and not (self.api_key or self.api_key_file):
            raise StartupError("--metrics key needs an --api-key or --api-key-file to ask for")
        if self.admin_key in self.api_key and self.admin_key:
            raise StartupError("--admin-key is one of the --api-key, whose clients it must be kept from")
        if self.url_prefix == "/":
            object.__setattr__(self, "url_prefix", "")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> ServerConfig:
        """Read `INFINITY_*`. Raises StartupError for a value that does not parse."""
        return cls.from_given(given_options(cls, {}, environ))

    @classmethod
    def from_given(cls, given: Mapping[str, Given]) -> ServerConfig:
        """An instance of what was given; of several values the last counts, or all of a list of texts.

        Raises StartupError naming what the user wrote a wrong value to.
        """
        return cls(
            **{
                each.name: parse_option(
                    cls,
                    each,
                    column.values if is_repeated(cls, each) else column.values[-1],
                    source=column.source,
                )
                for each in option_fields(cls)
                if (column := given.get(each.name)) is not None
            }
        )


def given_options(
    config: type, flags: Mapping[str, Sequence[Any] | None], environ: Mapping[str, str] | None = None
) -> dict[str, Given]:
    """What was given for the options of a config class: on the command line, else in the environment.

    flags: field name → the values of its flag; None or nothing where it was not used.
    """
    given: dict[str, Given] = {}
    for each in option_fields(config):
        if values := flags.get(each.name):
            given[each.name] = Given(values, f"--{flag_name(each)}")
        elif (env := _env_column(config, each, environ)) is not None:
            given[each.name] = Given(env, env_name(each))
    return given


def _env_column(config: type, each: Field[Any], environ: Mapping[str, str] | None) -> list[str] | None:
    """An option of a model is a list with one entry per model; one of the server may hold a `;` itself."""
    if config is EngineArgs:
        return env_values(each, environ)
    text = env_text(each, environ)
    return None if text is None else [text]


def engine_args_per_model(
    values: Mapping[str, Sequence[Any]], sources: Mapping[str, str] | None = None
) -> list[EngineArgs]:
    """One EngineArgs per model: values by position, a single value for all.

    values: field name → one value, or one per model. A `served_model_name` may hold aliases behind
    commas, and several of one model are its name and its aliases.
    sources: field name → what the user wrote the values to, for errors; the flag unless given.
    Raises StartupError for a list of another length, or two models of one name.
    """
    num_models = len(values.get("model_name_or_path", [DEFAULT_MODEL]))
    given = dict(values)
    if num_models == 1 and (names := given.get("served_model_name")):
        given["served_model_name"] = [",".join(names)]
    columns = {
        name: _one_per_model(name, column, num_models, sources or {}) for name, column in given.items()
    }
    if names := columns.get("served_model_name"):
        columns |= _names_and_aliases(names)
    engine_args = [
        EngineArgs(**{name: column[position] for name, column in columns.items()})
        for position in range(num_models)
    ]
    check_distinct_names(engine_args)
    return engine_args


def check_distinct_names(engine_args: Sequence[EngineArgs]) -> None:
    """Raises StartupError when two models would answer to one name."""
    seen: set[str] = set()
    for args in engine_args:
        names = {args.served_model_name, *args.served_model_aliases}
        if taken := names & seen:
            raise StartupError(
                f"two models are served as {min(taken)!r}; give each a --served-model-name of its own"
            )
        seen |= names


def _one_per_model(
    name: str, column: Sequence[Any], num_models: int, sources: Mapping[str, str]
) -> Sequence[Any]:
    if len(column) == 1:
        return list(column) * num_models
    if len(column) != num_models:
        flag = next(f"--{flag_name(each)}" for each in option_fields(EngineArgs) if each.name == name)
        raise StartupError(
            f"{sources.get(name, flag)} was given {len(column)} values for {num_models} models; give one for"
            " all, or one per model"
        )
    return column


def _names_and_aliases(names: Sequence[str]) -> dict[str, Sequence[Any]]:
    """Each `name,alias,alias` in two columns; an empty name stands for the default."""
    split = [list(dict.fromkeys(part.strip() for part in each.split(","))) for each in names]
    return {
        "served_model_name": [parts[0] for parts in split],
        "served_model_aliases": [tuple(filter(None, parts[1:])) for parts in split],
    }


def _short_name(model_name_or_path: str) -> str:
    return "/".join(model_name_or_path.rstrip("/").split("/")[-2:])
