"""Load a model whose network CTranslate2 computes, converted once from torch's.

Everything around the network is the torch engine's: tokenizing, padded groups of similar length, the modules
that pool, project and normalize, and the heads of rerankers, classifiers and sparse models. A float32 network
is compared with torch at every start.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch
from sentence_transformers.base.modules import Transformer

from infinity_emb.backends.base import LoadedModel
from infinity_emb.backends.ctranslate2.convert import get_conversion
from infinity_emb.backends.ctranslate2.encoder import Target, choose_target, open_encoder
from infinity_emb.backends.ctranslate2.network import Ct2Network
from infinity_emb.backends.ctranslate2.spec import explain_unsupported
from infinity_emb.backends.external.load import describe_difference, load_with_external_network
from infinity_emb.backends.external.network import NUMBER_FORMATS
from infinity_emb.backends.external.parity_check import Probe
from infinity_emb.backends.torch.device import Choice
from infinity_emb.backends.torch.load import load_within_memory
from infinity_emb.backends.torch.st_introspection import Expansion
from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import StartupError
from infinity_emb.hub.resolve import ModelFiles

logger = logging.getLogger("infinity_emb")


def load_model(args: LoadOptions, files: ModelFiles) -> LoadedModel:
    """Load, compare and warm up a model. Raises StartupError if it cannot be served, and ModelTooLarge."""
    target = choose_target(args)
    devices = [_choose_module_device(target)] * target.num_replicas

    def load() -> LoadedModel:
        return load_with_external_network(
            args,
            files,
            devices,
            lambda probe: _make_network(probe, args, files, target, devices[0]),
            device_name=_format_device_name(target),
        )

    return load_within_memory(args, files, devices[0], load)


def _choose_module_device(target: Target) -> torch.device:
    """Return the device of the modules around the encoder: the same one, if torch supports it."""
    if target.device == "cuda" and torch.cuda.is_available():
        return torch.device("cuda", target.device_index)
    return torch.device("cpu")


def _format_device_name(target: Target) -> str:
    return "cpu" if target.device == "cpu" else f"{target.device}:{target.device_index}"


def _make_network(
    probe: Probe, args: LoadOptions, files: ModelFiles, target: Target, device: torch.device
) -> tuple[Ct2Network, Choice]:
    """Convert and compare the network. Raises StartupError if it is not supported, or if outputs differ."""
    transformer = probe.transformer
    network: Any = transformer.model
    reason = explain_unsupported(network.base_model) or _explain_unsupported_inputs(transformer)
    if reason is not None:
        raise StartupError(
            f"model {args.model_name_or_path!r} is not for --engine {args.engine}: {reason};"
            " use --engine torch"
        )

    def open_and_compare(path: Path) -> tuple[Ct2Network, Choice]:
        encoder = open_encoder(path.parent, target, args)
        opened = Ct2Network(encoder, transformer, device, NUMBER_FORMATS[target.dtype])
        difference = describe_difference(
            opened,
            probe,
            args,
            origin="what CTranslate2 computes",
            dtype=target.dtype,
        )
        description = f"CTranslate2's {target.compute_type}, {difference}"
        logger.info("%s is computed by %s", args.model_name_or_path, description)
        return opened, Choice(str(target.dtype), description)

    return get_conversion(network.base_model, args, files).open_or_rebuild(open_and_compare)


def _explain_unsupported_inputs(transformer: Transformer) -> str | None:
    """Return why lengths, which CTranslate2 takes, cannot replace attention masks; None if they can."""
    if getattr(transformer.tokenizer, "padding_side", "right") == "left":
        return "its tokenizer pads on the left"
    expansion = Expansion.resolve(transformer)
    if expansion is not None and not expansion.attend_to_expansion:
        return "its queries are filled up with tokens that the other tokens do not attend to"
    return None
