"""One case, from the folder that the machine writes to the report, through the scheduled scanner."""

from __future__ import annotations

import pytest

from mqi.case import CaseStatus
from mqi.synthesize import Recipe
from tests.flows.installation import Installation


@pytest.mark.timeout(240)
def test_a_case_goes_from_the_inbox_to_the_report_by_itself(site: Installation) -> None:
    case = site.deliver(Recipe.small())
    record = site.finished(case)
    assert record.status is CaseStatus.COMPLETED, record.message
    assert record.verdict is not None and record.verdict["verdict"] == "pass"
    folder = site.results / record.key / record.fraction_id
    assert all((folder / name).stat().st_size > 10_000 for name in record.reports)
    assert set(site.engine_runs().values()) == {1}
    assert len(site.engine_runs()) == 4  # two beams, from the log and from the plan
