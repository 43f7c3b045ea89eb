"""Write the results of a batch, and save its progress with their number."""

from __future__ import annotations

import os
import threading
from pathlib import Path
from typing import BinaryIO, NamedTuple

from infinity_emb.server.batches.store import BatchRecord, BatchStore

RESULTS_PER_COMMIT = 64
_COMMIT_BYTES = 2**20


class Result(NamedTuple):
    """A line of one of the two files."""

    line: bytes
    is_error: bool


class ResultFiles:
    """The two files of results, truncated to what was committed.

    max_total_bytes: limit of all files in the store.
    """

    def __init__(
        self, store: BatchStore, batch: BatchRecord, saving: threading.Lock, *, max_total_bytes: int
    ) -> None:
        self._store = store
        self._max_total_bytes = max_total_bytes
        self._batch = batch
        self._saving = saving
        self._results: list[Result] = []
        self._num_bytes = 0
        self._output = _open_at(store.content_path(batch.output_file_id), batch.output_bytes)
        self._errors = _open_at(store.content_path(batch.error_file_id), batch.error_bytes)

    @property
    def is_full(self) -> bool:
        """Return true when it is time to commit."""
        return len(self._results) >= RESULTS_PER_COMMIT or self._num_bytes >= _COMMIT_BYTES

    def add(self, result: Result) -> None:
        """Add the result of the next request."""
        self._results.append(result)
        self._num_bytes += len(result.line)

    def commit(self) -> None:
        """Write the results to disk, then count them. Raises OSError, and StorageFull before writing."""
        if not self._results:
            return
        try:
            self._store.reserve(self._batch.id, self._num_bytes, self._max_total_bytes)
            self._write()
        finally:
            self._store.release(self._batch.id)
        self.discard()

    def _write(self) -> None:
        batch, counts = self._batch, self._batch.fields["request_counts"]
        lines = {
            is_error: [result.line for result in self._results if result.is_error is is_error]
            for is_error in (False, True)
        }
        for file, is_error in ((self._output, False), (self._errors, True)):
            file.writelines(lines[is_error])
            file.flush()
            os.fsync(file.fileno())
        with self._saving:
            batch.output_bytes += sum(map(len, lines[False]))
            batch.error_bytes += sum(map(len, lines[True]))
            batch.num_lines += len(self._results)
            counts["completed"] += len(lines[False])
            counts["failed"] += len(lines[True])
            self._store.save_batch(batch)

    def discard(self) -> None:
        """Forget the results that are not written."""
        self._results, self._num_bytes = [], 0

    def close(self) -> None:
        """Close both files."""
        self._output.close()
        self._errors.close()


def _open_at(path: Path, num_bytes: int) -> BinaryIO:
    file = path.open("ab")
    file.truncate(num_bytes)
    return file
