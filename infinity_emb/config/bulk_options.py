"""The options of a bulk job, run by `embed`, `rerank` and `classify`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from infinity_emb.config.environment import Given, parse_given
from infinity_emb.config.options import option
from infinity_emb.config.parsing import parse_keywords
from infinity_emb.errors import StartupError

INPUT_FORMATS = ("auto", "jsonl", "csv", "tsv", "parquet", "arrow", "text")
OUTPUT_FORMATS = ("auto", "parquet", "jsonl", "npy", "lance")


def _check_url(value: str) -> str | None:
    is_fine = not value or value.startswith(("http://", "https://"))
    return None if is_fine else "must start with http:// or https://"


@dataclass(frozen=True, kw_only=True)
class FileOptions:
    """The files to read and to write."""

    output: str = option(
        "",
        "File to write, or a folder for several shards; required.",
        "A name that ends in /, or an existing folder, selects a folder.",
        short="-o",
    )
    input_format: str = option(
        "auto", "Format of the input; auto reads the file names.", choices=INPUT_FORMATS
    )
    output_format: str = option(
        "auto",
        "Format of the output; auto reads its name.",
        "Default for a folder: Parquet. lance needs the package pylance.",
        choices=OUTPUT_FORMATS,
    )
    text_column: str = option("text", "Column of the texts; for `rerank`, of the documents.")
    keep_columns: tuple[str, ...] = option(
        (), "Column to copy to the output; repeatable.", "Default: all. `none` copies no column."
    )
    output_column: str = option(
        "",
        "Name of the result column.",
        "Default: `embedding`, `sparse_embedding`, `score` or `classification`.",
    )
    rows_per_shard: int = option(
        0, "Input rows per shard of a folder; 0 means 1,000,000.", "A file has one shard.", minimum=0
    )
    overwrite: bool = option(False, "Replace the output, and do not resume an earlier run.")


@dataclass(frozen=True, kw_only=True)
class RemoteOptions:
    """A running server to use instead of a model in this process."""

    url: str = option(
        "",
        "Address of a running server to compute with.",
        "With the prefix of its routes, such as http://localhost:7997/v1. Options of the model other than"
        " its id have no effect then.",
        check=_check_url,
    )
    url_api_key: str = option("", "API key of that server.", is_secret=True)
    max_retries: int = option(
        8,
        "Maximum retries of a request to the server before the job stops.",
        "The pause doubles each time, up to a minute, unless the server says how long to wait.",
        minimum=0,
    )
    concurrency: int = option(0, "Concurrent requests; 0 means 16, or 8 with --url.", minimum=0)
    inputs_per_request: int = option(
        0, "Maximum inputs per request; 0 means 256, or 64 with --url.", minimum=0
    )


@dataclass(frozen=True, kw_only=True)
class TruncationOptions:
    """Handling of texts over the limit of the model."""

    truncate: bool = option(
        True, "Truncate texts that are too long.", "With --no-truncate they become bad rows."
    )


@dataclass(frozen=True, kw_only=True)
class EmbedJobOptions(TruncationOptions):
    """Options of `embed`."""

    sparse: bool = option(False, "Write sparse vectors.", "`embed` only.")
    dimensions: int = option(
        0,
        "Truncate vectors to this many dimensions and normalize them; 0 keeps all.",
        "`embed` only.",
        minimum=0,
    )
    prompt: str = option("", "Text to prepend to each input.", "`embed` only.")
    prompt_name: str = option(
        "", "Name of one of the model's prompts, to prepend to each input.", "`embed` only."
    )
    input_type: str = option(
        "", "Kind of the texts: query, document, or a task or prompt of the model.", "`embed` only."
    )


@dataclass(frozen=True, kw_only=True)
class ClassifyJobOptions(TruncationOptions):
    """Options of `classify`."""

    raw_scores: bool = option(
        False, "Skip the activation function of the model.", "`rerank` and `classify` only."
    )


@dataclass(frozen=True, kw_only=True)
class RerankJobOptions(ClassifyJobOptions):
    """Options of `rerank`."""

    query: str = option("", "One query for all rows, in place of a column.", "`rerank` only.")
    query_column: str = option("query", "Column that holds the query of each row.", "`rerank` only.")


@dataclass(frozen=True, kw_only=True)
class _AllOptions(RerankJobOptions, EmbedJobOptions, RemoteOptions, FileOptions):
    """Every option of a bulk job, with a value of the declared type."""


@dataclass(frozen=True, kw_only=True)
class BulkOptions(_AllOptions):
    """The options of one job. Raises StartupError for a wrong value."""

    # Type checkers see the constructor that the fields imply.
    if not TYPE_CHECKING:

        def __init__(self, **given: Any) -> None:
            super().__init__(**parse_keywords(type(self), given))
            if not self.output:
                raise StartupError("no output is given; name a file or a folder with -o")

    @classmethod
    def from_given(cls, given: Mapping[str, Given]) -> BulkOptions:
        """Parse what was given. Raises StartupError naming the flag or variable with a wrong value."""
        return cls(**parse_given(cls, given))


# Heading in the help and in docs/settings.md → the options below it.
_SHARED_PARTS: Mapping[str, type] = {"Files": FileOptions, "Server": RemoteOptions}
BULK_PARTS: Mapping[str, Mapping[str, type]] = {
    "embed": {**_SHARED_PARTS, "Embeddings": EmbedJobOptions},
    "rerank": {**_SHARED_PARTS, "Scores": RerankJobOptions},
    "classify": {**_SHARED_PARTS, "Labels": ClassifyJobOptions},
}
