"""The options of one served model: flat for users, and in parts for the layers below."""

from __future__ import annotations

import inspect
import os
from collections.abc import Mapping, Sequence
from dataclasses import InitVar, dataclass, fields, replace
from typing import TYPE_CHECKING, Any, TypeVar

from infinity_emb.config.environment import Given, collect_given
from infinity_emb.config.limits import BatchLimits, CacheOptions, MediaLimits, QueueLimits
from infinity_emb.config.model_options import (
    DEFAULT_MODEL,
    ComputeOptions,
    IgnoredOptions,
    LoadOptions,
    ModelOptions,
)
from infinity_emb.config.options import describe_keywords, get_option, list_options
from infinity_emb.config.parsing import parse_keywords, parse_option, to_unicode
from infinity_emb.errors import StartupError
from infinity_emb.types import MAX_MODEL_NAME_CHARS

# Heading in the help and in docs/settings.md → the options below it.
ENGINE_PARTS: Mapping[str, type] = {
    "Model": ModelOptions,
    "Computation": ComputeOptions,
    "Batches": BatchLimits,
    "Queue": QueueLimits,
    "Cache": CacheOptions,
    "Media": MediaLimits,
    "Deprecated, ignored": IgnoredOptions,
}

_Part = TypeVar("_Part")


# Dataclasses collect the fields of the last base first.
@dataclass(frozen=True, kw_only=True)
class _AllOptions(IgnoredOptions, MediaLimits, CacheOptions, QueueLimits, LoadOptions):
    """Every option of a model, with a value of the declared type."""


@dataclass(frozen=True, kw_only=True)
class EngineArgs(_AllOptions):
    """One served model: what to load, where, and within which limits.

    Takes the model, and options as keywords, as text or as values of the declared type; None stands for the
    default. Raises StartupError for a wrong value.
    """

    __signature__ = inspect.signature(_AllOptions)  # for `help` and completion

    # Keywords of 0.0.77 that are not fields: any path turns the disk cache on; the strategy is ignored.
    vector_disk_cache_path: InitVar[str | bool | None] = ""
    _loading_strategy: InitVar[object] = None

    # Type checkers see the constructor that the fields imply.
    if not TYPE_CHECKING:

        def __init__(
            self,
            model_name_or_path: str | None = None,
            *,
            vector_disk_cache_path: str | bool | None = None,
            _loading_strategy: object = None,
            **given,
        ) -> None:
            given["model_name_or_path"] = model_name_or_path
            if vector_disk_cache_path:
                given["vector_disk_cache"] = True
            values = parse_keywords(type(self), given)
            if not values.get("served_model_name"):
                values["served_model_name"] = _shorten_name(values["model_name_or_path"])
            values["served_model_name"] = to_unicode(values["served_model_name"])
            super().__init__(**values)
            self._check_name_lengths()

    def _check_name_lengths(self) -> None:
        for name in self.list_names():
            if len(name) > MAX_MODEL_NAME_CHARS:
                raise StartupError(
                    f"--served-model-name {name[:40]!r}... has {len(name)} characters, the limit is"
                    f" {MAX_MODEL_NAME_CHARS}; give a shorter one"
                )

    @property
    def load(self) -> LoadOptions:
        """Options of the backends."""
        return self._select(LoadOptions)

    @property
    def queue(self) -> QueueLimits:
        """Limits of admission and waiting."""
        return self._select(QueueLimits)

    @property
    def cache(self) -> CacheOptions:
        """Options of the result cache."""
        return self._select(CacheOptions)

    @property
    def media(self) -> MediaLimits:
        """Limits of fetching images and audio."""
        return self._select(MediaLimits)

    def _select(self, part: type[_Part]) -> _Part:
        return part(**{each.name: getattr(self, each.name) for each in fields(part)})  # type: ignore[arg-type]

    def list_names(self) -> list[str]:
        """List the served name and its aliases."""
        return [self.served_model_name, *self.served_model_aliases]

    def to_dict(self) -> dict[str, Any]:
        """Return field names and values."""
        return {each.name: getattr(self, each.name) for each in fields(self)}

    def copy(self) -> EngineArgs:
        """Return an equal instance."""
        return replace(self)

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None) -> list[EngineArgs]:
        """Read `INFINITY_*`: one instance per `;`-separated model, single values for all of them.

        Raises StartupError for a wrong value, or a list of another length.
        """
        return cls.from_given(collect_given(cls, {}, environ, is_per_model=True))

    @classmethod
    def from_given(cls, given: Mapping[str, Given]) -> list[EngineArgs]:
        """Make one instance per model: values by position, a single value for all.

        given: field name → one value, or one per model.
        Raises StartupError naming the flag or variable that a wrong value was given to.
        """
        values = {
            option.name: [parse_option(option, value, source=source) for value in texts]
            for option in list_options(cls)
            if option.name in given
            for texts, source in [given[option.name]]
        }
        return engine_args_per_model(values, {name: source for name, (_, source) in given.items()})


