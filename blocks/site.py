"""All settings of a site as one value, read from its blocks once a run."""

from typing import TypeVar

from prefect.blocks.core import Block

from blocks.case_folders import CaseFolders
from blocks.compute_host import ComputeHost
from blocks.machine_calibration import MachineCalibration
from blocks.moqui_parameters import MoquiParameters
from blocks.qa_criteria import QaCriteria
from blocks.ssh_credentials import look_up_credentials
from mqi.case import Frozen
from mqi.engines.settings import EngineSettings
from mqi.errors import ConfigurationError
from mqi.hosts import provide_credentials
from mqi.hosts.base import HostSettings
from mqi.intake import IntakeRules
from mqi.log.calibration import CalibrationSet
from mqi.qa import QaCriteria as Criteria

ROOMS = ("G1", "G2")
SITE = "site"

_Model = TypeVar("_Model", bound=Frozen)
_Block = TypeVar("_Block", bound=Block)


class Site(Frozen):
    """A site's settings, free of Prefect."""

    inbox: tuple[str, ...]
    results: str
    rules: IntakeRules
    host: HostSettings
    engine: EngineSettings
    criteria: Criteria
    calibrations: tuple[CalibrationSet, ...]

    def calibration(self, room: str) -> CalibrationSet:
        """The calibration set of a treatment room. Raises ConfigurationError when there is none."""
        for calibration in self.calibrations:
            if calibration.name == room:
                return calibration
        raise ConfigurationError(
            f"no calibration set for treatment room {room}",
            todo=f"Save one as the block mqi-machine-calibration/{room.lower()}",
        )


def plain(block: Block, model: type[_Model]) -> _Model:
    """The model behind a block, without the block."""
    return model.model_validate({name: getattr(block, name) for name in model.model_fields})


_APPLY = "Run `python3 -m deployments apply`, or create it in the UI under Blocks"


_ANOTHER_HOST = (
    "If the site has another compute host now, start the case on that one: Deployments, process-case, Run; "
    "else run `python3 -m deployments apply`"
)


def _load(kind: type[_Block], name: str, todo: str = _APPLY) -> _Block:
    try:
        block = kind.load(name)
    except ValueError as error:
        raise ConfigurationError(
            f"the block {kind.get_block_type_slug()}/{name} is missing or cannot be read",
            todo=todo,
        ) from error
    assert isinstance(block, kind)  # load() is typed as Self | Coroutine
    return block


def load_site(host: str) -> Site:
    """Read the blocks named `site`, the calibrations and the host's block from the Prefect server.

    From then on this process finds the credentials that a host names in their block, whenever it logs in.
    """
    provide_credentials(look_up_credentials)
    folders = _load(CaseFolders, SITE)
    return Site(
        inbox=folders.inbox,
        results=folders.results,
        rules=plain(folders, IntakeRules),
        host=plain(_load(ComputeHost, host, _ANOTHER_HOST), HostSettings),
        engine=plain(_load(MoquiParameters, SITE), EngineSettings),
        criteria=plain(_load(QaCriteria, SITE), Criteria),
        calibrations=tuple(_load(MachineCalibration, room.lower()).calibration() for room in ROOMS),
    )
