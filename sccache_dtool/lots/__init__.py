"""Lots: shares of a cache. Who owns which data, how much of it is kept, and until when."""
