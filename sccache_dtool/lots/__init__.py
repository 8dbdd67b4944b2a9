"""Lots: shares of a cache for groups, with owners, limits and dates. `Lots` needs no cache, and touches no disk."""

from sccache_dtool.lots.model import Attribution, Claim, Lot, Lots, Question, Usage

__all__ = ["Attribution", "Claim", "Lot", "Lots", "Question", "Usage"]
