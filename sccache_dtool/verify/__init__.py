"""Whether a mounted file system keeps what the protocol rests on: tried out in a directory, by one host or two."""

from sccache_dtool.verify.findings import Finding, Fitness, Report, Weight
from sccache_dtool.verify.meeting import Role, RoleKind, role_from
from sccache_dtool.verify.verification import verify

__all__ = ["Finding", "Fitness", "Report", "Role", "RoleKind", "Weight", "role_from", "verify"]
