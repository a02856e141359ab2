"""The commands of ``python3 -m deployments`` and their help.

Only the standard library is imported at the top: ``--help`` and a mistyped command are answered before
anything is installed. What a command needs is imported where it runs, inside the virtual environment.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from deployments import bootstrap

if TYPE_CHECKING:
    from deployments.environment import Home

__all__ = ["main"]

ABOUT = """\
MQI Communicator: patient QA for proton therapy, from the machine's log to a dose, a verdict and a report.

  python3 -m deployments demo     see it work: everything is set up and a synthetic case is processed
  python3 -m deployments up       run it for a site; its settings stand in site.yaml in the home folder

For a site: up, then edit .mqi/site/site.yaml, then apply, then doctor. Help on one command: COMMAND --help.

The first command makes a Python environment in .venv (about a minute). All else that is written lies in the
home folder, .mqi/demo or .mqi/site; nothing else on the machine changes.
"""

STATUSES = "Exit status: 0 done, 1 not done or a problem, 2 asked wrongly, 130 interrupted."

HOME_HELP = "folder that holds settings, database, logs and results (default: MQI_HOME, else .mqi/{} here)"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python3 -m deployments",
        description=ABOUT,
        epilog=STATUSES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(title="commands", dest="command", metavar="COMMAND", required=True)

    def add(name: str, text: str, home: str = "site") -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        if home:
            command.add_argument("--home", metavar="DIR", help=HOME_HELP.format(home))
        return command

    demo = add("demo", "set everything up, process a synthetic case end to end, leave the UI open", "demo")
    demo.add_argument(
        "--exit", action="store_true", help="stop when the case is done; status 0 only if it completed"
    )
    demo.add_argument(
        "--port", type=_port, help="port of the UI (default: as last time, else 4200 or the next free one)"
    )
    demo.add_argument(
        "--host",
        choices=["local", "ssh"],
        default="local",
        help="where the engine computes: on this machine, or there through a private SSH server that the "
        "demonstration starts and stops (default: local)",
    )
    demo.add_argument(
        "--spoil", metavar="NAME", help="make a case with this fault instead (`--spoil list` names them)"
    )

    up = add(
        "up", "start the server and the worker with the site's settings; they go on when this command ends"
    )
    up.add_argument(
        "--port", type=_port, help="port of the UI (default: as last time, else 4200 or the next free one)"
    )
    add("down", "stop the server and the worker; engines that compute go on and are found again")
    add("status", "show what runs, when the scanner last looked, where the cases stand, what the host offers")

    apply = add("apply", "check site.yaml and hand its settings to the running server")
    apply.add_argument(
        "file", nargs="?", metavar="site.yaml", help="a settings file to take over (default: the home's)"
    )
    apply.add_argument(
        "--dry-run",
        action="store_true",
        help="only check it and print all settings in effect; nothing is changed",
    )

    credentials = add(
        "credentials",
        "keep a key, a passphrase or a password for SSH under a name, encrypted, out of site.yaml",
    )
    credentials.add_argument("name", metavar="NAME", help="name that site.yaml gives as ssh.credentials")
    credentials.add_argument("--key", metavar="FILE", help="private key, kept as text")
    for what in ("passphrase", "password"):
        credentials.add_argument(
            f"--{what}",
            action="store_true",
            help=f"ask for the {what}, or take it from the environment variable MQI_SSH_{what.upper()}",
        )
        credentials.add_argument(f"--{what}-file", metavar="FILE", help=f"take the {what} from this file")

    add("doctor", "try each setting for real and say what to do about what does not work")
    add("env", "print shell lines that let your own `prefect` commands reach this server; see the README")

    test = add(
        "test", "install the test tools, then run ruff, mypy and pytest (other arguments go to pytest)", ""
    )
    test.add_argument(
        "pytest", nargs=argparse.REMAINDER, help="arguments of pytest, for example tests/unit -k gamma"
    )
    return parser


def _port(text: str) -> int:
    port = int(text)
    if not 1024 <= port <= 65535:
        raise argparse.ArgumentTypeError("a port from 1024 to 65535 is needed")
    return port


def _tell(text: str) -> None:
    print(text, flush=True)


def main(argv: list[str]) -> int:
    """Run one command. Returns the exit status: 0 done, 1 not done, 2 asked wrongly, 130 interrupted."""
    pytest_arguments: list[str] | None = None
    if argv[:1] == ["test"] and argv[1:2] not in (["-h"], ["--help"]):
        argv, pytest_arguments = argv[:1], argv[1:]
    options = _parser().parse_args(argv)
    lock = bootstrap.TEST_LOCK if options.command == "test" else bootstrap.RUNTIME_LOCK
    try:
        bootstrap.enter(lock, [*argv, *(pytest_arguments or [])], bootstrap.default_environment(), _tell)
        return _run(options, pytest_arguments or [])
    except bootstrap.BootstrapError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nInterrupted.", file=sys.stderr)
        return 130
    except BrokenPipeError:
        return 1


def _run(options: argparse.Namespace, pytest_arguments: list[str]) -> int:
    from deployments.environment import resolve_home
    from mqi.errors import MQIError

    try:
        if options.command == "test":
            from deployments.checks import run as run_checks

            return run_checks(pytest_arguments, _tell)
        default = {"local": "demo", "ssh": "demo-ssh"}[options.host] if options.command == "demo" else "site"
        home = resolve_home(options.home, default)
        return _run_at(home, options)
    except MQIError as error:
        print(error, file=sys.stderr)
        return 1


def _run_at(home: Home, options: argparse.Namespace) -> int:
    from deployments import service

    match options.command:
        case "demo":
            from deployments.demo import run as run_demo

            return run_demo(
                home,
                port=options.port,
                leave=options.exit,
                spoil=options.spoil,
                over_ssh=options.host == "ssh",
                say=_tell,
            )
        case "up":
            return service.up(home, options.port, _tell)
        case "down":
            return service.down(home, _tell)
        case "apply":
            file = Path(options.file) if options.file else None
            return service.apply_file(home, file, dry_run=options.dry_run, say=_tell)
        case "status":
            from deployments.status import run as run_status

            return run_status(home, _tell)
        case "credentials":
            return _keep_credentials(home, options)
        case "doctor":
            from deployments.doctor import run as run_doctor

            return run_doctor(home, _tell)
        case _:
            return service.print_environment(home, _tell)


def _keep_credentials(home: Home, options: argparse.Namespace) -> int:
    from deployments.credentials import Given, run

    def file(name: str | None) -> Path | None:
        return Path(name) if name else None

    given = Given(
        key=file(options.key),
        passphrase=options.passphrase,
        passphrase_file=file(options.passphrase_file),
        password=options.password,
        password_file=file(options.password_file),
    )
    return run(home, options.name, given, _tell)
