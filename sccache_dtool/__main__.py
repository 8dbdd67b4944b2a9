"""``python -m sccache_dtool`` is ``sc-dtool``."""

from sccache_dtool.cli.main import main

main()
