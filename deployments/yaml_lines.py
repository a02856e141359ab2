"""YAML into a pydantic model, with errors that name the line, the key and the nearest right key."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from typing import Any, TypeVar

import pydantic
import yaml
from pydantic import BaseModel

from mqi.errors import ConfigurationError

__all__ = ["parse_yaml"]

Where = tuple[str | int, ...]
_Model = TypeVar("_Model", bound=BaseModel)
_ALIKE = 0.6  # similarity from which a key is offered as the one that was meant
_KIND_OF_MODEL = ("model_type", "model_attributes_type")


def parse_yaml(text: str, model: type[_Model], *, name: str) -> _Model:
    """Read a settings file.

    Parameters
    ----------
    text
        The file's content.
    name
        The file's name, for messages.

    Raises
    ------
    ConfigurationError
        The text is no YAML, a key is unknown or stands twice, or a value is wrong. All problems are named,
        one a line.
    """
    lines: dict[Where, int] = {}
    try:
        root = yaml.compose(text, Loader=yaml.SafeLoader)
        twice = list(_lines(root, (), lines)) if root is not None else []
        values = yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date that does not exist
        raise _refused(name, [_syntax(error)]) from error
    if values is None:
        values = {}
    if not isinstance(values, dict):
        raise _refused(name, ["line 1: the file must hold sections such as `paths:`"])
    if twice:
        raise _refused(name, twice)
    try:
        return model.model_validate(values)
    except pydantic.ValidationError as error:
        found = sorted(_problem(one, model, values, lines) for one in error.errors(include_url=False))
        raise _refused(name, [text for _, text in found]) from error


def _refused(name: str, problems: list[str]) -> ConfigurationError:
    return ConfigurationError(
        "; ".join(problems) if len(problems) == 1 else "\n  " + "\n  ".join(problems),
        path=name,
        todo="Correct the file and run the command again" if len(problems) == 1 else None,
    )


def _syntax(error: Exception) -> str:
    mark = getattr(error, "problem_mark", None)
    line = f"line {mark.line + 1}: " if mark else ""
    return f"{line}this is no valid YAML: {getattr(error, 'problem', None) or 'unreadable'}"


def _lines(node: yaml.Node, where: Where, lines: dict[Where, int]) -> Iterator[str]:
    """Note the line of each key and item below a node; yield a sentence for each key that stands twice."""
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            inner = (*where, str(key.value))
            line = key.start_mark.line + 1
            if inner in lines:
                yield f"line {line}: {_dotted(inner)} stands twice (first in line {lines[inner]})"
            lines.setdefault(inner, line)
            yield from _lines(value, inner, lines)
    elif isinstance(node, yaml.SequenceNode):
        for number, item in enumerate(node.value):
            lines[(*where, number)] = item.start_mark.line + 1
            yield from _lines(item, (*where, number), lines)


def _dotted(where: Where) -> str:
    return ".".join(str(part) for part in where)


def _problem(
    error: Any, model: type[BaseModel], values: dict[str, Any], lines: dict[Where, int]
) -> tuple[int, str]:
    """One problem of pydantic as a line number and a sentence."""
    where = _in_file(error["loc"], values)
    line = next((lines[where[:end]] for end in range(len(where), 0, -1) if where[:end] in lines), 1)
    key = _dotted(where)
    if error["type"] == "extra_forbidden":
        said = f"{key} is no setting{_nearest(str(where[-1]), _fields(model, where[:-1]))}"
    elif error["type"] == "missing":
        said = f"{key} is missing"
    elif error["type"] in _KIND_OF_MODEL:
        said = f"{key} must hold keys of its own, indented below it"
    else:
        reason = str(error["msg"]).removeprefix("Value error, ")
        said = f"{key}: {reason[:1].lower()}{reason[1:]}" if key else reason
    return line, f"line {line}: {said}"


def _in_file(location: Where, values: object) -> Where:
    """The part of pydantic's location that stands in the file, without its labels of unions."""
    where: list[str | int] = []
    for part in location:
        in_dict = isinstance(values, dict) and part in values
        in_list = isinstance(values, list) and isinstance(part, int) and part < len(values)
        if in_dict or in_list:
            values = values[part]  # type: ignore[index]
        elif isinstance(values, dict) and part == location[-1]:
            values = None
        else:
            continue
        where.append(part)
    return tuple(where)


def _fields(model: type[BaseModel], where: Where) -> list[str]:
    """Names that are allowed in a section."""
    for part in where:
        field = model.model_fields.get(str(part))
        kinds = [] if field is None else [field.annotation, *getattr(field.annotation, "__args__", ())]
        inner = [kind for kind in kinds if isinstance(kind, type) and issubclass(kind, BaseModel)]
        if not inner:
            return []
        model = inner[0]
    return list(model.model_fields)


def _nearest(name: str, known: list[str]) -> str:
    close = difflib.get_close_matches(name, known, n=1, cutoff=_ALIKE)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; known here: {', '.join(known)}" if known else ""
