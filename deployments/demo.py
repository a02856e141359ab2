"""The demonstration: everything set up, a synthetic case in the inbox, found by the scheduled scanner."""

from __future__ import annotations

import contextlib
import json
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path

from deployments import service
from deployments.demo_host import host_over_ssh, needs_server
from deployments.environment import Home, ui_url, worklist_url
from mqi.case import CaseStatus, case_key
from mqi.record import CaseRecord, read_record
from mqi.synthesize import SPOILS, Recipe, synthesize_case

__all__ = ["run"]

LOOK_EVERY_S = 1.0
PATIENT = "MQIDEMO"
GIVE_UP_S = 1800.0
STAYS_WAITING_S = 45.0  # so long a spoilt case may wait before the demonstration says that it will not start

Say = Callable[[str], None]

SITE = """\
# Settings of the demonstration: the scanner looks often, and the embedded engine computes.
app:
  name: MQI Communicator demo
  environment: demonstration
resources:
  min_disk_space_gb: 0.5
processing:
  scan_interval_seconds: 5
  settle_seconds: 2
"""


def run(
    home: Home, *, port: int | None, leave: bool, spoil: str | None, over_ssh: bool = False, say: Say
) -> int:
    """Run the demonstration. Returns 0 only if the case completed."""
    if spoil is not None and spoil.partition("=")[0] not in SPOILS:
        if spoil != "list":
            say(f"There is no fault {spoil!r}. These are:")
        for name, one in sorted(SPOILS.items()):
            say(f"  {name:24} {one.description} [{one.expect}]")
        return 0 if spoil == "list" else 2
    home.make()
    folder, key = _put_case(home, spoil, say)
    before = _record(home, key)
    if before is not None and before.status is CaseStatus.COMPLETED:
        say(f"Case {key} is done since {before.updated_at.astimezone():%Y-%m-%d %H:%M}: nothing to compute.")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # a closed terminal ends it as Ctrl-C does
    signal.signal(signal.SIGHUP, signal.default_int_handler)
    with contextlib.ExitStack() as stack:
        text = SITE
        if over_ssh or needs_server(home):
            text += stack.enter_context(host_over_ssh(home))
            say("A private SSH server runs; the engine computes behind it.")
        return _process(home, port, text, before, key, folder, leave=leave, say=say)


def _process(
    home: Home,
    port: int | None,
    site_text: str,
    before: CaseRecord | None,
    key: str,
    folder: Path,
    *,
    leave: bool,
    say: Say,
) -> int:
    """Bring everything up, see the case to its end, and bring down what was started."""
    running = service.bring_up(home, port, say, site_text=site_text)
    say(f"Prefect UI: {ui_url(running.port)}, worklist: {worklist_url(running.port)}")
    try:
        record = (
            before if before and before.status is CaseStatus.COMPLETED else _follow(home, key, folder, say)
        )
        completed = record is not None and record.status is CaseStatus.COMPLETED
        if record is not None:
            _show(home, record, say)
        if not leave:
            say(f"The UI stays at {ui_url(running.port)}. Ctrl-C ends the demonstration.")
            while True:
                time.sleep(LOOK_EVERY_S)
    except KeyboardInterrupt:
        say("")
        completed = True  # a person ended it
    finally:
        service.bring_down(home, running.started, say)
    return 0 if completed else 1


def _put_case(home: Home, spoil: str | None, say: Say) -> tuple[Path, str]:
    """Write the case and move it into the inbox whole; one that is there already stays as it is."""
    notes = home.run / "demo.json"
    known = json.loads(notes.read_text()) if notes.exists() else {}
    name = spoil or ""
    if name in known and Path(known[name]["folder"]).is_dir():
        return Path(known[name]["folder"]), str(known[name]["key"])
    say("Making a synthetic case: plan, CT, machine logs, planning system doses ...")
    making, inbox = home.folder / "demo-case.part", home.folder / "inbox"
    shutil.rmtree(making, ignore_errors=True)
    making.mkdir()
    inbox.mkdir(exist_ok=True)
    patient = f"{PATIENT}-{len(known)}" if spoil else PATIENT
    case = synthesize_case(making, Recipe(patient_id=patient), spoil)
    folder = inbox / case.folder.name
    key = case_key(case.plan.patient_id, case.plan.sop_uid)
    for made in making.iterdir():
        made.rename(inbox / made.name)
    making.rmdir()
    known[name] = {"folder": str(folder), "key": key}
    notes.write_text(json.dumps(known, indent=1))
    say(f"Case {key} lies in {folder}")
    return folder, key


def _record(home: Home, key: str) -> CaseRecord | None:
    """The record of the case's only fraction, when it has ended."""
    for path in sorted((home.folder / "results" / key).glob("*/case.json")):
        record = read_record(path.parent)
        if record is not None and record.status in (
            CaseStatus.COMPLETED,
            CaseStatus.PARTIAL,
            CaseStatus.FAILED,
        ):
            return record
    return None


def _follow(home: Home, key: str, folder: Path, say: Say) -> CaseRecord | None:
    """Say what happens until the case has ended, or will not begin."""
    from deployments.follow import Follower

    say("Waiting for the scheduled scanner to find the case ...")
    follower = Follower(key, str(folder), say)
    end, stuck_since = time.monotonic() + GIVE_UP_S, None
    while time.monotonic() < end:
        ended = follower.look()
        record = _record(home, key)
        if ended:
            return record
        if not follower.waiting:
            stuck_since = None
        elif stuck_since is None:
            stuck_since = time.monotonic()
        elif time.monotonic() - stuck_since > STAYS_WAITING_S:
            say(f"The case does not start: {follower.waiting}")
            return record
        time.sleep(LOOK_EVERY_S)
    say(f"Nothing came of it in {GIVE_UP_S / 60:.0f} minutes; see {home.logs}")
    return None


def _show(home: Home, record: CaseRecord, say: Say) -> None:
    """Where to look at what came of it."""
    folder = home.folder / "results" / record.key / record.fraction_id
    verdict = record.verdict or {}
    say("")
    say(f"Case      {record.key}, fraction {record.fraction_number}: {record.status.value}")
    if verdict:
        say(f"Verdict   {verdict['verdict']}")
    if record.message:
        say(f"          {record.message}")
    for report in record.reports:
        say(f"Report    {folder / report}")
    for beam in record.beams:
        for source, dose in beam.doses.items():
            say(f"Dose      {folder / dose.output.path}  (beam {beam.number}, from the {source.value})")
    say(f"Record    {folder / 'case.json'}")
