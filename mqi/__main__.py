"""The command line: what the project knows, for a physicist at a prompt, without a server.

``python3 -m mqi inspect CASE`` says what is there and what is missing, ``interpret`` turns logs into
spots, ``synthesize`` writes a case to try things with, ``gamma`` compares two doses.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from mqi.commands import (
    REFUSED,
    Answer,
    gamma_command,
    inspect_command,
    interpret_command,
    synthesize_command,
)
from mqi.errors import MQIError

__all__ = ["main"]

_MARKER = "_CASE_READY"


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Returns 0: all is well, 1: refused, not whole or failed; 2 is for wrong usage."""
    arguments = _parser().parse_args(argv)
    command: Callable[[argparse.Namespace], Answer] = arguments.command
    try:
        answer = command(arguments)
    except MQIError as error:
        answer = Answer(REFUSED, (), {"error": str(error), "kind": type(error).__name__})
        if not arguments.json:
            print(_printable(f"{type(error).__name__}: {error}"), file=sys.stderr)
    except OSError as error:
        message = f"{error.filename or 'the file'}: {error.strerror or error}"
        answer = Answer(REFUSED, (), {"error": message, "kind": "OSError"})
        if not arguments.json:
            print(_printable(message), file=sys.stderr)
    if arguments.json:
        print(json.dumps(answer.data, indent=2))
    else:
        for line in answer.lines:
            print(_printable(line))
    return answer.status


def _printable(text: str) -> str:
    """Text that any terminal takes: names may hold control characters and broken UTF-8."""
    encoding = sys.stdout.encoding or "utf-8"
    shown = "".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in text)
    return shown.encode(encoding, errors="backslashreplace").decode(encoding)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m mqi",
        description="Patient QA for proton therapy, without a server: look at cases, read logs, make cases, "
        "compare doses.",
        formatter_class=partial(argparse.HelpFormatter, max_help_position=18),
        epilog="Exit status: 0 all is well, 1 refused, not whole or failed, 2 wrong usage.",
    )
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", help="print the result as JSON, for another program")

    inspect = commands.add_parser(
        "inspect",
        parents=[common],
        help="say what a case folder holds, and what it still waits for",
        description="Look at a case folder (or at all cases below a folder): plan, fractions, what is "
        "missing. Nothing is changed. Exit status 0 only if every fraction is whole.",
    )
    inspect.add_argument(
        "case", type=Path, metavar="CASE", help="case folder (RT Ion Plan and deliveries), or one above it"
    )
    _add_intake_options(inspect)
    inspect.set_defaults(command=inspect_command)

    interpret = commands.add_parser(
        "interpret",
        parents=[common],
        help="turn the logs of one fraction into spots (mm, MU) and an account of the meterset",
        description="Read the logs of one whole fraction. For each beam OUT gets beam_<number>_spots.npz "
        "(planned and delivered position and meterset of every spot) and beam_<number>_account.json.",
    )
    interpret.add_argument("case", type=Path, metavar="CASE", help="case folder, or one above it")
    interpret.add_argument("out", type=Path, metavar="OUT", help="folder for the results; made if missing")
    interpret.add_argument("--fraction", metavar="ID", help="which fraction, where the case has several")
    _add_intake_options(interpret)
    interpret.set_defaults(command=interpret_command)

    synthesize = commands.add_parser(
        "synthesize",
        parents=[common],
        help="write a synthetic case to try things with: plan, CT, logs, TPS doses",
        description="Write a case that no patient ever had into OUT (an inbox, for instance). "
        "The same seed always gives the same bytes. It can be spoilt, to see what happens then.",
    )
    synthesize.add_argument(
        "out", type=Path, metavar="OUT", nargs="?", help="folder in which the case is made"
    )
    synthesize.add_argument("--seed", type=int, default=1, help="another number, another case (default 1)")
    synthesize.add_argument("--room", choices=("G1", "G2"), default="G2", help="treatment room (default G2)")
    synthesize.add_argument(
        "--patient-id",
        metavar="ID",
        default="SYN00001",
        help="patient ID, and name of the folder (default SYN00001)",
    )
    synthesize.add_argument("--small", action="store_true", help="a small case, for tests")
    synthesize.add_argument("--spoil", metavar="NAME", help="make something wrong with it; see --list-spoils")
    synthesize.add_argument("--list-spoils", action="store_true", help="say what can be wrong, and stop")
    synthesize.set_defaults(command=synthesize_command)

    gamma = commands.add_parser(
        "gamma",
        parents=[common],
        help="compare two RT Dose files by 3D gamma",
        description="3D gamma of EVAL against REF. Exit status 0 if the pass rate reaches --pass.",
    )
    gamma.add_argument(
        "reference", type=Path, metavar="REF.dcm", help="RT Dose that gives points and maximum"
    )
    gamma.add_argument("evaluated", type=Path, metavar="EVAL.dcm", help="RT Dose that is judged")
    gamma.add_argument(
        "--dose-percent", type=float, default=3.0, metavar="P", help="dose criterion, %% (default 3)"
    )
    gamma.add_argument(
        "--distance-mm", type=float, default=2.0, metavar="D", help="distance criterion (default 2)"
    )
    gamma.add_argument(
        "--threshold-percent",
        type=float,
        default=10.0,
        metavar="T",
        help="leave out less than this, %% (default 10)",
    )
    gamma.add_argument("--local", action="store_true", help="dose criterion relative to the local dose")
    gamma.add_argument(
        "--pass",
        dest="pass_percent",
        type=float,
        default=95.0,
        metavar="P",
        help="pass rate to reach, %% (default 95)",
    )
    gamma.set_defaults(command=gamma_command)
    return parser


def _add_intake_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--inbox",
        type=Path,
        metavar="DIR",
        help="the inbox in which the case lies; room folders and the marker are looked for up to it "
        "(default: all folders above the case)",
    )
    parser.add_argument(
        "--plan", metavar="UID", help="which plan, where the folder holds several (SOP instance UID)"
    )
    parser.add_argument(
        "--choose",
        metavar="ID",
        nargs="+",
        default=[],
        help="deliveries (timestamp folders) that make the fraction",
    )
    marker = parser.add_mutually_exclusive_group()
    marker.add_argument(
        "--marker", metavar="NAME", default=_MARKER, help=f"ready marker file (default {_MARKER})"
    )
    marker.add_argument("--no-marker", action="store_true", help="do not ask for a ready marker")


if __name__ == "__main__":
    sys.exit(main())
