"""The end of a process of this machine, as soon as the kernel knows of it.

Ray says so too, but by way of its head and after others' news: a second or two later when it is busy, in which nobody leads.

What must not live here: what follows (`core.shard_roles`).
"""

import asyncio
import os


async def ended(pid: int) -> None:
    """Return when a process has ended, reaped or not; at once if there is none. Cancelling is safe.

    Raises:
        OSError: the kernel does not tell (pidfd_open(2): Linux from 5.3 on).
    """
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return
    except AttributeError as error:
        raise OSError("this kernel has no pidfd_open") from error
    loop = asyncio.get_running_loop()
    over = asyncio.Event()
    loop.add_reader(descriptor, over.set)
    try:
        await over.wait()
    finally:
        loop.remove_reader(descriptor)
        os.close(descriptor)
