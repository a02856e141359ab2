"""calculate_beam: run the engine on one GPU of the host, once, and know how it ended."""

from __future__ import annotations

from prefect import task

from mqi.case import JobStatus
from mqi.engines import moqui
from mqi.engines.settings import EngineSettings
from mqi.errors import ProcessingError, ResourceError
from mqi.hosts import connect
from mqi.hosts.base import Host, HostSettings, JobRequest, JobState
from tasks.caching import WhileFilesStand
from tasks.progress import BeamProgress
from tasks.slots import gpu_slot
from tasks.stopping import STOP, Stopped, running
from tasks.values import FinishedJob, PreparedBeam, UploadedBeam

__all__ = ["calculate_beam"]

RENDERED = "moqui_tps.in"
LOG_TAIL_BYTES = 4000


@task(
    name="calculate-beam",
    task_run_name="calculate {uploaded.prepared.unit.label}",
    persist_result=True,
    cache_policy=WhileFilesStand(within_run=True),
    result_serializer="json",
)
def calculate_beam(uploaded: UploadedBeam, host: HostSettings, engine: EngineSettings) -> FinishedJob:
    """Run the engine on the uploaded input, or find the run that was started before, and wait for its end.

    A job that an earlier, crashed run of this flow has started is found by its name and waited for; one that
    was lost is fenced before the next attempt; one that failed is reported once, and a Retry makes the next
    attempt. Nothing ever runs twice at a time.
    """
    prepared = uploaded.prepared
    progress = BeamProgress(prepared.unit)
    there = connect(host)
    attempt = there.attempt(prepared.name)
    if attempt.state is None:
        with gpu_slot(host.name, progress), running(host, attempt.name):
            if attempt.number > 1:  # the input may have been cleaned up; what is there is not sent again
                there.put(prepared.unit.work / "input", prepared.name)
            there.submit(
                JobRequest(
                    unit=prepared.name,
                    name=attempt.name,
                    argv=prepared.input.argv,
                    input_folder=uploaded.remote_folder,
                    rendered=RENDERED,
                    time_limit_s=engine.time_limit_s,
                )
            )
            job = _wait(there, attempt.name, progress)
    else:
        progress.says(f"found {attempt.name} on {host.name}, {attempt.state.status}")
        with running(host, attempt.name):
            job = _wait(there, attempt.name, progress)
    return FinishedJob(prepared=prepared, host=host.name, job=_judge(there, job, prepared, progress))


def _wait(host: Host, name: str, progress: BeamProgress) -> JobState:
    progress.says(f"calculating on {host.settings.name}")
    job = host.wait(name, progress.line, STOP)
    if not job.ended and not job.lost:
        raise Stopped(f"the run was told to end; job {name} goes on and is found again")
    return job


def _judge(host: Host, job: JobState, prepared: PreparedBeam, progress: BeamProgress) -> JobState:
    """Return a job that ended well; else acknowledge its end, so that a retry runs anew, and raise."""
    case, beam = prepared.unit.manifest.key, prepared.unit.beam_number
    if job.status is JobStatus.COMPLETED:
        progress.done(f"calculated on {host.settings.name}, {job.slot}")
        return job
    if job.interrupted:
        raise ResourceError(
            f"job {job.name} was lost on {host.settings.name} ({job.reason})",
            case=case,
            beam=beam,
            todo="It is fenced and run again; if this repeats, look at the host",
        )
    progress.says(f"failed: {job.reason}, exit status {job.exit_code}")
    tail = host.tail(job.name, "err", LOG_TAIL_BYTES)
    host.ack(job.name)
    if job.status is JobStatus.CANCELLED:
        raise ProcessingError(
            "the calculation was cancelled", case=case, beam=beam, todo="Press Retry to run it"
        )
    if job.reason == "timeout":
        raise ProcessingError(
            "the engine exceeded its time limit",
            case=case,
            beam=beam,
            todo="Raise time_limit_s in the engine's block, or look why it hangs; then press Retry",
        )
    error = moqui.explain_exit(job.exit_code if job.exit_code is not None else -1, tail)
    raise type(error)(error.what, case=case, beam=beam, todo=error.todo)
