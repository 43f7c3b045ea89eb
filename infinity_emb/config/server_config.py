"""The options of the HTTP server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from infinity_emb.config.environment import Given, collect_given, parse_given
from infinity_emb.config.options import option
from infinity_emb.config.parsing import parse_keywords
from infinity_emb.errors import StartupError

LOG_LEVELS = ("critical", "error", "warning", "info", "debug", "trace")

# As browsers write it in the header `Origin`. Source: RFC 6454 section 6.2
_ORIGIN = re.compile(r"[a-z][a-z0-9+.-]*://([a-z0-9._-]+|\[[0-9a-f:.]+\])(:[0-9]{1,5})?")
_PREFIX = re.compile(r"(/[^/\s?#{}]+)*|/")


def _check_prefix(value: str) -> str | None:
    return None if _PREFIX.fullmatch(value) else "must start with / and not end with /, such as /api"


def _check_origins(values: tuple[str, ...]) -> str | None:
    if "*" in values:
        return "names origins one by one; --permissive-cors allows all"
    if all(map(_ORIGIN.fullmatch, values)):
        return None
    return (
        "must have the form of https://app.example.com, in lower case, with a port unless it is the default"
    )


def _check_redirect(value: str) -> str | None:
    return None if not value or value.startswith("/") else "must be empty or start with /"


@dataclass(frozen=True, kw_only=True)
class HttpOptions:
    """Addresses, paths and logs."""

    host: str = option("0.0.0.0", "Address to listen on.", ":: takes IPv4 and IPv6.")
    port: int = option(7997, "Port to listen on; 0 takes a free one.", minimum=0, maximum=65535)
    api_servers: int | str = option(
        1,
        "Processes that accept, tokenize and encode.",
        "If several, one more computes. Useful if requests saturate a CPU core while the device waits; Linux"
        " only. `auto` chooses by cores, model and options; operating.md says how, and what differs.",
        minimum=1,
        maximum=64,
        has_auto=True,
    )
    url_prefix: str = option("", "Prefix of the API routes, such as /api.", check=_check_prefix)
    proxy_root_path: str = option(
        "",
        "Path under which a proxy serves this server.",
        "Such as /api. The proxy may strip it or not.",
        check=_check_prefix,
    )
    redirect_slash: str = option(
        "/ui",
        "Redirect target of GET /; empty turns it off.",
        "/ui and /docs are found below --url-prefix too; without the page /ui, / redirects to /docs.",
        check=_check_redirect,
        may_be_empty=True,
    )
    strict_model_names: bool = option(
        False,
        "Refuse unknown model names even if one model is served.",
        "By default a single model serves requests for any name, and a warning is logged.",
    )
    ui: bool = option(True, "Serve the page at /ui, without a key.", "The API calls of the page need one.")
    docs: bool = option(True, "Serve /docs and /openapi.json, without a key.")
    log_level: str = option("info", "Minimum log level.", choices=LOG_LEVELS)
    log_format: str = option("text", "Log as text or as JSON lines.", choices=("text", "json"))
    otel: bool = option(
        False,
        "Send traces with OpenTelemetry.",
        "Configured by the standard variables, such as OTEL_EXPORTER_OTLP_ENDPOINT. Needs"
        " `infinity-emb[otel]`.",
    )
    preload_only: bool = option(False, "Load and warm up every model, then exit.")


@dataclass(frozen=True, kw_only=True)
class AccessOptions:
    """Keys, and the routes that need one."""

    api_key: tuple[str, ...] = option(
        (),
        "API key that clients must send; repeatable.",
        "Each of several keys is accepted. Without keys, the API is public.",
        is_secret=True,
        when_empty="serve without a key",
    )
    api_key_file: str = option(
        "",
        "File with API keys, one per line.",
        "A key has 8 characters or more. A # at the start of a line or after a space begins a comment. The"
        " file is read again when it changes.",
        when_empty="serve without a key",
    )
    admin_key: str = option(
        "",
        "Key for /admin/models, which loads and unloads models.",
        "The routes exist only when a key is set.",
        is_secret=True,
        when_empty="serve without /admin/models",
    )
    metrics: str = option(
        "open", "Access to /metrics: public, authenticated or disabled.", choices=("open", "key", "off")
    )
    permissive_cors: bool = option(False, "Allow pages of every origin to call the API.")
    cors_origins: tuple[str, ...] = option(
        (),
        "Origin whose pages may call the API from a browser; repeatable.",
        "Such as https://app.example.com, or http://localhost:3000.",
        check=_check_origins,
        when_empty="allow no origin",
    )


@dataclass(frozen=True, kw_only=True)
class BatchOptions:
    """OpenAI's Files and Batch APIs."""

    batch_dir: str = option(
        "",
        "Folder for /v1/files and /v1/batches, which exist only with it.",
        "Holds uploaded files, results and unfinished batches, which continue after a restart. One server at"
        " a time can use it. Each API key sees its own files and batches; without keys, clients see all.",
    )
    batch_max_file_mb: int = option(200, "Maximum size of an uploaded file in MB.", minimum=1)
    batch_max_total_mb: int = option(
        10_240,
        "Maximum size of all files in --batch-dir in MB.",
        "Further uploads get 507; they leave a tenth to results. Files are deleted after 30 days.",
        minimum=1,
    )


