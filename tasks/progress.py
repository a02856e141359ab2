"""What a person sees of a step while it runs: a progress bar a beam, and what it waits for."""

from __future__ import annotations

import time
from datetime import datetime
from uuid import UUID

from prefect.artifacts import create_progress_artifact, update_progress_artifact
from prefect.logging import get_run_logger

from mqi.engines.moqui import progress_of
from tasks.values import Unit, artifact_key

__all__ = ["BeamProgress"]

UPDATE_EVERY_S = 1.0
"""An update costs about 11 ms and a row in the server's database; nobody reads faster."""


class BeamProgress:
    """The progress artifact of one beam's calculation. Never goes backwards."""

    def __init__(self, unit: Unit) -> None:
        self._label = f"{unit.manifest.key} · {unit.label}"
        self._percent = 0.0
        self._said = ""
        self._updated = 0.0
        self._log = get_run_logger()
        key = artifact_key(unit.manifest.key, unit.manifest.fraction_number, unit.slug)
        created = create_progress_artifact(0.0, key=key, description=f"{self._label}: preparing")
        assert isinstance(created, UUID)  # typed as UUID | Coroutine
        self._artifact = created

    def says(self, what: str) -> None:
        """Say, in the log and under the bar, what happens or what is waited for, and since when."""
        self._tell(what, "since")

    def line(self, text: str) -> None:
        """Take a line that the engine printed."""
        fraction = progress_of(text)
        if fraction is not None and 100 * fraction > self._percent:
            self._percent = min(99.0, 100 * fraction)
            self._show()

    def done(self, what: str) -> None:
        """The engine has ended well."""
        self._percent = 100.0
        self._tell(what, "at")

    def _tell(self, what: str, when: str) -> None:
        self._said = f"{what} ({when} {datetime.now():%H:%M:%S})"
        self._log.info("%s: %s", self._label, what)
        self._show(force=True)

    def _show(self, *, force: bool = False) -> None:
        if force or time.monotonic() - self._updated >= UPDATE_EVERY_S:
            self._updated = time.monotonic()
            update_progress_artifact(self._artifact, self._percent, f"{self._label}: {self._said}")
