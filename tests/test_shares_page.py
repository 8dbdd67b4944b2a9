"""The page on shares: each of its commands is run, in a cache of the test."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from cli.tool import SCRIPTS
from sccache_dtool.cache import Cache
from test_docs import ROOT, blocks


def test_the_page_on_shares(tmp_path: Path) -> None:
    """A data manager who follows the page would meet an error on the way."""
    cache, data = tmp_path / "cache", tmp_path / "data" / "genomes"
    data.mkdir(parents=True)
    (data / "hg38.fa").write_text("ACGT\n")
    text = "".join(block.text for block in blocks(ROOT / "docs" / "how-to" / "shares.md") if block.language == "bash")
    assert text.count("sc-dtool") > 25
    script = text.replace("/shared/lab/cache", str(cache)).replace("/data/", f"{tmp_path}/data/")
    environment = {**os.environ, "PATH": f"{SCRIPTS}:{os.environ['PATH']}", "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-ex"], input=script, capture_output=True, text=True, env=environment, check=False, cwd=tmp_path
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "genomes" in (tmp_path / "report.tsv").read_text()
    assert {lot.name for lot in Cache(cache).lots().lots} == {"default", "physics", "genomes", "biology"}
