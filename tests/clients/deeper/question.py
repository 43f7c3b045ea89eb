"""What every script here is asked, and how it tells what it found. Needs the standard library alone.

The scripts run where only one client is installed; nothing of the server or of the tests can be imported.
"""

import asyncio
import json
import os
from collections.abc import Callable
from typing import Any

_QUESTION = json.loads(os.environ["QUESTION"])
URL: str = _QUESTION["url"]
KEYED_URL: str = _QUESTION["keyed_url"]
KEY: str = _QUESTION["key"]
TEXTS: list[str] = _QUESTION["texts"]
QUERY: str = _QUESTION["query"]


def error_of(call: Callable[[], Any]) -> list[str]:
    """Class and text of what the user sees of a failure; a coroutine is run."""
    try:
        answer = call()
        if asyncio.iscoroutine(answer):
            answer = asyncio.run(answer)
    except Exception as exc:  # noqa: BLE001  # whatever it is, that is what is asked
        return [type(exc).__name__, str(exc)]
    return ["no error", repr(answer)[:500]]


def tell(**found: Any) -> None:
    """Print one JSON object: vectors, rankings, labels and errors, each by the way they came."""
    print(json.dumps(found))  # noqa: T201  # how the test reads it
