"""Copies over SSH against OpenSSH's sftp and scp (and rsync where it is there), and what a job costs.

    python3 -m tests.benchmarks.bench_transfer [--large-mib 500] [--rounds 3] [--jobs 8]

All in the same run, through the same sshd, at 0 and at 20 ms round trip (a proxy that delays). Ours includes
the login, SHA-256 of every file on both sides, fsync and the rename; theirs have none of these. Prints one
JSON line: seconds (median), ratios to sftp, and the limits of the design.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

from mqi.hosts import HostSettings, JobRequest, SshSettings
from mqi.hosts.pool import close_pools
from mqi.hosts.ssh import SshHost
from tests.sshd import Sshd, running_sshd
from tests.tcpproxy import FaultProxy, running_proxy

ROUND_TRIP_S = 0.020


def timed(action: Callable[[], object]) -> float:
    """Seconds that the action takes."""
    began = time.perf_counter()
    action()
    return time.perf_counter() - began


def peers(
    server: Sshd, port: int, source: Path, target: Path, *, up: bool
) -> dict[str, Callable[[], object]]:
    """Commands of OpenSSH and rsync that copy a folder to the host (up) or from it."""
    options = ["-o", "IdentitiesOnly=yes", "-o", "BatchMode=yes", "-o", "StrictHostKeyChecking=no"]
    options += ["-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-i", str(server.key)]
    login = f"{server.user}@{server.host}"

    def run(argv: list[str], text: str = "") -> object:
        return subprocess.run(argv, input=text.encode(), stdout=subprocess.DEVNULL, check=True)

    batch = f"{'put' if up else 'get'} -r {source} {target}\n"
    ends = [str(source), f"{login}:{target}"] if up else [f"{login}:{source}", str(target)]
    found: dict[str, Callable[[], object]] = {
        "sftp": lambda: run(["sftp", "-q", "-F", "none", "-b", "-", "-P", str(port), *options, login], batch),
        "scp": lambda: run(["scp", "-q", "-F", "none", "-r", "-P", str(port), *options, *ends]),
    }
    if shutil.which("rsync"):
        shell = " ".join(["ssh", "-F", "none", "-p", str(port), *options])
        found["rsync"] = lambda: run(["rsync", "-a", "-e", shell, *ends])
    return found


def host_at(server: Sshd, port: int, place: Path) -> SshHost:
    """Our host behind a port."""
    kind, key, *_ = (server.folder / "host_ed25519.pub").read_text().split()
    known = place / f"known_hosts.{port}"
    known.write_text(f"[127.0.0.1]:{port} {kind} {key}\n")
    ssh = SshSettings(
        address="127.0.0.1", port=port, user=server.user, key_file=str(server.key), known_hosts=str(known)
    )
    return SshHost(
        HostSettings(
            name="bench",
            kind="ssh",
            ssh=ssh,
            workspace=str(place / f"work{port}"),
            min_disk_space_gb=0,
            slots=4,
        )
    )


def compare(server: Sshd, port: int, folder: Path, place: Path, rounds: int) -> dict[str, dict[str, float]]:
    """Copy a folder up and down by all means, in turn, ``rounds`` times; give the medians."""
    host = host_at(server, port, place)
    job = f"{host.settings.workspace}/jobs/bench.a1"
    host.put(folder, "warm")
    shutil.copytree(folder, f"{job}/output")
    times: dict[str, dict[str, list[float]]] = {"up": {}, "down": {}}
    for number in range(rounds):
        close_pools()  # ours logs in anew, as theirs do
        spent = timed(partial(host.put, folder, f"unit{number}"))
        times["up"].setdefault("mqi", []).append(spent)
        close_pools()
        spent = timed(lambda: host.get("bench.a1", ["output"], place / "down"))
        times["down"].setdefault("mqi", []).append(spent)
        shutil.rmtree(place / "down")
        shutil.rmtree(f"{host.settings.workspace}/input/unit{number}")
        for way, source in (("up", folder), ("down", Path(job, "output"))):
            for name, copy in peers(server, port, source, place / "peer", up=way == "up").items():
                times[way].setdefault(name, []).append(timed(copy))
                shutil.rmtree(place / "peer")
    shutil.rmtree(host.settings.workspace)
    close_pools()
    return {
        way: {name: round(statistics.median(spent), 3) for name, spent in by_name.items()}
        for way, by_name in times.items()
    }


def job_overhead(server: Sshd, port: int, place: Path, count: int) -> float:
    """Median seconds of submit, wait and fetch of a job that does nothing but write a small file."""
    host = host_at(server, port, place)
    folder = place / "beam"
    folder.mkdir(exist_ok=True)
    (folder / "spots.csv").write_text("1,2,3\n")
    spent = []
    for number in range(count + 1):
        unit = f"u{number}"
        remote = host.put(folder, unit)
        argv = ("cp", f"{remote}/spots.csv", "output/dose.raw")
        request = JobRequest(unit=unit, name=f"{unit}.a1", argv=argv, input_folder=remote)

        def cycle(request: JobRequest = request) -> None:
            host.submit(request)
            host.wait(request.name, lambda line: None, threading.Event())
            host.get(request.name, ["output/dose.raw"], place / "fetched" / request.unit)

        spent.append(timed(cycle))
    close_pools()
    return round(statistics.median(spent[1:]), 3)  # the first logs in


def main() -> None:
    """Measure, and print one line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--large-mib", type=int, default=500)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=8)
    wanted = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name).resolve()
        large, small = place / "large", place / "small"
        large.mkdir()
        small.mkdir()
        with (large / "dose.raw").open("wb") as file:
            for _ in range(wanted.large_mib):
                file.write(os.urandom(1 << 20))
        for number in range(200):
            (small / f"{number:03}.csv").write_bytes(os.urandom(20_000))
        with running_sshd(place / "sshd") as server, running_proxy(server.port) as proxy:
            line = _measure(server, proxy, place, wanted)
    print(json.dumps(line))


def _measure(server: Sshd, proxy: FaultProxy, place: Path, wanted: argparse.Namespace) -> dict[str, object]:
    direct_small = compare(server, server.port, place / "small", place, wanted.rounds)
    direct_large = compare(server, server.port, place / "large", place, wanted.rounds)
    job_s = job_overhead(server, server.port, place, wanted.jobs)
    proxy.delay_s = ROUND_TRIP_S / 2
    far_small = compare(server, proxy.port, place / "small", place, wanted.rounds)
    far_large = compare(server, proxy.port, place / "large", place, 1)
    far_job_s = job_overhead(server, proxy.port, place, wanted.jobs)
    both = {"small": direct_small, "large": direct_large, "small_20ms": far_small, "large_20ms": far_large}
    ratios = {
        f"{what}_{way}": round(times[way]["mqi"] / times[way]["sftp"], 3)
        for what, times in both.items()
        for way in ("up", "down")
    }
    return {
        "benchmark": "transfer",
        "large_mib": wanted.large_mib,
        "seconds": both,
        "ratio_to_sftp": ratios,
        "job_s": job_s,
        "job_20ms_s": far_job_s,
        "limits": {"large": 1.0, "small_20ms": 0.07, "job_s": 0.25},
    }


if __name__ == "__main__":
    main()
