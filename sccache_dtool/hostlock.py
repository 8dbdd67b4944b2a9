"""Locks on files of this host: taken at once or not at all, and freed by the kernel when their process ends.

They only save work. Some file systems have none (ENOLCK on NFS without lockd, ENOSYS on Lustre without -o flock), and
a caller then goes on without; see `fallback`.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os

#: errno values by which flock(2) says that another process has the lock.
_TAKEN = frozenset({errno.EWOULDBLOCK, errno.EAGAIN, errno.EACCES})


def is_taken(fd: int) -> bool:
    """Lock an open file, exclusively; True if another process has it. Raises OSError where there are no locks."""
    while True:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except InterruptedError:
            continue
        except OSError as error:
            if error.errno not in _TAKEN:
                raise
            return True
        return False


def release(fd: int) -> None:
    """Unlock and close what `is_taken` has locked, also for children that were forked meanwhile."""
    with contextlib.suppress(OSError):
        fcntl.flock(fd, fcntl.LOCK_UN)
    os.close(fd)
