"""Check options that several engines restrict in the same way."""

from __future__ import annotations

from infinity_emb.config.model_options import LoadOptions
from infinity_emb.errors import StartupError


def refuse_option(option: str, value: object, args: LoadOptions, *, usable: str) -> StartupError:
    """Return the error for a device or a dtype that the engine does not take; `usable` lists the others."""
    return StartupError(f"--{option} {value} is not for --engine {args.engine}; use {usable}")


def get_only_device_id(args: LoadOptions) -> int:
    """Return the number of the GPU, 0 by default. Raises StartupError for several."""
    if len(args.device_id) > 1:
        raise StartupError(
            f"--device-id has {len(args.device_id)} devices, but --engine {args.engine} serves a model on one"
            " of them; start a server for each, or use --engine torch"
        )
    return args.device_id[0] if args.device_id else 0
