"""A running installation, shared by the tests of a module."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.flows.installation import Installation


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Installation]:
    """Server and worker of their own, up; the test process talks to this server."""
    installation = Installation(tmp_path_factory.mktemp("site"))
    try:
        installation.up()
        with installation.settings():
            yield installation
    finally:
        installation.down()
