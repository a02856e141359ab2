"""process-case: one fraction of one case, from the machine's logs to the report."""

from __future__ import annotations

from prefect import flow, unmapped
from prefect.client.schemas.objects import State

from blocks import load_site
from tasks import (
    alive,
    assess_case,
    begin_case,
    calculate_beam,
    case_in_hand,
    clean_up_host,
    convert_beam,
    download_beam,
    end_case,
    engine_version,
    inspect_case,
    interpret_beam,
    name_run,
    report_case,
    retrying,
    settle,
    stoppable,
    units_of,
    upload_beam,
)

__all__ = ["process_case"]


@flow(name="process-case", persist_result=False)
def process_case(
    case: str,
    plan: str | None = None,
    fraction: str | None = None,
    deliveries: list[str] | None = None,
    recalculate: bool = False,
    host: str = "local",
) -> State[None]:
    """Compute, compare and report one fraction of a case.

    Args:
        case: The case folder (absolute, or its name in the inbox).
        plan: The plan's SOP instance UID. Needed only where a folder holds several plans.
        fraction: The fraction's id, the name of its first delivery's folder. Empty: the first whole one.
        deliveries: Your choice of deliveries, where a beam was delivered twice.
        recalculate: Compute everything again, even if it is finished.
        host: Name of the compute host's block.
    """
    with alive(), stoppable():
        site = load_site(host)
        manifest = inspect_case(case, plan, fraction, deliveries, site.inbox, site.rules)
        name_run(f"{manifest.key} · fraction {manifest.fraction_number}", [manifest.key, manifest.machine])
        with case_in_hand(site.results, manifest) as folder:
            done = begin_case(folder, manifest, recalculate=recalculate)
            if done is not None:
                clean_up_host(str(folder), site.host)  # the run that finished it may have died before this
                return done
            units = units_of(manifest, folder, recalculate=recalculate)
            calibration = site.calibration(manifest.machine)
            on_host, engine = unmapped(site.host), unmapped(site.engine)

            version = engine_version(site.host, site.engine)
            prepared = interpret_beam.map(units, unmapped(calibration), engine, version)
            uploaded = retrying(upload_beam, site.host.retry).map(prepared, on_host)
            finished = retrying(calculate_beam, site.host.retry).map(uploaded, on_host, engine)
            downloaded = retrying(download_beam, site.host.retry).map(finished, on_host)
            doses = convert_beam.map(downloaded, on_host)

            outcomes = settle(units, prepared, uploaded, finished, downloaded, doses)
            verdict = assess_case(manifest, str(folder), outcomes.doses, outcomes.failed, site.criteria)
            report = report_case(manifest, str(folder), outcomes.doses, verdict, site.engine, calibration)
            ended = end_case(folder, outcomes, verdict, report, site.engine, calibration)
            if not outcomes.failed:
                clean_up_host(str(folder), site.host)
            return ended
