"""One step each: what is retried, cached, limited and shown. What the steps know stands in mqi."""

from tasks.assess import assess_case
from tasks.calculate import calculate_beam
from tasks.convert import convert_beam
from tasks.inspect import inspect_case
from tasks.interpret import engine_version, interpret_beam
from tasks.ledger import begin_case, case_in_hand, end_case, units_of
from tasks.outcome import settle
from tasks.recovery import alive
from tasks.report import report_case
from tasks.retrying import retrying
from tasks.runs import name_run
from tasks.stopping import stoppable
from tasks.tidy import clean_up_host, forget_old_results, remove_old_failures
from tasks.transfer import download_beam, upload_beam

__all__ = [
    "alive",
    "assess_case",
    "begin_case",
    "calculate_beam",
    "case_in_hand",
    "clean_up_host",
    "convert_beam",
    "download_beam",
    "end_case",
    "engine_version",
    "forget_old_results",
    "inspect_case",
    "interpret_beam",
    "name_run",
    "remove_old_failures",
    "report_case",
    "retrying",
    "settle",
    "stoppable",
    "units_of",
    "upload_beam",
]
