"""The constants that turn a machine's log into mm and MU."""

from pathlib import Path
from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field, field_validator

from mqi.log.calibration import CalibrationSet, parse_calibration

ORIGIN = Path("the block's text")


class MachineCalibration(Block):
    """The constants that turn a machine's log into mm and MU. Their hash stands in every result.

    Example:
        A new calibration file of treatment room G2::

            from pathlib import Path
            from blocks import MachineCalibration

            MachineCalibration(text=Path("scv_init_G2.txt").read_text()).save("g2", overwrite=True)
    """

    _block_type_name: ClassVar[str] = "MQI machine calibration"
    _block_type_slug: ClassVar[str] = "mqi-machine-calibration"

    text: str = Field(description="The calibration file: one `KEY value` a line, # comments.")

    @field_validator("text")
    @classmethod
    def _must_parse(cls, text: str) -> str:
        parse_calibration(text, ORIGIN)
        return text

    def calibration(self) -> CalibrationSet:
        """The constants, read and checked. Raises ConfigurationError for an incomplete set."""
        return parse_calibration(self.text, ORIGIN)
