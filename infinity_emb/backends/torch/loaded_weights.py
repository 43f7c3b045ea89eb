"""Check that weight files contain all weights of the networks that are loaded from them.

transformers fills a weight that is missing in the file with random values, different at each start, and
reports that only in a table on stderr.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer
from sentence_transformers.util import batch_to_device
from torch import Tensor
from transformers import PreTrainedModel

from infinity_emb.backends.probes import PARITY_TEXTS
from infinity_emb.backends.torch.st_introspection import find_transformers, get_sampling_rate
from infinity_emb.errors import StartupError

logger = logging.getLogger("infinity_emb")

_MAX_SHOWN = 3
_SUMMABLE = (torch.float64, torch.float32, torch.float16, torch.bfloat16)
_NUMBER = re.compile(r"\d+")


class Loading(NamedTuple):
    """Report of transformers about the weight files of one network.

    missing: weights that are not in the file. unexpected: weights that the network does not have.
    mismatched: name of a weight, its shape in the file and in the network.
    """

    network: PreTrainedModel
    missing: Collection[str]
    unexpected: Collection[str]
    mismatched: Collection[tuple[str, Sequence[int], Sequence[int]]]


@contextlib.contextmanager
def record_loading() -> Iterator[list[Loading]]:
    """Record how transformers fills each network that is loaded inside the block.

    If the file has all of a network's weights under one prefix, such as `module.`, it is removed.
    Other threads must not load models meanwhile.
    """
    recorded: list[Loading] = []
    original: Any = PreTrainedModel.__dict__["from_pretrained"]

    def from_pretrained(cls: type[PreTrainedModel], path: Any, *given: Any, **options: Any) -> Any:
        if options.get("output_loading_info"):
            return original.__func__(cls, path, *given, **options)
        options |= {"output_loading_info": True, "ignore_mismatched_sizes": True}
        load = functools.partial(original.__func__, cls, path, *given, **options)
        answer = load()
        if not isinstance(answer, tuple):  # built without a file
            return answer
        prefix = find_prefix(_describe_loading(answer))
        if prefix:
            logger.warning("the weights in %s begin with %r, which is removed from their names", path, prefix)
            answer = load(key_mapping={f"^{re.escape(prefix)}": ""})
        recorded.append(_describe_loading(answer))
        return answer[0]

    setattr(PreTrainedModel, original.__name__, classmethod(from_pretrained))
    try:
        with _hide_reports():
            yield recorded
    finally:
        setattr(PreTrainedModel, original.__name__, original)


def _describe_loading(answer: tuple[PreTrainedModel, dict[str, Any]]) -> Loading:
    network, info = answer
    return Loading(
        network,
        sorted(info["missing_keys"]),
        sorted(info["unexpected_keys"]),
        sorted(info["mismatched_keys"]),
    )


@contextlib.contextmanager
def _hide_reports() -> Iterator[None]:
    """Drop the table of missing and unexpected weights, which names harmless ones as well."""

    def is_other(record: logging.LogRecord) -> bool:
        return "LOAD REPORT" not in str(record.msg)

    library = logging.getLogger("transformers.modeling_utils")
    library.addFilter(is_other)
    try:
        yield
    finally:
        library.removeFilter(is_other)


def find_prefix(loading: Loading) -> str:
    """Return the prefix under which the file has the missing weights; "" without exactly one.

    No weight that was found without the prefix may also be in the file with it; and no other prefix may have
    half as many weights or more, as the second of two towers has.
    """
    missing, unexpected = set(loading.missing), set(loading.unexpected)
    coverage = Counter(
        prefix for name in unexpected for prefix, rest in _split_at_dots(name) if rest in missing
    )
    found = set(loading.network.state_dict()) - missing
    (best, count), (_, second_count) = [*coverage.most_common(2), ("", 0), ("", 0)][:2]
    if second_count * 2 >= count or any(best + name in unexpected for name in found):
        return ""
    return best


def _split_at_dots(name: str) -> Iterator[tuple[str, str]]:
    """Yield each beginning that ends with a dot, and the rest."""
    for match in re.finditer(r"\.", name):
        yield name[: match.end()], name[match.end() :]


def check_weights(model: BaseModel, loadings: Sequence[Loading], *, allow_missing: bool) -> None:
    """Raise StartupError for weights that are NaN, and for missing ones that an output depends on.

    Missing weights that no output depends on, such as those of an unused pooler, are set to NaN: if an input
    reaches them after all, its request fails.
    """
    if not allow_missing:
        _check_numbers(model, loadings)
    for loading in loadings:
        _check_shapes(loading)
        _warn_of_dropped_layers(loading)
        missing = _find_parameters(loading)
        if not missing:
            continue
        if allow_missing:
            logger.warning("%s; serving them as requested", _describe_missing(loading, missing))
            continue
        with torch.no_grad():
            for parameter in missing.values():
                parameter.fill_(torch.nan)
        transformer = next((each for each in find_transformers(model) if each.model is loading.network), None)
        if transformer is None:  # part of another network, which is recorded, too
            continue
        if not all(_is_finite(transformer, model, each) for each in _list_modalities(transformer)):
            raise StartupError(
                f"{_describe_missing(loading, missing)}. Copy the whole model, correct config.json, or serve"
                " it anyway with --allow-missing-weights"
            )


@torch.no_grad()
def _check_numbers(model: BaseModel, loadings: Sequence[Loading]) -> None:
    """Raise StartupError for a weight with NaN, which attention kernels may turn into a wrong number.

    Embeddings of single tokens may be NaN: texts without these tokens can be computed. Networks that were
    built without weights, because another engine computes them, contain arbitrary values.
    """
    loaded = {id(loading.network) for loading in loadings}
    unloaded = [each.model for each in find_transformers(model) if id(each.model) not in loaded]
    unread = {id(weights) for network in unloaded for weights in network.parameters()}
    for path, module in model.named_modules():
        if isinstance(module, torch.nn.Embedding):
            continue
        for name, weights in module.named_parameters(prefix=path, recurse=False):
            if id(weights) in unread or weights.dtype not in _SUMMABLE:
                continue
            # A sum needs almost no memory, unlike a mask of all values.
            if weights.sum(dtype=torch.float32).isnan() and weights.isnan().any():
                raise StartupError(
                    f"weight {name!r} is NaN in the file, which is damaged; download or save it again, or"
                    " serve it anyway with --allow-missing-weights"
                )


def _check_shapes(loading: Loading) -> None:
    for name, in_file, in_network in loading.mismatched:
        raise StartupError(
            f"weight {name!r} has the shape {tuple(in_file)} in the file, but {tuple(in_network)} by"
            " config.json; one of them belongs to another model"
        )


def _warn_of_dropped_layers(loading: Loading) -> None:
    """Warn of weights of further layers: they are named like the network's, but with other numbers."""
    kinds = {_NUMBER.sub("*", name) for name in loading.network.state_dict()}
    prefix = f"{loading.network.base_model_prefix}."
    dropped = [name for name in loading.unexpected if _NUMBER.sub("*", name.removeprefix(prefix)) in kinds]
    if dropped:
        logger.warning("config.json describes fewer layers than the file has: %s", _shorten_list(dropped))


