"""Findings, then optional repairs: what in a cache is not as it should be, and how each of it is repaired."""

from sccache_dtool.doctor.content import Checked, verify_content
from sccache_dtool.doctor.examination import examine, examine_format
from sccache_dtool.doctor.findings import Finding

__all__ = ["Checked", "Finding", "examine", "examine_format", "verify_content"]
