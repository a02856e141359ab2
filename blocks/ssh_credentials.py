"""What a login over SSH may use and nobody may read: a private key, its passphrase, a password."""

from typing import ClassVar

import httpx
from prefect.blocks.core import Block

from mqi.errors import ConfigurationError, HostConnectionError
from mqi.hosts.ssh_settings import SshCredentials


class SSHCredentials(Block, SshCredentials):
    """What a login over SSH may use and nobody may read: a private key as text, its passphrase, a password.

    A compute host names these credentials and does not hold them. Each login looks them up here, at that
    moment: they stand in no task's parameters, no result, no log and no record.

    Example:
        Keep the key of a GPU server (`python3 -m deployments credentials hpc --key FILE` does the same)::

            from pathlib import Path
            from blocks import SSHCredentials

            text = Path("id_ed25519").read_text()
            SSHCredentials(key_text=text, passphrase="...").save("hpc", overwrite=True)
    """

    _block_type_name: ClassVar[str] = "MQI SSH credentials"
    _block_type_slug: ClassVar[str] = "mqi-ssh-credentials"


def look_up_credentials(name: str) -> SshCredentials:
    """The credentials of a name, from their block.

    Raises ConfigurationError where there is no such block, HostConnectionError where the Prefect server does
    not answer. Neither has anything of the secrets in it, nor has what they were raised from.
    """
    slug = SSHCredentials.get_block_type_slug()
    try:
        block = SSHCredentials.load(name)
    except ValueError:
        raise ConfigurationError(
            f"the block {slug}/{name} is missing or cannot be read",
            todo=f"Keep them with `python3 -m deployments credentials {name}` (--help says how), "
            "or in the UI under Blocks",
        ) from None
    except httpx.HTTPError as error:
        raise HostConnectionError(
            f"the Prefect server does not answer, and the block {slug}/{name} is needed to log in",
            todo="Look at the server: `python3 -m deployments status`",
        ) from error
    assert isinstance(block, SSHCredentials)  # load() is typed as Self | Coroutine
    return SshCredentials(key_text=block.key_text, passphrase=block.passphrase, password=block.password)
