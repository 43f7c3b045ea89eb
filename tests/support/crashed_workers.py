"""Let pytest-xdist begin with slow files, and finish the tests that a crashed worker leaves."""

from __future__ import annotations

import contextlib

from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from tests.support.slow_files import SLOW_FILES


class FinishingScheduling(LoadFileScheduling):
    """Hand out slow files first, and what a crashed worker leaves.

    It hands out neither finished tests nor the one that crashed the worker.

    pytest-xdist 3.8 puts all files of the worker back into its queue. A worker that gets a file without any
    test to do, or with a single one, waits for more for ever: workers run a test once they have the next.
    """

    def remove_node(self, node: WorkerController) -> str | None:
        files: dict[str, dict[str, bool]] = self.assigned_work.pop(node)
        left = [test for tests in files.values() for test, is_done in tests.items() if not is_done]
        if not left:
            return None
        for tests in files.values():
            if left[0] in tests:
                tests[left[0]] = True
        self.workqueue.update({file: tests for file, tests in files.items() if not all(tests.values())})
        for other in self.assigned_work:
            self._reschedule(other)
        return left[0]

    def _assign_work_unit(self, node: WorkerController) -> None:
        slowest = next((file for file in SLOW_FILES if file in self.workqueue), None)
        if slowest is not None:
            self.workqueue.move_to_end(slowest, last=False)
        # A worker that has just crashed takes nothing more; `remove_node` gets what it was assigned.
        with contextlib.suppress(OSError):
            super()._assign_work_unit(node)

    def _reschedule(self, node: WorkerController) -> None:
        super()._reschedule(node)
        while not node.shutting_down and self._pending_of(self.assigned_work[node]) < 2:
            super()._reschedule(node)
