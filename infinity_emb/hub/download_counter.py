"""Count the bytes that huggingface_hub downloads, in place of its progress bars."""

from __future__ import annotations

import io
from typing import Any

from tqdm.auto import tqdm

from infinity_emb.storage.load_progress import Listener, LoadProgress


def make_download_counter(listener: Listener, total_bytes: int) -> type[tqdm[Any]]:
    """Return a class of bars that draw nothing, and that report to the listener.

    huggingface_hub has one bar for received and one for written bytes, which advance together or alone.
    """
    reached = 0

    class DownloadCounter(tqdm):  # type: ignore[type-arg]  # not subscriptable at run time
        """Report the bytes of the bar that is ahead."""

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)  # of huggingface_hub's own class
            super().__init__(*args, **(options | {"disable": False, "file": io.StringIO()}))

        def update(self, n: float | None = 1) -> bool | None:
            nonlocal reached
            is_drawn = super().update(n)
            if self.unit == "B" and self.n > reached:
                reached = int(self.n)
                listener(LoadProgress("downloading", min(reached, total_bytes), total_bytes))
            return is_drawn

    return DownloadCounter
