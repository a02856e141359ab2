"""The limits that make a verdict."""

from typing import ClassVar

from prefect.blocks.core import Block

from mqi import qa


class QaCriteria(Block, qa.QaCriteria):
    """The limits that make a verdict.

    Example:
        A stricter gamma::

            from blocks import QaCriteria

            QaCriteria(gamma_dose_percent=2.0).save("site", overwrite=True)
    """

    _block_type_name: ClassVar[str] = "MQI QA criteria"
    _block_type_slug: ClassVar[str] = "mqi-qa-criteria"
