"""site.yaml: the settings of one site in the specification's schema (section 10), and sections of our own.

Every key works or is refused with the reason. What a key means is said in the file that `up` writes.
"""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import ConfigDict, Field, PrivateAttr, field_validator, model_validator

from deployments.environment import Home
from deployments.site_ssh import SshSection
from deployments.yaml_lines import parse_yaml
from mqi.case import Frozen
from mqi.engines.settings import EngineSettings
from mqi.errors import ConfigurationError
from mqi.hosts.base import HostSettings
from mqi.intake import IntakeRules
from mqi.log.calibration import read_calibration
from mqi.qa import QaCriteria
from mqi.retry import RetryPolicy

__all__ = ["LOCAL", "SiteSettings", "describe", "load_site_file", "make_site_file"]

TEMPLATE = Path(__file__).with_name("site.yaml")
LOCAL = "local"
"""Name of the compute host where site.yaml has no section ssh: this machine."""


class App(Frozen):
    """What the installation is called."""

    name: str = "MQI Communicator"
    version: str = ""
    environment: str = "production"


class Paths(Frozen):
    """Folders. Relative ones lie in the home folder."""

    local_logdata: str | tuple[str, ...] = "inbox"
    remote_workspace: str = "workspace"
    results: str = "results"

    @field_validator("*")
    @classmethod
    def _named(cls, value: str | tuple[str, ...]) -> str | tuple[str, ...]:
        if not value or not all(value):
            raise ValueError("a folder is needed")
        return value


class Resources(Frozen):
    """How much may be used."""

    max_concurrent_jobs: int = Field(default=4, ge=1, le=200, description="Cases at work at a time")
    gpu_count: int | None = Field(default=None, ge=1, le=1000, description="Jobs that compute at a time")
    min_disk_space_gb: float = Field(default=10.0, ge=0)


class Retry(Frozen):
    """The specification's names for `mqi.retry.RetryPolicy`."""

    max_attempts: int = Field(default=3, ge=1, le=20)
    base_delay: float = Field(default=1.0, gt=0, le=3600, allow_inf_nan=False)


class Processing(Frozen):
    """When a case is looked at and believed, and how often a failed step is tried."""

    scan_interval_seconds: int = Field(default=60, ge=5, le=86400)
    settle_seconds: float = Field(default=5.0, ge=0, le=3600, allow_inf_nan=False)
    ready_marker: str | None = Field(default="_CASE_READY", min_length=1)
    retry_policy: Retry = Retry()


