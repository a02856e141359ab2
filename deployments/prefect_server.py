"""The Prefect server, with its garbage collected beside its event loop.

SQLite refuses a transaction that reads before it writes when another one wrote meanwhile. The refusal leaves
a cursor in a reference cycle. Collected in the event loop while its connection waits for the database (up to
60 s, Prefect sets that), the cursor waits for the connection, the loop for the cursor, and the transaction
that holds the database for the loop: the server stands still for a minute, again and again under load.
The stalls were measured (Prefect 3.8.8); that garbage causes them is inferred from stacks, not proven. A
thread of its own may wait.
"""

from __future__ import annotations

import gc
import runpy
import sys
import threading
import time

__all__ = ["main"]

COLLECT_EVERY_S = 5.0
YOUNG_LOOKS = 12


def main() -> None:
    """Run ``prefect server start`` in this process."""
    gc.disable()
    threading.Thread(target=_collect, name="garbage", daemon=True).start()
    sys.argv = ["prefect", "server", "start"]
    runpy.run_module("prefect", run_name="__main__", alter_sys=True)


def _collect() -> None:
    while True:
        for _ in range(YOUNG_LOOKS):
            time.sleep(COLLECT_EVERY_S)
            gc.collect(1)
        gc.collect()  # 0.2 s with the event loop waiting: now and then is enough


if __name__ == "__main__":
    main()
