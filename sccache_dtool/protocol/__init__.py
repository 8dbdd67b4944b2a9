"""Leases, holders, history, reaping, elections: what every guarantee rests on."""
