"""A machine, or a cluster, on which the dose engine runs."""

from typing import ClassVar

from prefect.blocks.core import Block

from mqi.hosts.base import HostSettings


class ComputeHost(Block, HostSettings):
    """A machine, or a cluster, on which the dose engine runs.

    Example:
        See what a host offers::

            from blocks import ComputeHost
            from mqi.hosts import connect

            print(connect(ComputeHost.load("local")).probe())
    """

    _block_type_name: ClassVar[str] = "MQI compute host"
    _block_type_slug: ClassVar[str] = "mqi-compute-host"
