"""The scanner's knowledge: what is new in the inbox, at the price of what changed in it."""

from mqi.scan.fractions import SETTLING
from mqi.scan.index import INDEX_NAME, ScanIndex
from mqi.scan.scanning import WORKLIST_DAYS, scan
from mqi.scan.values import REFUSED, Ready, ScanResult, ScanRow

__all__ = [
    "INDEX_NAME",
    "REFUSED",
    "SETTLING",
    "WORKLIST_DAYS",
    "Ready",
    "ScanIndex",
    "ScanResult",
    "ScanRow",
    "scan",
]
