"""A finished step is not done again, as long as what it made is still there."""

from __future__ import annotations

import hashlib
import json
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from prefect.cache_policies import CachePolicy
from prefect.context import TaskRunContext
from pydantic import BaseModel

from mqi.errors import MQIError
from mqi.files import sha256_of

__all__ = ["WhileFilesStand", "result_files"]


@dataclass
class WhileFilesStand(CachePolicy):
    """Key a step by its inputs and believe its cached result only while its files stand with their hashes.

    ``within_run``: believe it in the same flow run only. For steps whose result stands on a host: another run
    asks the host again, which costs little, since what is there is found by its name.

    Prefect's own policies do not look whether the files behind a result still exist. Here a result whose
    files are gone or changed gets a key that nobody has seen, so that the step runs again.
    """

    within_run: bool = False

    def compute_key(
        self,
        task_ctx: TaskRunContext,
        inputs: dict[str, Any],
        flow_parameters: dict[str, Any],
        **kwargs: Any,
    ) -> str | None:
        """Key of this call, the same for every run with the same inputs."""
        run = str(task_ctx.task_run.flow_run_id) if self.within_run else ""
        described = json.dumps([task_ctx.task.task_key, run, inputs], sort_keys=True, default=_plain)
        key = hashlib.sha256(described.encode()).hexdigest()
        store = task_ctx.result_store
        if store.exists(key) and not _believable(store.read(key).result):
            return f"{key}-{uuid.uuid4().hex[:8]}"
        return key


def _plain(value: object) -> object:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    return str(value)


def _believable(value: object) -> bool:
    """Whether a result still holds: its files stand, and no later step has rejected it."""
    if getattr(value, "rejected", False):
        return False
    return all(_stands(path, sha256) for path, sha256 in result_files(value))


def _stands(path: Path, sha256: str) -> bool:
    try:
        return sha256_of(path) == sha256
    except (OSError, MQIError):
        return False


def result_files(value: object) -> Iterator[tuple[Path, str]]:
    """The files that a step's result names, with their hashes."""
    files = getattr(value, "standing_files", None)
    if files is not None:
        yield from files()