class SiteSettings(Frozen):
    """All settings of a site, as site.yaml holds them."""

    model_config = ConfigDict(hide_input_in_errors=True)  # a secret may stand where none belongs

    app: App = App()
    paths: Paths = Paths()
    ssh: SshSection | None = None
    resources: Resources = Resources()
    processing: Processing = Processing()
    monitoring: None = None
    engine: EngineSettings = EngineSettings()
    qa: QaCriteria = QaCriteria.model_validate({})
    intake: IntakeRules = IntakeRules()
    calibrations: dict[Literal["G1", "G2"], str] = Field(default_factory=dict)
    _home: Path = PrivateAttr(default=Path())

    @field_validator("monitoring", mode="before")
    @classmethod
    def _no_monitoring_yet(cls, value: object) -> None:
        if value is not None:
            raise ValueError(
                "metrics and periodic host checks come with a later version; leave the section out"
            )

    @model_validator(mode="after")
    def _rules_are_set_once(self) -> SiteSettings:
        pairs = (("settle_seconds", "settle_s"), ("ready_marker", "ready_marker"))
        for seed, own in pairs:
            if seed in self.processing.model_fields_set and own in self.intake.model_fields_set:
                raise ValueError(f"processing.{seed} and intake.{own} are the same setting; keep one of them")
        return self

    def at(self, home: Path) -> SiteSettings:
        """The same settings with relative folders taken from this home."""
        placed = self.model_copy()
        placed._home = home
        return placed

    def _folder(self, name: str) -> str:
        return str(self._home / Path(name).expanduser())

    def inboxes(self) -> tuple[str, ...]:
        """Folders in which cases arrive, absolute."""
        named = self.paths.local_logdata
        return tuple(self._folder(name) for name in ((named,) if isinstance(named, str) else named))

    def results_folder(self) -> str:
        """Folder of the results, absolute."""
        return self._folder(self.paths.results)

    def intake_rules(self) -> IntakeRules:
        """When a case is whole: section intake, with the two rules that the specification names."""
        named = {"settle_seconds": "settle_s", "ready_marker": "ready_marker"}
        said = {
            own: getattr(self.processing, seed)
            for seed, own in named.items()
            if own not in self.intake.model_fields_set
        }
        return IntakeRules.model_validate(self.intake.model_dump() | said)

    def case_folders(self) -> dict[str, Any]:
        """Fields of the block CaseFolders."""
        return self.intake_rules().model_dump() | {"inbox": self.inboxes(), "results": self.results_folder()}

    def host_settings(self) -> HostSettings:
        """Settings of the one host: this machine, or the one that section ssh names."""
        retry = self.processing.retry_policy
        reached: dict[str, Any] = {"name": LOCAL, "workspace": self._folder(self.paths.remote_workspace)}
        if self.ssh is not None:
            reached = {
                "name": self.ssh.host_name(),
                "kind": "ssh",
                "ssh": self.ssh.settings(self._folder),
                "workspace": self.paths.remote_workspace,
            }
        return HostSettings(
            **reached,
            slots=self.resources.gpu_count,
            min_disk_space_gb=self.resources.min_disk_space_gb,
            retry=RetryPolicy.model_validate(
                {"max_attempts": retry.max_attempts, "base_delay_s": retry.base_delay}
            ),
        )

    def calibration_texts(self) -> dict[str, str]:
        """Room -> content of the calibration file that the site names for it, read and checked."""
        texts = {}
        for room, name in self.calibrations.items():
            path = Path(self._folder(name))
            found = read_calibration(path).name
            if found != room:
                raise ConfigurationError(
                    f"this is the calibration set of room {found}, but site.yaml names it for {room}",
                    path=path,
                )
            texts[str(room)] = path.read_text(encoding="utf-8-sig")
        return texts

    def make_folders(self) -> None:
        """Create the folders of the home; one outside it must be there (a share may not be mounted).

        The workspace of a host behind SSH is not on this machine; it is made there.
        """
        own_workspace = () if self.ssh else (self.host_settings().workspace,)
        for name in (*self.inboxes(), self.results_folder(), *own_workspace):
            folder = Path(name)
            if folder.is_relative_to(self._home):
                folder.mkdir(parents=True, exist_ok=True)
            elif not folder.is_dir():
                raise ConfigurationError(
                    "this folder of site.yaml is not there",
                    path=folder,
                    todo="Mount or create it, or name another one under paths:",
                )


def load_site_file(home: Home, file: Path | None = None) -> SiteSettings:
    """Read and check the home's site.yaml, or another file as if it were the home's.

    Raises ConfigurationError, with a line for each problem.
    """
    path = file or home.site
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(
            f"the settings cannot be read ({type(error).__name__})",
            path=path,
            todo="`python3 -m deployments up` writes one with comments where there is none",
        ) from error
    site = parse_yaml(text, SiteSettings, name=str(path)).at(home.folder)
    try:
        site.host_settings()
    except ValueError as error:
        todo = (
            "Name an absolute folder on that host, such as /scratch/mqi"
            if site.ssh
            else "Name another folder"
        )
        raise ConfigurationError(f"paths.remote_workspace: {_reason(error)}", path=path, todo=todo) from None
    site.calibration_texts()
    return site


def _reason(error: ValueError) -> str:
    errors = getattr(error, "errors", None)
    return str(errors()[0]["msg"]).removeprefix("Value error, ") if errors else str(error)


def make_site_file(home: Home, text: str | None) -> None:
    """Write site.yaml with its comments where there is none. An existing one is never touched."""
    if home.site.exists():
        return
    handle, part = tempfile.mkstemp(dir=home.folder, suffix=".part")
    with os.fdopen(handle, "w") as file:
        file.write(text if text is not None else TEMPLATE.read_text())
    Path(part).replace(home.site)


def describe(site: SiteSettings) -> str:
    """The settings in effect, defaults included, as YAML."""
    values = site.model_dump(mode="json", exclude_none=True)
    values["paths"] = {
        "local_logdata": list(site.inboxes()),
        "remote_workspace": site.host_settings().workspace,
        "results": site.results_folder(),
    }
    if site.ssh:
        values["ssh"]["name"] = site.ssh.host_name()
    values["intake"] = site.intake_rules().model_dump(mode="json")
    for name in ("settle_seconds", "ready_marker"):
        values["processing"].pop(name, None)  # said under intake
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True).rstrip()