EngineArgs.__doc__ = f"{inspect.cleandoc(EngineArgs.__doc__ or '')}\n\n{describe_keywords(EngineArgs)}"


def engine_args_per_model(
    values: Mapping[str, Sequence[Any]], sources: Mapping[str, str] | None = None
) -> list[EngineArgs]:
    """Make one EngineArgs per model: values by position, a single value for all.

    values: field name → one value, or one per model. A `served_model_name` may hold comma-separated
        aliases, and several names of a single model are its name and its aliases.
    sources: field name → the flag or variable that the values were given to, for errors; default: the flag.
    Raises StartupError for a list of another length, or two models with one name.
    """
    num_models = len(values.get("model_name_or_path", [DEFAULT_MODEL]))
    given = dict(values)
    if num_models == 1 and (names := given.get("served_model_name")):
        given["served_model_name"] = [",".join(names)]
    columns = {name: _repeat(name, column, num_models, sources or {}) for name, column in given.items()}
    if names := columns.get("served_model_name"):
        columns |= _split_aliases(names)
    engine_args = [
        EngineArgs(**{name: column[index] for name, column in columns.items()}) for index in range(num_models)
    ]
    check_distinct_names(engine_args)
    return engine_args


def check_distinct_names(engine_args: Sequence[EngineArgs]) -> None:
    """Raise StartupError when two models have one served name."""
    seen: set[str] = set()
    for args in engine_args:
        names = set(args.list_names())
        if taken := names & seen:
            raise StartupError(
                f"two models are served as {min(taken)!r}; give each a different --served-model-name"
            )
        seen |= names


def _repeat(name: str, column: Sequence[Any], num_models: int, sources: Mapping[str, str]) -> Sequence[Any]:
    """Return one value per model."""
    if len(column) == 1:
        return list(column) * num_models
    if len(column) != num_models:
        source = sources.get(name) or get_option(EngineArgs, name).flag
        raise StartupError(
            f"{source} was given {len(column)} values for {num_models} models; give one for all, or one per"
            " model"
        )
    return column


def _split_aliases(names: Sequence[str]) -> dict[str, Sequence[Any]]:
    """Split each `name,alias,alias`; an empty name stands for the default."""
    split = [list(dict.fromkeys(part.strip() for part in name.split(","))) for name in names]
    return {
        "served_model_name": [parts[0] for parts in split],
        "served_model_aliases": [tuple(map(to_unicode, filter(None, parts[1:]))) for parts in split],
    }


def _shorten_name(model_name_or_path: str) -> str:
    """Return the last two parts of an id or a path, without parts such as `.` and `~`."""
    parts = [part for part in model_name_or_path.split("/") if part not in ("", ".", "..", "~")]
    return "/".join(parts[-2:]) or os.path.basename(os.path.abspath(os.path.expanduser(model_name_or_path)))
