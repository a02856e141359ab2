"""What a site sets and keeps secret: one Prefect Block a file. The fields are those of the models in mqi."""

from blocks.case_folders import CaseFolders
from blocks.compute_host import ComputeHost
from blocks.machine_calibration import MachineCalibration
from blocks.moqui_parameters import MoquiParameters
from blocks.qa_criteria import QaCriteria
from blocks.site import Site, load_site
from blocks.ssh_credentials import SSHCredentials, look_up_credentials

__all__ = [
    "CaseFolders",
    "ComputeHost",
    "MachineCalibration",
    "MoquiParameters",
    "QaCriteria",
    "SSHCredentials",
    "Site",
    "load_site",
    "look_up_credentials",
]
