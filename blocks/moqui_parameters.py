"""The dose engine: which program, with which parameters, in which dialect."""

from typing import ClassVar

from prefect.blocks.core import Block

from mqi.engines.settings import EngineSettings


class MoquiParameters(Block, EngineSettings):
    """The dose engine: which program, with which parameters, in which dialect.

    Example:
        Go from the embedded analytic engine to MOQUI::

            from blocks import MoquiParameters

            MoquiParameters(engine="moqui", command=("/opt/moqui/tps_env",)).save("site", overwrite=True)
    """

    _block_type_name: ClassVar[str] = "MQI dose engine"
    _block_type_slug: ClassVar[str] = "mqi-moqui-parameters"
