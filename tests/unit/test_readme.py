"""The README says what the program does: every setting with its default, every error, status and command."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import BaseModel
from pydantic_core import PydanticUndefined

from blocks import CaseFolders, ComputeHost, MachineCalibration, MoquiParameters, QaCriteria, SSHCredentials
from deployments.site import SiteSettings
from deployments.site_ssh import SshSection
from mqi import errors
from mqi.case import CaseStatus, Verdict
from mqi.engines.settings import PARAMETERS, EngineSettings
from mqi.hosts.base import HostSettings
from mqi.hosts.ssh_settings import SshCredentials
from mqi.intake import IntakeRules
from mqi.qa import QaCriteria as Criteria
from mqi.retry import RetryPolicy
from mqi.synthesize import SPOILS
from mqi.words import VERDICT_SYMBOLS, VERDICT_WORDS

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text(encoding="utf-8")
SECTIONS = {"engine", "qa", "intake"}  # of site.yaml, with tables of their own

KINDS = (CaseFolders, ComputeHost, MachineCalibration, MoquiParameters, QaCriteria, SSHCredentials)


def said(value: object) -> str:
    """A default as the tables write it."""
    if value is PydanticUndefined:
        return "required"
    if value is None or value in ("", (), {}):
        return "empty"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, BaseModel):
        return "see below"
    if isinstance(value, tuple):
        return ", ".join(f"`{one}`" for one in value)
    if isinstance(value, str):
        return f"`{getattr(value, 'value', value)}`"
    return f"{value:g}" if isinstance(value, float) else str(value)


def keys_of(model: type[BaseModel], prefix: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys of site.yaml with their defaults."""
    for name, field in model.model_fields.items():
        default = field.get_default(call_default_factory=True)
        if isinstance(default, BaseModel) and name not in SECTIONS:
            yield from keys_of(type(default), f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}", default


TABLES = [EngineSettings, IntakeRules, Criteria, HostSettings, RetryPolicy, SshCredentials, SshSection]


@pytest.mark.parametrize("model", TABLES)
def test_every_field_of_a_block_stands_in_the_readme_with_its_default(model: type[BaseModel]) -> None:
    for name, field in model.model_fields.items():
        assert f"\n| `{name}` | {said(field.get_default(call_default_factory=True))} | " in README, name


def test_every_parameter_of_the_engine_stands_in_the_readme_with_its_default() -> None:
    for name, parameter in PARAMETERS.items():
        assert f"\n| `{name}` | {said(parameter.default)} | " in README, name


def test_every_key_of_the_settings_file_stands_in_the_readme() -> None:
    for key, default in keys_of(SiteSettings):
        row = re.search(rf"^\| `{re.escape(key)}` \| (.+?) \| ", README, re.MULTILINE)
        assert row, key
        if key not in {*SECTIONS, "ssh", "monitoring"}:
            assert row[1] == said(default), key


@pytest.mark.parametrize("kind", KINDS)
def test_every_block_and_each_of_its_fields_is_named(kind: type) -> None:
    assert f"**{kind._block_type_name}**" in README
    assert kind._block_type_slug in README
    own = set(kind.model_fields) - {
        name for one in kind.__mro__[1:] for name in getattr(one, "model_fields", ())
    }
    assert all(f"`{name}`" in README for name in own)


def test_every_error_status_and_verdict_is_explained() -> None:
    classes = [name for name in errors.__all__ if name != "MQIError"]
    for name in classes:
        again = "yes" if getattr(errors, name).retryable else "no"
        assert re.search(rf"^\| `{name}` \| .+ \| {again} \| .+ \|$", README, re.MULTILINE), name
    for status in (*CaseStatus, "refused"):
        assert re.search(rf"^\| ([a-z]+, )?{status}(, [a-z]+)? \| ", README, re.MULTILINE), status
    for verdict in Verdict:
        assert f"\n| {VERDICT_SYMBOLS[verdict]} {VERDICT_WORDS[verdict]} | " in README


def test_every_file_that_is_named_is_there() -> None:
    linked = re.findall(r"\]\((?!https?:|#)([^)]+)\)", README)
    assert len(linked) > 3
    assert all((REPOSITORY / path).is_file() for path in linked)
    assert f"the {len(SPOILS)} faults" in README


@pytest.mark.parametrize("program", ["deployments", "mqi"])
def test_every_command_that_is_named_is_one(program: str) -> None:
    """And each command's options that the README uses are options of it."""
    used: dict[str, set[str]] = {}
    for line in re.findall(rf"-m {program} (.+)", README):
        command, *arguments = re.split(r"[\s`#)\"]", line)
        options = re.findall(r"--[a-z-]+", line.split("#")[0].split("`")[0])
        if re.fullmatch(r"[a-z]+", command):
            used.setdefault(command, set()).update(options if arguments else ())
    assert used
    if "test" in used:
        used["test"] = set()  # its arguments are pytest's
    for command, options in used.items():
        help_text = subprocess.run(
            [sys.executable, "-m", program, command, "--help"],
            cwd=REPOSITORY,
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert all(option in help_text for option in options), (command, options)
