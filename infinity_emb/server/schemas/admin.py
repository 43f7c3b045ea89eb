"""`/admin/models`: the options of a model to load, and what becomes of it."""

from __future__ import annotations

from dataclasses import Field as OptionField
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from infinity_emb.config import EngineArgs, engine_args_per_model
from infinity_emb.errors import StartupError
from infinity_emb.options import flag_name, option_choices, option_fields, option_kind, parse_option
from infinity_emb.server.schemas.models import ModelEntry
from infinity_emb.server.schemas.task import JsonBody
from infinity_emb.server.validation import body_error

_JSON_TYPES: dict[type, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer"},
    tuple: {"type": "array", "items": {"type": "integer", "minimum": 0}},
}
# As a flag without its dashes: `model_id`, `max_batch_tokens`.
_OPTIONS: dict[str, OptionField[Any]] = {
    flag_name(each).replace("-", "_"): each
    for each in option_fields(EngineArgs)
    if not each.metadata["no_effect"]
}


def _document_options(schema: dict[str, Any]) -> None:
    """As `config.py` declares them."""
    schema["properties"] = {name: _documented(each) for name, each in _OPTIONS.items()}
    schema["additionalProperties"] = False


def _documented(each: OptionField[Any]) -> dict[str, Any]:
    choices = option_choices(EngineArgs, each)
    kind: dict[str, Any] = _JSON_TYPES.get(option_kind(EngineArgs, each), {"type": "string"})
    limits = {name: each.metadata[name] for name in ("minimum", "maximum") if each.metadata[name] is not None}
    return {
        **kind,
        **({"enum": list(choices)} if choices else {}),
        **limits,
        "description": each.metadata["help"],
    }


class LoadRequest(JsonBody):
    """A model and its options, which are those of the command line; what is left out has its default."""

    model_config = ConfigDict(extra="allow", json_schema_extra=_document_options, protected_namespaces=())

    model_id: str = Field(min_length=1)

    def engine_args(self) -> EngineArgs:
        """Raises a 422 for an option that does not exist, or that cannot be what it was given."""
        given = {"model_id": self.model_id, **(self.model_extra or {})}
        values = {_option(name).name: [_parsed(name, value)] for name, value in given.items()}
        [args] = engine_args_per_model(values)
        return args


def _option(name: str) -> OptionField[Any]:
    if name not in _OPTIONS:
        message = f"is no option of a model; the options are {', '.join(_OPTIONS)}"
        raise body_error("extra_forbidden", message, loc=[name])
    return _OPTIONS[name]


def _parsed(name: str, value: object) -> Any:
    try:
        return parse_option(EngineArgs, _option(name), value, source=name)
    except StartupError as exc:
        raise body_error("option", exc.reason.removeprefix(f"{name} "), loc=[name], given=value) from None


class AdminModelList(BaseModel):
    """Every served model, and the names of those that are being loaded, unloaded or reloaded."""

    data: list[ModelEntry]
    changing: list[str]
    object: Literal["list"]


class UnloadedModel(BaseModel):
    """A model that is served no longer."""

    id: str
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
