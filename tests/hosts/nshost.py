"""Other hosts for tests, as Linux name spaces: see the head of `nshost.sh`, which does the work.

Mark a test that needs them with `@pytest.mark.hosts`: it is skipped, with the reason, where they cannot be made.
"""

from __future__ import annotations

import functools
import os
import subprocess
from collections.abc import Sequence

_SCRIPT = os.path.join(os.path.dirname(os.path.abspath(__file__)), "nshost.sh")


@functools.cache
def available() -> str | None:
    """Why there can be no other hosts here, found by trying to make one; None if there can."""
    try:
        done = subprocess.run(
            host_command("probe", ["true"]), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=20
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return f"no name spaces here: {error}"
    if done.returncode == 0:
        return None
    said = done.stderr.strip().splitlines() or [f"nshost.sh ended with exit code {done.returncode}"]
    return f"no name spaces here: {said[-1]}"


def host_command(name: str, argv: Sequence[str], boot_id: str | None = None, *, network: bool = False) -> list[str]:
    """The command line that runs `argv` on a host called `name`.

    With no `boot_id` each run is a new boot of that host. With `network` it has this machine's network, and so reaches
    its loopback. SIGKILL to the process is a power failure of the host.
    """
    boot = [] if boot_id is None else ["-b", boot_id]
    return ["bash", _SCRIPT, name, *boot, *(["-n"] if network else []), "--", *argv]
