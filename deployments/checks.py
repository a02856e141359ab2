"""The command `test`: lint, types and tests, as CI runs them."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable

from deployments.environment import REPOSITORY

__all__ = ["COVERAGE_PERCENT", "run"]

COVERAGE_PERCENT = 95
TYPED = ("mqi", "deployments", "blocks", "tasks", "flows")


def commands(pytest_arguments: list[str]) -> list[tuple[str, list[str]]]:
    """What is run, by name. With arguments for pytest a part is tested: then coverage decides nothing."""
    whole = ["--cov=mqi", f"--cov-fail-under={COVERAGE_PERCENT}", "--durations=20"]
    # In the order of collection: the long ones, which run a whole installation, come first.
    whole += ["--numprocesses=auto", "--dist=loadfile", "--no-loadscope-reorder"]
    return [
        ("ruff (lint)", ["ruff", "check", "."]),
        ("ruff (format)", ["ruff", "format", "--check", "."]),
        ("mypy", ["mypy", "--strict", *TYPED]),
        ("pytest", ["pytest", *(pytest_arguments or whole)]),
    ]


def run(pytest_arguments: list[str], say: Callable[[str], None]) -> int:
    """Run everything, also after a failure. Returns 0 only if all is well."""
    failed = []
    # A developer's own Prefect server must not be what the tests talk to.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    for name, command in commands(pytest_arguments):
        say(f"== {name}: {' '.join(command)}")
        if subprocess.run(
            [sys.executable, "-m", *command], cwd=REPOSITORY, env=variables, check=False
        ).returncode:
            failed.append(name)
    say(f"== failed: {', '.join(failed)}" if failed else "== all is well")
    return 1 if failed else 0
