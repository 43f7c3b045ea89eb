"""Turn the values that users give for options into the declared types.

Every error names the flag, the environment variable or the keyword that the value was given to.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import Any

from infinity_emb.config.options import Option, list_options
from infinity_emb.errors import StartupError

_TRUE_WORDS = ("true", "t", "1", "yes", "y", "on")
_FALSE_WORDS = ("false", "f", "0", "no", "n", "off")
# Common aliases of choices.
_CHOICE_ALIASES = {"fp32": "float32", "fp16": "float16", "half": "float16", "bf16": "bfloat16", "gpu": "cuda"}


def parse_keywords(config: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Parse keyword arguments; names that are not options pass through unchanged.

    Raises StartupError naming the keyword.
    """
    values = merge_old_names(config, given)
    parsed = {
        option.name: parse_option(option, values[option.name], source=option.name)
        for option in list_options(config)
        if option.name in values
    }
    return values | parsed


def parse_option(option: Option, value: Any, *, source: str) -> Any:
    """Parse one value; None means the default, and so does "" unless the option may be empty.

    source: what the value was given to, such as `--port` or `INFINITY_PORT`.
    Raises StartupError naming it.
    """
    is_blank = isinstance(value, str) and not value.strip()
    if option.spec.when_empty and (is_blank or _are_blank(value)):
        raise StartupError(f"{source} is empty; set it, or leave it out to {option.spec.when_empty}")
    if value is not None and option.is_repeated:
        texts = _parse_texts(value, source)
        _check_limits(option, texts, source)
        return texts
    if value is None or (is_blank and not option.spec.may_be_empty):
        return option.default
    if option.spec.has_auto and str(value).strip().lower() == "auto":
        return "auto"
    if option.choices and str(value) not in option.choices:
        value = _CHOICE_ALIASES.get(str(value), value)
    if option.choices and str(value) not in option.choices:
        raise StartupError(_wrong_choice(source, value, option.choices))
    parsed = _convert(option, value, source)
    _check_limits(option, parsed, source)
    return parsed


def merge_old_names(config: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Move values given under deprecated field names to the current ones.

    Raises StartupError when two names of one option are given different values.
    """
    values = dict(given)
    for option in list_options(config):
        used = {each.name: values.pop(each.name) for each in option.spellings if each.name in values}
        if used:
            values[option.name] = choose_spelling(used)[1]
    return values


def read_names(config: type, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return values from a file by field name; the file may use names of flags, with `_` for `-`.

    Raises StartupError for a name that no option has.
    """
    names = {option.key: option.name for option in list_options(config)}
    names |= {each.name: each.name for option in list_options(config) for each in option.spellings}
    for name in given:
        if name not in names:
            raise StartupError(f"there is no option {name!r}{did_you_mean(name, list(names))}")
    return {names[name]: value for name, value in given.items()}


def choose_spelling(used: Mapping[str, Any]) -> tuple[str, Any]:
    """Return the first spelling of an option that was given a value, and that value.

    used: flag, variable or keyword → value, current spelling first.
    Raises StartupError when two spellings are given different values.
    """
    filled = {source: value for source, value in used.items() if value not in (None, "", [""])}
    source, value = next(iter((filled or used).items()))
    for other, other_value in filled.items():
        if other_value != value:
            raise StartupError(f"{source} and {other} are two names of one option; give only {source}")
    return source, value


def did_you_mean(text: str, candidates: Sequence[str]) -> str:
    """Return "; did you mean 'x'?" for the most similar candidate, or "" when none is similar."""
    nearest = difflib.get_close_matches(text, candidates, n=1)
    return f"; did you mean {nearest[0]!r}?" if nearest else ""


def to_unicode(text: str) -> str:
    """Return a text that UTF-8 can encode; bytes of a path that Python could not decode are read as UTF-8."""
    try:
        return text.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    except UnicodeEncodeError:  # half a surrogate pair that stands for no byte
        return text.encode("utf-8", "replace").decode("utf-8")


def _are_blank(values: Any) -> bool:
    is_list = isinstance(values, (list, tuple)) and len(values) > 0
    return is_list and not any(str(value).strip() for value in values)


def _convert(option: Option, value: Any, source: str) -> Any:
    kind = option.kind
    if issubclass(kind, Enum):
        return kind[str(value)]
    if kind is bool:
        return _parse_bool(value, source)
    if kind is int:
        return _parse_int(value, source, "auto or an integer" if option.spec.has_auto else "an integer")
    if kind is tuple:
        return _parse_ints(value, source)
    if not isinstance(value, str):
        raise StartupError(f"{source} must be text, got {value!r}")
    return value


def _parse_bool(value: Any, source: str) -> bool:
    text = str(value).strip().lower()
    if text not in _TRUE_WORDS and text not in _FALSE_WORDS:
        raise StartupError(f"{source} must be true or false, got {value!r}")
    return text in _TRUE_WORDS


def _parse_int(value: Any, source: str, expected: str) -> int:
    try:
        if isinstance(value, (bool, float)):
            raise TypeError
        return int(value)
    except (TypeError, ValueError):
        raise StartupError(f"{source} must be {expected}, got {value!r}") from None


def _parse_texts(value: Any, source: str) -> tuple[str, ...]:
    """Parse one text or several, stripped, without blank ones. Errors omit the value, which may be a key."""
    texts = (value,) if isinstance(value, str) else value
    if not isinstance(texts, Sequence) or not all(isinstance(text, str) for text in texts):
        raise StartupError(f"{source} must be text or a list of texts")
    return tuple(text.strip() for text in texts if text.strip())


def _parse_ints(value: Any, source: str) -> tuple[int, ...]:
    try:
        parts: Iterable[Any] = value.split(",") if isinstance(value, str) else value
        numbers = tuple(int(part) for part in parts if str(part).strip())
    except (TypeError, ValueError):
        raise StartupError(f"{source} must be a list of integers such as 0,1, got {value!r}") from None
    if any(number < 0 for number in numbers):
        raise StartupError(f"{source} must not be negative, got {value!r}")
    return numbers


def _check_limits(option: Option, value: Any, source: str) -> None:
    spec = option.spec
    if spec.minimum is not None and value < spec.minimum:
        raise StartupError(f"{source} must be at least {spec.minimum}, got {value}")
    if spec.maximum is not None and value > spec.maximum:
        raise StartupError(f"{source} must be at most {spec.maximum}, got {value}")
    problem = spec.check(value) if spec.check else None
    if problem:
        raise StartupError(f"{source} {problem}, got {value!r:.200}")


def _wrong_choice(source: str, value: Any, choices: Sequence[str]) -> str:
    hint = did_you_mean(str(value).lower(), choices)
    return f"{source} must be one of {', '.join(choices)}, got {str(value)!r}{hint}"
