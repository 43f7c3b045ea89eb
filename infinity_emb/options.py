"""What an option is: how a field declares one, what it is called, and how given text becomes its value.

Knows no option by name but INFINITY_PORT, which Kubernetes may set too; the options stand in `config.py`.
Reads the environment only when an entry point asks for it.
"""

from __future__ import annotations

import difflib
import functools
import os
import re
import types
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import Field, field, fields
from enum import Enum
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from infinity_emb.errors import StartupError

ENV_PREFIX = "INFINITY_"
# Variables that are no options: each module that keeps files reads its own.
ENV_NAMES_OF_FOLDERS = {
    "HF_HOME": "Model files from the hub; `~/.cache/huggingface` where it is not set.",
    "INFINITY_HOME": "What int8 and uint8 vectors take their ranges from, found once per model, the file of"
    " `--vector-disk-cache`, what `onnx`, `openvino` and `ctranslate2` make of a model, and what"
    " `--engine auto` chose; `HF_HOME`, `XDG_CACHE_HOME` or `~/.cache` where it is not set, and there"
    " `infinity_emb/calibration`, `infinity_emb/vectors`, `infinity_emb/engines` and those engines' own"
    " folders.",
}
# Variables of infinity_emb 0.0.77 for things that this version does not do; set in many compose files.
ENV_NAMES_WITHOUT_EFFECT = {
    "INFINITY_ANONYMOUS_USAGE_STATS": "There is no telemetry.",
    "INFINITY_CALIBRATION_DATASET_URL": "No texts are downloaded; `--calibration-file` names your own.",
    "INFINITY_DISABLE_OPTIMUM": "Deprecated there already.",
    "DO_NOT_TRACK": "There is no telemetry.",
}
_TRUE_WORDS = ("true", "t", "1", "yes", "y", "on")
_FALSE_WORDS = ("false", "f", "0", "no", "n", "off")
# Kubernetes gives every container the addresses of the services around it; for a service that is named
# `infinity` the names look like ours, and INFINITY_PORT holds an address.
# Source: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_KUBERNETES_NAME = re.compile(r"INFINITY_(SERVICE_(HOST|PORT.*)|PORT_\d+_(TCP|UDP|SCTP).*)")
_KUBERNETES_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


class Given(NamedTuple):
    """The values that were given for one option, and what the user wrote them to."""

    values: Sequence[Any]
    source: str  # "--port" or "INFINITY_PORT"


def option(
    default: Any,
    help: str,
    *,
    flag: str | None = None,
    env: str | None = None,
    minimum: int | None = None,
    maximum: int | None = None,
    choices: tuple[str, ...] = (),
    check: Callable[[Any], str | None] | None = None,
    may_be_empty: bool = False,
    no_effect: bool = False,
    is_secret: bool = False,
) -> Any:
    """Declare one option as a dataclass field; one of type `tuple[str, ...]` may be given several times.

    flag: the command line name where it differs from the field's; env: likewise without `INFINITY_`.
    choices: the words that a text may be; an enum field has its own.
    check: says what is wrong with a value ("must start with /"), or None.
    may_be_empty: empty text is a value of its own; otherwise it stands for the default.
    no_effect: accepted so that old command lines keep working, and changes nothing.
    is_secret: left out of the config's `repr`.
    """
    metadata = {
        "help": help,
        "flag": flag,
        "env": env,
        "minimum": minimum,
        "maximum": maximum,
        "choices": choices,
        "check": check,
        "may_be_empty": may_be_empty,
        "no_effect": no_effect,
    }
    return field(default=default, repr=not is_secret, metadata=metadata)


def option_fields(config: type) -> Iterator[Field[Any]]:
    """The fields of a config class that were declared with `option`, in order."""
    return (each for each in fields(config) if "help" in each.metadata)


def option_kind(config: type, each: Field[Any]) -> type:
    """bool, int, str, tuple or an Enum: what the option's field is annotated with, without its `| None`."""
    hint = _type_hints(config)[each.name]
    if get_origin(hint) is types.UnionType:
        hint = next(part for part in get_args(hint) if part is not types.NoneType)
    kind: type = get_origin(hint) or hint
    return kind


def is_repeated(config: type, each: Field[Any]) -> bool:
    """Whether the option is all values that it was given, `tuple[str, ...]`, and not the last."""
    hint = _type_hints(config)[each.name]
    return get_origin(hint) is tuple and get_args(hint)[0] is str


def option_choices(config: type, each: Field[Any]) -> tuple[str, ...]:
    """The words that the option may be; empty where it is free."""
    kind = option_kind(config, each)
    if issubclass(kind, Enum):
        return tuple(kind.__members__)  # aliases among them
    choices: tuple[str, ...] = each.metadata["choices"]
    return choices


def flag_name(each: Field[Any]) -> str:
    """`max_batch_tokens` → `max-batch-tokens`, or the name the field asks for."""
    return each.metadata["flag"] or each.name.replace("_", "-")


def env_name(each: Field[Any]) -> str:
    """`max_batch_tokens` → `INFINITY_MAX_BATCH_TOKENS`, or the name the field asks for."""
    return ENV_PREFIX + (each.metadata["env"] or flag_name(each).replace("-", "_").upper())


def default_text(each: Field[Any]) -> str:
    """The default as a user would write it; empty where there is none."""
    if isinstance(each.default, bool):
        return str(each.default).lower()
    return "" if each.default in (None, ()) else str(each.default)


