"""Whether a mounted file system keeps what the protocol rests on: tried out in a directory, by one host or two."""

from sccache_dtool.verify.findings import Finding, Fitness, Report, Weight
from sccache_dtool.verify.script import Role, verify

__all__ = ["Finding", "Fitness", "Report", "Role", "Weight", "verify"]
