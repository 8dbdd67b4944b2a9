"""Locks on files of this host: taken at once or not at all, and freed by the kernel when their process ends.

They only save work. Some file systems have none (ENOLCK on NFS without lockd, ENOSYS on Lustre without -o flock), and
a caller then goes on without; see `fallback`.
"""

from __future__ import annotations

import contextlib
import os


def is_taken(fd: int) -> bool:
    """Lock an open file, exclusively; True if another process has it. Raises OSError where there are no locks."""
    import portalocker

    try:
        portalocker.lock(fd, portalocker.LockFlags.EXCLUSIVE | portalocker.LockFlags.NON_BLOCKING)
    except portalocker.AlreadyLocked:
        return True
    except portalocker.LockException as error:
        if isinstance(error.__cause__, OSError):
            raise error.__cause__ from None
        raise OSError(str(error)) from error
    return False


def release(fd: int) -> None:
    """Unlock and close what `is_taken` has locked, also for children that were forked meanwhile."""
    import portalocker

    with contextlib.suppress(OSError, portalocker.LockException):
        portalocker.unlock(fd)
    os.close(fd)
