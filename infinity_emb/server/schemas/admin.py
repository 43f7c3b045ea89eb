"""`/admin/models`: the options of a model to load, and the responses."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from infinity_emb.config.engine_args import EngineArgs, engine_args_per_model
from infinity_emb.config.options import Option, list_options
from infinity_emb.config.parsing import did_you_mean, parse_option
from infinity_emb.errors import StartupError
from infinity_emb.server.request_errors import body_error
from infinity_emb.server.schemas.common import JsonBody
from infinity_emb.server.schemas.models import ModelEntry
from infinity_emb.types import MAX_MODEL_NAME_CHARS

_JSON_TYPES: dict[type, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    tuple: {"type": "array", "items": {"type": "integer", "minimum": 0}},
}
# By names like `model_id` and `max_batch_tokens`.
_OPTIONS: dict[str, Option] = {
    option.key: option for option in list_options(EngineArgs) if not option.spec.is_ignored
}
_OLD_NAMES = {name: option for option in _OPTIONS.values() for name in option.spec.old_names}


def _document_options(schema: dict[str, Any]) -> None:
    """Document the options as `config` declares them."""
    schema["properties"] = {name: _document_option(option) for name, option in _OPTIONS.items()}
    schema["additionalProperties"] = False


def _document_option(option: Option) -> dict[str, Any]:
    kind: dict[str, Any] = _JSON_TYPES.get(option.kind, {"type": "string"})
    limits = {"minimum": option.spec.minimum, "maximum": option.spec.maximum}
    return {
        **kind,
        **({"enum": list(option.choices)} if option.choices else {}),
        **{name: limit for name, limit in limits.items() if limit is not None},
        "description": f"{option.spec.help} {option.spec.details}".strip(),
    }


class LoadRequest(JsonBody):
    """A model and its options, which are those of the command line with the same defaults."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_document_options, protected_namespaces=())

    model_id: str = Field(min_length=1, max_length=MAX_MODEL_NAME_CHARS)

    def engine_args(self) -> EngineArgs:
        """Parse the options. Raises a 422 for an unknown option or an invalid value."""
        given = {"model_id": self.model_id, **(self.model_extra or {})}
        values = {_find_option(name).name: [_parse_value(name, value)] for name, value in given.items()}
        try:
            [args] = engine_args_per_model(values)
        except StartupError as exc:  # of the names that the options make together
            raise body_error("option", exc.reason, loc=["served_model_name"]) from None
        return args


def _find_option(name: str) -> Option:
    if name in _OLD_NAMES:
        return _OLD_NAMES[name]
    if name not in _OPTIONS:
        nearest = did_you_mean(name, list(_OPTIONS))
        hint = nearest or f"; the options are {', '.join(_OPTIONS)}"
        message = f"unknown option{hint}"
        raise body_error("extra_forbidden", message, loc=[name])
    return _OPTIONS[name]


def _parse_value(name: str, value: object) -> Any:
    try:
        return parse_option(_find_option(name), value, source=name)
    except StartupError as exc:
        raise body_error("option", exc.reason.removeprefix(f"{name} "), loc=[name], given=value) from None


class AdminModelList(BaseModel):
    """The served models and the names of those being loaded, unloaded or reloaded."""

    data: list[ModelEntry]
    changing: list[str] = Field(description="Names of models being loaded, unloaded or reloaded.")
    object: Literal["list"]


class UnloadedModel(BaseModel):
    """A model that is no longer served."""

    id: str = Field(description="Served name.")
    object: Literal["model"]
    deleted: Literal[True]


LOAD_EXAMPLES: dict[str, Any] = {
    "from the hub": {"value": {"model_id": "sentence-transformers/all-MiniLM-L6-v2"}},
    "with options": {
        "value": {
            "model_id": "BAAI/bge-reranker-base",
            "served_model_name": "reranker",
            "engine": "torch",
            "idle_unload_s": 600,
        }
    },
}