def _find_parameters(loading: Loading) -> dict[str, Tensor]:
    """Return the missing weights, without those that share memory with weights from the file."""
    state = loading.network.state_dict(keep_vars=True)
    missing = set(loading.missing)
    found = {tensor.data_ptr() for name, tensor in state.items() if name not in missing}
    return {
        name: state[name]
        for name in loading.missing
        if name in state and state[name].is_floating_point() and state[name].data_ptr() not in found
    }


def _list_modalities(transformer: Transformer) -> list[str]:
    names = {name for key in transformer.modality_config for name in ([key] if isinstance(key, str) else key)}
    texts = ["text"] if names & {"text", "message"} else []
    return [*texts, *sorted(names & {"image", "audio"})]


def _is_finite(transformer: Transformer, model: BaseModel, modality: str) -> bool:
    """Return whether the network's output for a probe is finite; true for media that cannot be probed."""
    try:
        features = transformer.preprocess([_make_probe(modality, get_sampling_rate(model))])
        with torch.inference_mode():
            outputs = transformer.forward(batch_to_device(features, model.device))
    except Exception:  # a library may raise anything for a synthetic image
        if modality == "text":
            raise
        return True
    return bool(outputs[transformer.module_output_name].isfinite().all())


def _make_probe(modality: str, sampling_rate: int | None) -> Any:
    if modality == "image":
        from PIL import Image

        return Image.new("RGB", (224, 224), (20, 120, 220))
    if modality == "audio":
        return {"array": np.zeros(sampling_rate or 16_000, np.float32), "sampling_rate": sampling_rate}
    return {"text": PARITY_TEXTS[0]}


def _describe_missing(loading: Loading, missing: Collection[str]) -> str:
    num_weights = len(loading.network.state_dict())
    text = (
        f"{len(missing)} of the network's {num_weights} weights are not in the file and would be random:"
        f" {_shorten_list(missing)}"
    )
    if loading.unexpected:
        text += f"; the file has {_shorten_list(loading.unexpected)}, which the network does not"
    return text


def _shorten_list(names: Collection[str]) -> str:
    shown = ", ".join(list(names)[:_MAX_SHOWN])
    return shown + (f" and {len(names) - _MAX_SHOWN} more" if len(names) > _MAX_SHOWN else "")
