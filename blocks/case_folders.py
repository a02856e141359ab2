"""Where cases arrive, where results go, and when a case counts as whole."""

from typing import ClassVar

from prefect.blocks.core import Block
from pydantic import Field

from mqi import intake


class CaseFolders(Block, intake.IntakeRules):
    """Where cases arrive, where results go, and when a case counts as whole.

    Example:
        Load it in a flow::

            from blocks import CaseFolders

            folders = CaseFolders.load("site")
            print(folders.inbox)
    """

    _block_type_name: ClassVar[str] = "MQI case folders"
    _block_type_slug: ClassVar[str] = "mqi-case-folders"

    inbox: tuple[str, ...] = Field(description="Folders in which the machine's cases arrive (absolute).")
    results: str = Field(description="Folder that receives doses, reports and case.json (absolute).")