@dataclass(frozen=True, kw_only=True)
class ConnectionLimits:
    """Limits on the size, number and duration of requests and connections."""

    max_client_batch_size: int = option(2048, "Maximum number of inputs per request.", minimum=1)
    max_body_bytes: int = option(
        32 * 2**20,
        "Maximum size of a request body.",
        "Larger ones get 413, and so do those above 16 MiB with characters beyond U+FFFF, such as emoji.",
        minimum=1,
    )
    max_total_body_bytes: int = option(
        2**30,
        "Maximum size of all requests and responses held.",
        "Texts and vectors count with their size in memory until the response is built, and the response"
        " until the client has read it. Further requests get 503; one client may hold five sixths.",
        minimum=1,
    )
    max_connections: int = option(
        4096,
        "Maximum open connections.",
        "Fewer if the system allows fewer open files. On further connections, probes are answered and POST"
        " requests get 503.",
        minimum=1,
    )
    keep_alive_s: int = option(
        120,
        "Time to keep an idle connection open after a response.",
        "Longer than the timeout of proxies, which then never send a request on a connection that is being"
        " closed: nginx and AWS use 60 s, Go 90 s.",
        minimum=1,
    )
    request_read_timeout_s: int = option(
        60, "Maximum time to receive a request.", "Slower ones get 408.", minimum=1
    )
    response_write_timeout_s: int = option(
        60,
        "Maximum time without progress while sending a response.",
        "The connection is closed.",
        minimum=1,
        old_names=("answer_write_timeout_s",),
    )
    shutdown_timeout_s: int = option(
        25, "Time for accepted requests to finish after SIGTERM.", "Or after Ctrl-C.", minimum=0
    )


# Heading in the help and in docs/settings.md → the options below it.
SERVER_PARTS: Mapping[str, type] = {
    "Server": HttpOptions,
    "Access": AccessOptions,
    "Connections": ConnectionLimits,
    "Batch API": BatchOptions,
}


@dataclass(frozen=True, kw_only=True)
class _AllOptions(BatchOptions, ConnectionLimits, AccessOptions, HttpOptions):
    """Every option of the server, with a value of the declared type."""


@dataclass(frozen=True, kw_only=True)
class ServerConfig(_AllOptions):
    """The HTTP server: address, access and limits.

    Takes options as keywords, as text or as values of the declared type; None stands for the default.
    Raises StartupError for a wrong value.
    """

    # Type checkers see the constructor that the fields imply.
    if not TYPE_CHECKING:

        def __init__(self, **given) -> None:
            values = parse_keywords(type(self), given)
            for name in ("url_prefix", "proxy_root_path"):
                if values.get(name) == "/":
                    values[name] = ""
            super().__init__(**values)
            self._check_keys()

    def _check_keys(self) -> None:
        if self.metrics == "key" and not (self.api_key or self.api_key_file):
            raise StartupError("--metrics key needs an --api-key or --api-key-file")
        if self.admin_key and self.admin_key.strip() in self.api_key:
            raise StartupError("--admin-key must differ from every --api-key")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> ServerConfig:
        """Read `INFINITY_*`. Raises StartupError for a wrong value."""
        return cls.from_given(collect_given(cls, {}, environ, is_per_model=False))

    @classmethod
    def from_given(cls, given: Mapping[str, Given]) -> ServerConfig:
        """Make an instance; the last one of several values counts, or all for a repeatable option.

        Raises StartupError naming the flag or variable that a wrong value was given to.
        """
        return cls(**parse_given(cls, given))
