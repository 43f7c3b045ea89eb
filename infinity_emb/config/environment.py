"""Read options from flags and environment variables, when an entry point asks for them."""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

from infinity_emb.config.options import ENV_PREFIX, list_options
from infinity_emb.config.parsing import choose_spelling, parse_option

# Variables that are not options; the code that uses the directory reads them.
DIRECTORY_VARIABLES = {
    "HF_HOME": "Model files from the hub. Default: `~/.cache/huggingface`. `TRANSFORMERS_CACHE` and"
    " `SENTENCE_TRANSFORMERS_HOME` are not read.",
    "INFINITY_HOME": "Files written by infinity_emb: calibration of int8 and uint8 vectors, the file of"
    " `--vector-disk-cache`, models converted for `onnx`, `openvino` and `ctranslate2`, and the choices of"
    " `--engine auto`. They are in its subfolder `infinity_emb`. Default: `HF_HOME`, else"
    " `XDG_CACHE_HOME`, else `~/.cache`.",
}
# Variables of infinity_emb 0.0.77 without a counterpart here; many compose files set them.
IGNORED_VARIABLES = {
    "INFINITY_ANONYMOUS_USAGE_STATS": "There is no telemetry.",
    "INFINITY_CALIBRATION_DATASET_URL": "Nothing is downloaded; use `--calibration-file`.",
    "INFINITY_DISABLE_OPTIMUM": "Was deprecated in 0.0.77.",
    "DO_NOT_TRACK": "There is no telemetry.",
}
# Kubernetes announces services in variables. For a service named `infinity` they start with our prefix, and
# INFINITY_PORT is an address.
# Source: https://kubernetes.io/docs/concepts/services-networking/service/#environment-variables
_KUBERNETES_NAME = re.compile(r"INFINITY_(SERVICE_(HOST|PORT.*)|PORT_\d+_(TCP|UDP|SCTP).*)")
_KUBERNETES_ADDRESS = re.compile(r"(tcp|udp|sctp)://")


class Given(NamedTuple):
    """The values given for one option, and the flag or variable they were given to."""

    values: Sequence[Any]
    source: str  # "--port" or "INFINITY_PORT"


def collect_given(
    config: type,
    flags: Mapping[str, Sequence[Any] | None],
    environ: Mapping[str, str] | None = None,
    *,
    is_per_model: bool,
) -> dict[str, Given]:
    """Collect the values of every option that was given; a flag takes precedence over its variable.

    flags: field name → the values of its flag; None or empty where it was not used.
    is_per_model: variables hold one value per model, separated by `;`.
    """
    environ = os.environ if environ is None else environ
    given: dict[str, Given] = {}
    for option in list_options(config):
        used = {each.flag: flags[each.name] for each in option.spellings if flags.get(each.name)}
        if not used:
            texts = {each.env: _read_variable(each.env, environ) for each in option.spellings}
            used = {
                name: split_values(text) if is_per_model else [text]
                for name, text in texts.items()
                if text is not None
            }
        if used:
            source, values = choose_spelling(used)
            given[option.name] = Given(values, source)
    return given


def parse_given(config: type, given: Mapping[str, Given]) -> dict[str, Any]:
    """Parse the given values: the last one of several counts, or all for a repeatable option.

    Raises StartupError naming the flag or variable that a wrong value was given to.
    """
    return {
        option.name: parse_option(option, values if option.is_repeated else values[-1], source=source)
        for option in list_options(config)
        if option.name in given
        for values, source in [given[option.name]]
    }


def _read_variable(name: str, environ: Mapping[str, str]) -> str | None:
    text = environ.get(name)
    is_set_by_kubernetes = name == "INFINITY_PORT" and _KUBERNETES_ADDRESS.match(text or "")
    return None if is_set_by_kubernetes else text


def split_values(text: str) -> list[str]:
    """Split the value of a variable into one value per model."""
    return [part.strip() for part in text.strip().removesuffix(";").split(";")]


def find_unknown_variables(environ: Mapping[str, str], *configs: type) -> dict[str, str | None]:
    """Find `INFINITY_*` variables that nothing reads, each with the most similar name that exists.

    Variables of infinity_emb 0.0.77 and of Kubernetes are not reported.
    """
    options = [option for config in configs for option in list_options(config)]
    known = [option.env for option in options]
    spellings = {spelling.env for option in options for spelling in option.spellings}
    accepted = {*spellings, *DIRECTORY_VARIABLES, *IGNORED_VARIABLES}
    unknown = [
        name
        for name in environ
        if name.startswith(ENV_PREFIX) and name not in accepted and not _KUBERNETES_NAME.fullmatch(name)
    ]
    return {name: _find_nearest(name, known) for name in unknown}


def _find_nearest(name: str, known: Sequence[str]) -> str | None:
    """Compare without the prefix, which would make all names similar."""
    endings = {candidate.removeprefix(ENV_PREFIX): candidate for candidate in known}
    matches = difflib.get_close_matches(name.removeprefix(ENV_PREFIX), endings, n=1)
    return endings[matches[0]] if matches else None
