"""The secret that tokens are signed with, where the configuration has none.

It is made once and kept beside the stores, so that tokens outlive a full restart as positions do. Without storage positions do not
outlive it either, and a new one is made. Gateways are given it in their specification, which no one else is shown.
"""

import errno
import os
import secrets
import sys
from pathlib import Path

from cluster.config import Config

FILE = "token_secret"
MODE = 0o600


def token_secret(config: Config) -> str:
    """Return the secret of a cluster: what its configuration says, what is kept, or a new one.

    Where it cannot be kept (a driver whose disk is not the stores') it is a new one, and standard error says so: a cluster that runs keeps
    the one it has, but tokens do not outlive a full restart.
    """
    said, path = config.gateway.token_secret, config.storage.path
    if said or path is None:
        return said or secrets.token_urlsafe(32)
    try:
        return _kept(Path(path) / config.cluster.name / FILE)
    except OSError as error:
        sys.stderr.write(
            f"harbor: {error.filename or path}: {error.strerror}: no token secret is kept, so that clients begin anew after a full restart; "
            "set gateway.token_secret\n"
        )
        return secrets.token_urlsafe(32)


def _kept(place: Path) -> str:
    """Return what is kept, made now if there is nothing.

    Raises:
        OSError: it cannot be.
    """
    place.parent.mkdir(parents=True, exist_ok=True)
    if not place.exists():
        draft = place.with_name(f"{FILE}.{secrets.token_hex(8)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, MODE)
        try:
            with os.fdopen(descriptor, "w") as file:
                file.write(secrets.token_urlsafe(32))
                file.flush()
                os.fsync(file.fileno())
            os.link(draft, place)  # whole, and never over what somebody else has put there meanwhile
        except FileExistsError:
            pass
        finally:
            draft.unlink()
    kept = place.read_text().strip()
    if not kept:
        raise OSError(errno.ENODATA, "it is empty", str(place))
    return kept
