"""What to install for an extra of this package.

A hint names the packages that the extra consists of. It must not name this package: it comes from a checkout or a
wheel, and a package index may have another one of that name.
"""

from __future__ import annotations

import shlex


def to_install(extra: str) -> str:
    """The pip command that installs what an extra needs, such as ``pip install 'mpi4py>=4.1' 'mpich>=4.3'``."""
    from importlib.metadata import PackageNotFoundError, requires  # loaded for an error only

    found = []
    try:
        stated = requires("sccache_dtool") or []
    except PackageNotFoundError:  # it is run from a checkout that is not installed
        stated = []
    for requirement in stated:
        wanted, _, condition = (part.strip() for part in requirement.partition(";"))
        if condition.replace("'", '"') == f'extra == "{extra}"':
            found.append(shlex.quote(wanted))
    return f"pip install {' '.join(found)}" if found else f"install this package again with the extra {extra}"
