"""Locks on files among the processes of one host. The kernel releases them when the process ends.

They only save work. Some file systems do not support them (ENOLCK on NFS without lockd, ENOSYS on Lustre without
-o flock). A caller then continues without the lock, see `fallback`.
"""

from __future__ import annotations

import contextlib
import os


def is_taken(fd: int) -> bool:
    """Try to lock an open file exclusively, without waiting. Returns True if another process holds the lock.

    Raises OSError if the file system does not support locks.
    """
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
    """Unlock and close a file that `is_taken` has locked, for children that were forked meanwhile as well."""
    import portalocker

    with contextlib.suppress(OSError, portalocker.LockException):
        portalocker.unlock(fd)
    os.close(fd)
