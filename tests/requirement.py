"""Programs that a test needs and that pip does not install."""

import os
import shutil

import pytest

from deployments.private_sshd import SEARCH


def program(name: str, *, package: str) -> str:
    """Path of a program. Where it is missing the test is skipped, but in CI it fails."""
    path = shutil.which(name, path=SEARCH)
    if path:
        return path
    reason = f"{name} is not installed (Debian package {package})"
    if os.environ.get("CI"):
        pytest.fail(reason)
    pytest.skip(reason)
