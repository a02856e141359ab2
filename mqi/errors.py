"""What can go wrong, and whether trying again can help.

::

    MQIError
     ├── ConfigurationError     a setting is wrong or missing             a person changes it
     ├── ValidationError        the case's own files contradict           a person looks at the case
     ├── HostConnectionError    a host did not answer                     retried
     ├── TransferError          a copy did not arrive as it was sent      retried
     ├── ResourceError          no GPU, no disk space, a GPU that died    retried
     └── ProcessingError        a program ran and failed                  a person looks, then Retry

Every error says what happened, to which case, beam and file, and what to do now.
"""

from __future__ import annotations

from pathlib import PurePath
from typing import ClassVar

__all__ = [
    "ConfigurationError",
    "HostConnectionError",
    "MQIError",
    "ProcessingError",
    "ResourceError",
    "TransferError",
    "ValidationError",
]


class MQIError(Exception):
    """Base of all errors of this project.

    Parameters
    ----------
    what
        What happened, in a sentence without a full stop.
    case, beam, path
        What it happened to: the case key, the DICOM beam number, the file or folder.
    todo
        What a person can do about it, in a sentence.

    Attributes
    ----------
    retryable
        Whether the same step, run again a little later, may succeed by itself.
    """

    retryable: ClassVar[bool] = False

    def __init__(
        self,
        what: str,
        *,
        case: str | None = None,
        beam: int | None = None,
        path: str | PurePath | None = None,
        todo: str | None = None,
    ) -> None:
        super().__init__(what, case, beam, path, todo)
        self.what = what
        self.case = case
        self.beam = beam
        self.path = path
        self.todo = todo

    def __reduce__(self) -> tuple[object, ...]:
        return _rebuild, (type(self), self.what, self.case, self.beam, self.path, self.todo)

    def __str__(self) -> str:
        where = [
            text
            for text in (
                f"case {self.case}" if self.case else "",
                f"beam {self.beam}" if self.beam is not None else "",
                str(self.path) if self.path else "",
            )
            if text
        ]
        message = f"{', '.join(where)}: {self.what}" if where else self.what
        if not self.todo:
            return message
        return f"{message.rstrip('.')}. {self.todo.rstrip('.')}."


def _rebuild(
    kind: type[MQIError],
    what: str,
    case: str | None,
    beam: int | None,
    path: str | PurePath | None,
    todo: str | None,
) -> MQIError:
    """Unpickle an error with its context (keyword-only arguments are lost to the default)."""
    return kind(what, case=case, beam=beam, path=path, todo=todo)


class ConfigurationError(MQIError):
    """A setting is wrong, missing or contradicts another one."""


class ValidationError(MQIError):
    """The case's files contradict each other or cannot be what they claim to be."""


class HostConnectionError(MQIError):
    """A host did not answer. Says nothing about what runs on it."""

    retryable = True


class TransferError(MQIError):
    """A file did not arrive as it was sent."""

    retryable = True


class ResourceError(MQIError):
    """Something that may come back is missing: a GPU, disk space, memory."""

    retryable = True


class ProcessingError(MQIError):
    """A program (engine, interpreter, converter) ran and failed."""
