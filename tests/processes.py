"""Other processes for tests of what several do at once."""

import multiprocessing

CLEAN = multiprocessing.get_context("forkserver")
"""Begin each from a bare Python. A fork of the test process would inherit what earlier tests left in it:
a browser's event loop, a Prefect client's threads, their locks held for ever."""
