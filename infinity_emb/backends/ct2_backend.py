"""Load a model whose network CTranslate2 computes, converted once from torch's.

What is around the network is the torch engine's: tokenizing, padded groups of similar length, and the modules
that pool, project and normalise; so are the heads of rerankers, classifiers and sparse models. A float32
network is compared with torch at every start. Knows nothing of queues or HTTP.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.ct2_conversion import conversion
from infinity_emb.backends.ct2_encoder import Target, choose_target, open_encoder
from infinity_emb.backends.ct2_network import Ct2Network
from infinity_emb.backends.ct2_spec import why_not_convertible
from infinity_emb.backends.network_loading import difference_to_torch, load_with_stand_in
from infinity_emb.backends.network_probe import Probe
from infinity_emb.backends.network_stand_in import NUMBER_FORMATS
from infinity_emb.backends.torch_device import Choice
from infinity_emb.backends.torch_loading import load_within_memory
from infinity_emb.backends.torch_models import Expansion
from infinity_emb.config import EngineArgs
from infinity_emb.errors import StartupError
from infinity_emb.model_files import ModelFiles

logger = logging.getLogger("infinity_emb")


def load_model(args: EngineArgs, files: ModelFiles) -> LoadedModel:
    """Load, compare and warm up. Raises StartupError for whatever cannot be served, and ModelTooLarge."""
    target = choose_target(args)
    devices = [_device_beside(target)] * target.num_replicas

    def load() -> LoadedModel:
        return load_with_stand_in(
            args,
            files,
            devices,
            lambda probe: _make_network(probe, args, files, target, devices[0]),
            device_name=_name_of(target),
        )

    return load_within_memory(args, files, devices[0], load)


def _device_beside(target: Target) -> torch.device:
    """Where the modules around the encoder compute: with it, where torch was built for that."""
    if target.device == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", target.device_index)
    return torch.device("cpu")


def _name_of(target: Target) -> str:
    return "cpu" if target.device == "cpu" else f"{target.device}:{target.device_index}"


def _make_network(
    probe: Probe, args: EngineArgs, files: ModelFiles, target: Target, device: torch.device
) -> tuple[Ct2Network, Choice]:
    """Raises StartupError for an architecture that CTranslate2 does not have, or that answers otherwise."""
    transformer = probe.transformer
    network: Any = transformer.model
    reason = why_not_convertible(network.base_model) or _why_not_served(transformer)
    if reason is not None:
        raise StartupError(
            f"model {args.model_name_or_path!r} is not for --engine {args.engine}: {reason};"
            " use --engine torch"
        )

    def open_and_compare(path: Path) -> tuple[Ct2Network, Choice]:
        encoder = open_encoder(path.parent, target, args)
        opened = Ct2Network(encoder, transformer, device, NUMBER_FORMATS[target.dtype])
        difference = difference_to_torch(
            opened,
            probe,
            args,
            origin="what CTranslate2 computes",
            dtype=target.dtype,
        )
        told = f"CTranslate2's {target.compute_type}, {difference}"
        logger.info("%s is computed by %s", args.model_name_or_path, told)
        return opened, Choice(str(target.dtype), told)

    return conversion(network.base_model, args, files).opened(open_and_compare)


def _why_not_served(transformer: Transformer) -> str | None:
    """CTranslate2 is told lengths and not masks: each row's tokens come first, and all of them are seen."""
    if getattr(transformer.tokenizer, "padding_side", "right") == "left":
        return "its tokenizer pads on the left"
    expansion = Expansion.of(transformer)
    if expansion is not None and not expansion.is_attended:
        return "its queries are filled up with tokens that the others do not see"
    return None
