"""Names that become folders on a host."""

from __future__ import annotations

from pydantic import TypeAdapter, ValidationError

from mqi.errors import ConfigurationError
from mqi.hosts.base import Name

__all__ = ["checked_name"]

_NAME: TypeAdapter[str] = TypeAdapter(Name)


def checked_name(name: str) -> str:
    """Return a name that may become a folder. Raises ConfigurationError."""
    try:
        return _NAME.validate_python(name)
    except ValidationError as error:
        raise ConfigurationError(
            f"{name!r} cannot name a job or a unit",
            todo="Letters, digits, '.', '_' and '-', at most 180 of them, first a letter or digit",
        ) from error
