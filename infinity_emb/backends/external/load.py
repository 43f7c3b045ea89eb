"""Load a model whose network another library computes.

Tokenization, padded groups of similar length, and the modules that pool, project and normalize are those of
the torch engine.
"""

from __future__ import annotations

import contextlib
import logging
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from sentence_transformers.base.model import BaseModel
from sentence_transformers.base.modules import Transformer

from infinity_emb.backends.accuracy import find_bound
from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.external.meta_network import empty_networks
from infinity_emb.backends.external.network import ExternalNetwork
from infinity_emb.backends.external.parity_check import Probe
from infinity_emb.backends.torch.device import Choice
from infinity_emb.backends.torch.load import ModelOnDevice, open_model
from infinity_emb.backends.torch.st_introspection import find_transformers
from infinity_emb.backends.torch.st_load import load_sentence_transformers_model
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import StartupError
from infinity_emb.hub.detect import choose_kind
from infinity_emb.hub.resolve import ModelFiles
from infinity_emb.types import Dtype

logger = logging.getLogger("infinity_emb")

_TASKS = ("feature-extraction", "fill-mask", "sequence-classification")


def load_with_external_network(
    args: LoadOptions,
    files: ModelFiles,
    devices: list[torch.device],
    make: Callable[[Probe], tuple[ExternalNetwork, Choice]],
    *,
    device_name: str,
    needs_weights: bool = True,
) -> LoadedModel:
    """Load a model with torch, replace its network, and create the replicas.

    devices: where the modules around the network compute, one per replica.
    make: takes the network on the CPU in float32 with its outputs for probe texts; returns the replacement,
        its dtype, and the reason for that dtype.
    device_name: of the device that computes the network, for `/models`.
    needs_weights: whether `make` needs a network with weights, and a probe with outputs.
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
    probe = Probe.of(transformer, kind, has_weights=not empty)
    if probe.rows is not None and not probe.rows.isfinite().any():
        raise StartupError(
            f"model {args.model_name_or_path!r} cannot be served: every output is NaN or infinite with torch,"
            " too, so its weights are damaged; download or save it again"
        )
    network, dtype = make(probe)
    transformer.model = network  # releases torch's weights
    model.to(devices[0])
    loaded = open_model(args, files, devices, ModelOnDevice(model, kind, dtype, device_name))
    return replace(loaded, info=replace(loaded.info, graph=network.graph))


def _only_transformer(model: BaseModel, args: LoadOptions) -> Transformer:
    """Return the model's only network. Raises StartupError unless texts pass through exactly one."""
    found = find_transformers(model)
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


def describe_difference(
    network: ExternalNetwork,
    probe: Probe,
    args: LoadOptions,
    *,
    origin: str,
    dtype: Dtype,
    is_named: bool = False,
) -> str:
    """Compare the network with torch and describe the difference, relative to the largest value or to 1.

    origin: of the network, for the message.
    dtype: of the network, which determines the limit.
    is_named: whether the user named this graph; then a difference is only a warning if the graph computes.
    Raises StartupError if the difference is too large or it cannot compute, and the library's error if memory
    is insufficient.
    """
    found = probe.compare(network)
    cannot_compute = math.isinf(found.max_difference)
    if cannot_compute or (dtype is Dtype.float32 and not is_named):
        complaint = find_bound("engine", Dtype.float32.value).find_violation(found)
    else:
        complaint = find_bound("weights", dtype.value).find_violation(found)
        complaint = complaint and f"{complaint}, as if it came from other weights"
    if complaint and (cannot_compute or not is_named):
        raise StartupError(f"{origin} of model {args.model_name_or_path!r} {complaint}; use --engine torch")
    if complaint:
        logger.warning("%s is served as requested, although it %s", origin, complaint)
    if probe.rows is None:
        return "no torch weights to compare with"
    return f"difference to torch {found.max_difference:.0e}" + (f"; {complaint}" if complaint else "")
