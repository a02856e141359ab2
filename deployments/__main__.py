"""Entry of ``python3 -m deployments``: finds a Python that is new enough, makes ``.venv``, goes on in it.

This file must parse on the old Python that a hospital's Linux may still call ``python3``, so that it can
say what is missing instead of ending in a SyntaxError. Nothing here may need more than Python 3.6.
"""

import os
import shutil
import sys

SUPPORTED = ((3, 11), (3, 12))  # those that requirements.lock holds wheels for


def newer_python() -> "str | None":
    """Path of a supported Python on PATH, or None."""
    for version in reversed(SUPPORTED):
        path = shutil.which("python{}.{}".format(*version))
        if path:
            return path
    return None


def main(argv: "list[str]") -> int:
    """Run one command. Returns the exit status."""
    if os.name != "posix":
        sys.stderr.write("MQI Communicator runs on Linux (on Windows: inside WSL).\n")
        return 2
    if sys.version_info[:2] not in SUPPORTED:
        python = newer_python()
        if python is None:
            present = "{}.{}".format(*sys.version_info)
            sys.stderr.write(
                f"MQI Communicator needs Python 3.11 or 3.12; this is {present}. Install one of them, for "
                "example the Debian packages python3.11 and python3.11-venv, and run this command again.\n"
            )
            return 2
        os.execv(python, [python, "-m", "deployments", *argv])
    from deployments import cli

    return cli.main(argv)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