def env_text(each: Field[Any], environ: Mapping[str, str] | None = None) -> str | None:
    """The text of this option's environment variable; None when it is not set."""
    raw = (os.environ if environ is None else environ).get(env_name(each))
    is_set_by_kubernetes = env_name(each) == "INFINITY_PORT" and _KUBERNETES_ADDRESS.match(raw or "")
    return None if is_set_by_kubernetes else raw


def env_values(each: Field[Any], environ: Mapping[str, str] | None = None) -> list[str] | None:
    """The `;`-separated values of this option's environment variable; None when it is not set."""
    raw = env_text(each, environ)
    return None if raw is None else [part.strip() for part in raw.strip().removesuffix(";").split(";")]


def unknown_env_names(environ: Mapping[str, str], *configs: type) -> dict[str, str | None]:
    """`INFINITY_*` variables that no option reads, each with the nearest name that exists.

    Left out are the variables of infinity_emb 0.0.77 and of Kubernetes: nobody who set them is mistaken.
    """
    known = [env_name(each) for config in configs for each in option_fields(config)]
    unknown = [
        name
        for name in environ
        if name.startswith(ENV_PREFIX)
        and name not in known
        and name not in ENV_NAMES_OF_FOLDERS
        and name not in ENV_NAMES_WITHOUT_EFFECT
        and not _KUBERNETES_NAME.fullmatch(name)
    ]
    return {name: _nearest(name, known) for name in unknown}


def _nearest(name: str, known: Sequence[str]) -> str | None:
    """By what stands behind the prefix, which would make all of them alike."""
    endings = {each.removeprefix(ENV_PREFIX): each for each in known}
    matches = difflib.get_close_matches(name.removeprefix(ENV_PREFIX), endings, n=1)
    return endings[matches[0]] if matches else None


def settle_options(config: Any) -> None:
    """Give each option of a config its declared type; None stands for the default.

    For `__post_init__` of a frozen dataclass. Raises StartupError naming the flag.
    """
    for each in option_fields(type(config)):
        value = parse_option(type(config), each, getattr(config, each.name), source=f"--{flag_name(each)}")
        object.__setattr__(config, each.name, value)


def parse_option(config: type, each: Field[Any], value: Any, *, source: str) -> Any:
    """A given value as the type that the option declares; None, and mostly "", stand for the default.

    source: what the user wrote the value to, `--port` or `INFINITY_PORT`.
    Raises StartupError naming it.
    """
    if value is not None and is_repeated(config, each):
        return _as_texts(value, source)
    is_blank = isinstance(value, str) and not value.strip()
    if value is None or (is_blank and not each.metadata["may_be_empty"]):
        return each.default
    choices = option_choices(config, each)
    if choices and str(value) not in choices:
        raise StartupError(_wrong_choice(source, value, choices))
    parsed = _convert(option_kind(config, each), value, source)
    _check_limits(each, parsed, source)
    return parsed


@functools.cache
def _type_hints(config: type) -> dict[str, Any]:
    return get_type_hints(config)


def _convert(kind: type, value: Any, source: str) -> Any:
    if issubclass(kind, Enum):
        return kind[str(value)]
    if kind is bool:
        return _as_bool(value, source)
    if kind is int:
        return _as_int(value, source)
    if kind is tuple:
        return _as_numbers(value, source)
    if not isinstance(value, str):
        raise StartupError(f"{source} {value!r} is not text")
    return value


def _as_bool(value: Any, source: str) -> bool:
    text = str(value).strip().lower()
    if text not in _TRUE_WORDS and text not in _FALSE_WORDS:
        raise StartupError(f"{source} {value!r} is neither true nor false")
    return text in _TRUE_WORDS


def _as_int(value: Any, source: str) -> int:
    try:
        if isinstance(value, (bool, float)):
            raise TypeError
        return int(value)
    except (TypeError, ValueError):
        raise StartupError(f"{source} {value!r} is not a whole number") from None


def _as_texts(value: Any, source: str) -> tuple[str, ...]:
    """One text or several, without spaces around them and without blank ones; an error shows none of them."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise StartupError(f"{source} is neither a text nor a list of texts")
    return tuple(text.strip() for text in texts if text.strip())


def _as_numbers(value: Any, source: str) -> tuple[int, ...]:
    try:
        parts: Iterable[Any] = value.split(",") if isinstance(value, str) else value
        numbers = tuple(int(part) for part in parts if str(part).strip())
    except (TypeError, ValueError):
        raise StartupError(f"{source} {value!r} is not a list of numbers such as 0,1") from None
    if any(number < 0 for number in numbers):
        raise StartupError(f"{source} {value!r} has a negative number")
    return numbers


def _check_limits(each: Field[Any], value: Any, source: str) -> None:
    minimum, maximum, check = (each.metadata[name] for name in ("minimum", "maximum", "check"))
    if minimum is not None and value < minimum:
        raise StartupError(f"{source} {value} is under the limit of {minimum}")
    if maximum is not None and value > maximum:
        raise StartupError(f"{source} {value} is over the limit of {maximum}")
    complaint = check(value) if check else None
    if complaint:
        raise StartupError(f"{source} {value!r} {complaint}")


def _wrong_choice(source: str, value: Any, choices: Sequence[str]) -> str:
    nearest = difflib.get_close_matches(str(value).lower(), choices, n=1)
    hint = f"; did you mean {nearest[0]!r}?" if nearest else ""
    return f"{source} {str(value)!r} is not one of {', '.join(choices)}{hint}"
