"""Load a model whose network another library computes; what is around the network stays the torch engine's.

That is tokenizing, padded groups of similar length, and the modules that pool, project and normalise. Knows
nothing of the libraries: each engine hands in how its stand-in is made.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer

from infinity_emb.agreement import BOUNDS
from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.network_empty import empty_networks
from infinity_emb.backends.network_probe import Nearness, Probe
from infinity_emb.backends.network_stand_in import StandIn
from infinity_emb.backends.torch_device import Choice
from infinity_emb.backends.torch_loading import PlacedModel, open_model
from infinity_emb.backends.torch_models import load_sentence_transformers_model, transformers_of
from infinity_emb.config import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.model_files import ModelFiles
from infinity_emb.model_kind import choose_kind
from infinity_emb.primitives import Dtype

logger = logging.getLogger("infinity_emb")

# How far a float32 stand-in may be from torch, of the largest number in an answer or of 1.
MAX_DIFFERENCE = BOUNDS[Dtype.float32].difference
_TASKS = ("feature-extraction", "fill-mask", "sequence-classification")


class _SameWeights(NamedTuple):
    """What tells that a graph was made from the model's own weights.

    likeness: the least of token vectors. difference: the most of scores, which have no direction.
    """

    likeness: float
    difference: float


# A number format that rounds makes other numbers. These bounds only tell what was made from other weights: of
# all-MiniLM-L6-v2, files of 8 bits have a likeness of 0.82 to 0.99, of 4 bits 0.84; its layers in another
# order have 0.31, and another network 0.01.
_OF_EIGHT_BITS = _SameWeights(likeness=0.5, difference=0.5)
_OF_MORE_BITS = _SameWeights(likeness=0.95, difference=0.2)


def load_with_stand_in(
    args: EngineArgs,
    files: ModelFiles,
    devices: list[torch.device],
    make: Callable[[Probe], tuple[StandIn, Choice]],
    *,
    device_name: str,
    needs_weights: bool = True,
) -> LoadedModel:
    """Load with torch, exchange the network, and open.

    devices: where the modules around the network compute, one per replica.
    make: is handed the network on the CPU in float32, with texts that it has answered; returns what computes
    instead, its number format, and why.
    device_name: what computes the network, as `/models` calls it.
    needs_weights: whether `make` cannot do with a network that has no weights, and a probe without answers.
    Raises StartupError for a model that has more than one network or whose network takes more than tokens.
    """
    kind = choose_kind(args, files.path)
    empty: list[Any] = []
    with contextlib.ExitStack() as stack:
        if not needs_weights:
            empty = stack.enter_context(empty_networks())
        model = load_sentence_transformers_model(args, files, kind, torch.device("cpu"), torch.float32)
    transformer = _only_transformer(model, args)
    network: Any
    network, dtype = make(Probe.of(transformer, kind, has_weights=not empty))
    transformer.model = network  # and torch's weights are let go
    model.to(devices[0])
    loaded = open_model(args, files, devices, PlacedModel(model, kind, dtype, device_name))
    return replace(loaded, info=replace(loaded.info, graph=network.graph))


def _only_transformer(model: BaseModel, args: EngineArgs) -> Transformer:
    """The one network that texts go through. Raises StartupError for a model that has no such one."""
    found = transformers_of(model)
    reason = None
    if len(found) != 1:
        reason = f"it has {len(found)} networks"
    elif "text" not in found[0].modality_config or found[0].modality_config["text"]["method"] != "forward":
        reason = "its texts do not go through the network's own forward"
    elif found[0].transformer_task not in _TASKS:
        reason = f"its task is {found[0].transformer_task}"
    elif "task" in found[0]._declared_forward_params:
        reason = "what its network computes depends on the task"
    elif set(found[0].modality_config) != {"text"}:
        reason = "it takes more than texts"
    if reason is not None:
        raise StartupError(
            f"model {args.model_name_or_path!r} is not for --engine {args.engine}: {reason};"
            " use --engine torch"
        )
    return found[0]


def difference_to_torch(
    network: StandIn, probe: Probe, args: EngineArgs, *, origin: str, dtype: Dtype, is_named: bool = False
) -> str:
    """How far the two are apart, of the largest number in an answer or of 1, in words.

    origin: what computes, for the message.
    dtype: its number format; more than MAX_DIFFERENCE is too much for float32, other weights for all.
    is_named: whether the user has named this very graph. Then it may answer whatever it does, with a warning;
    that it computes numbers at all is asked of each.
    Raises StartupError where it is too far, or cannot compute, and what says that memory is lacking.
    """
    found = probe.compare(network)
    if math.isinf(found.difference) or (dtype is Dtype.float32 and not is_named):
        complaint = _complain_of(found.difference, MAX_DIFFERENCE)
    else:
        complaint = _complain_of_weights(found, dtype)
    if complaint and (math.isinf(found.difference) or not is_named):
        raise StartupError(f"{origin} of model {args.model_name_or_path!r} {complaint}; use --engine torch")
    if complaint:
        logger.warning("%s is served as asked, though it %s", origin, complaint)
    if probe.rows is None:
        return "no torch weights to compare with"
    return f"difference to torch {found.difference:.0e}" + (f"; {complaint}" if complaint else "")


def _complain_of(difference: float, limit: float) -> str:
    """Empty where it is no more."""
    if difference <= limit:
        return ""
    return f"differs from torch by {difference:.0e}, the limit is {limit:.0e}"


def _complain_of_weights(found: Nearness, dtype: Dtype) -> str:
    """What tells that it was made from other weights; empty where nothing does."""
    limit = _OF_EIGHT_BITS if dtype is Dtype.int8 else _OF_MORE_BITS
    if found.likeness is None:
        complaint = _complain_of(found.difference, limit.difference)
    else:
        least = limit.likeness
        told = f"has a mean cosine of {found.likeness:.2f} to torch's token vectors, the limit is {least}"
        complaint = "" if found.likeness >= least else told
    return complaint and f"{complaint}, as if it was made from other weights"
