"""Which hosts an operator lets images and audio be fetched from.

Pure rules on names: knows nothing of addresses, sockets or HTTP. An allowed host has to be public too, which
`public_addresses.py` judges.
"""

from __future__ import annotations

from collections.abc import Callable

NO_HOST = "none"


def parse_hosts(text: str) -> Callable[[str], bool]:
    """The test that a host has to pass.

    text: as the option `media_hosts` has it: names behind commas, `*.` before one that stands for all names
    below it; everything passes where it is empty, and nothing where it is `none`.
    The test takes a host in lower case and without a dot at its end.
    """
    patterns = [each.strip().lower().removesuffix(".") for each in text.split(",") if each.strip()]
    if not patterns:
        return lambda _: True
    exact = {each for each in patterns if not each.startswith("*.") and each != NO_HOST}
    endings = tuple(each[1:] for each in patterns if each.startswith("*."))
    return lambda host: host in exact or host.endswith(endings)
