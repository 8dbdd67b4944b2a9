"""The page on large files: each of its commands is run, by somebody who saves files and by somebody who clones."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from cli.tool import SCRIPTS
from sccache_dtool.cache import Cache
from test_docs import ROOT, blocks


@pytest.mark.skipif(shutil.which("jq") is None, reason="needs jq, which the page uses to read a marker")
def test_the_page_on_large_files(tmp_path: Path) -> None:
    """A lab that follows the page would meet an error on the way, or the clone would be without its files."""
    cache, study, other = tmp_path / "cache", tmp_path / "study", tmp_path / "elsewhere"
    for path in (cache, study / "data", tmp_path / "thesis", other):
        path.mkdir(parents=True)
    content = b"measured\n" * 1000
    (study / "data" / "measurements.h5").write_bytes(content)
    Cache(cache).init()
    found = blocks(ROOT / "docs" / "how-to" / "large-files.md")
    replaced = {
        "/tank/archive": f"{tmp_path}/archive",
        "/shared/lab/cache": str(cache),
        "https://example.org/study.git": f"{tmp_path}/study.git",
        "git clone": f"cd {other}\ngit clone",
    }

    def text_of(language: str) -> str:
        text = "".join(block.text for block in found if block.language == language)
        for old, new in replaced.items():
            assert old in text or language != "bash" or old == "/shared/lab/cache"
            text = text.replace(old, new)
        return text

    (cache / ".sc-dtool" / "config.toml").write_text(text_of("toml"))
    script = text_of("bash")
    assert script.count("sc-dtool") >= 10
    identity = {f"GIT_{who}_{what}": "a@b" for who in ("AUTHOR", "COMMITTER") for what in ("NAME", "EMAIL")}
    environment = {
        **os.environ,
        **identity,
        "PATH": f"{SCRIPTS}:{os.environ['PATH']}",
        "HOME": str(tmp_path),
        "XDG_STATE_HOME": f"{tmp_path}/state",
        "GIT_CONFIG_NOSYSTEM": "1",
    }

    def run(*argv: str, given: str = "", cwd: Path = study) -> None:
        done = subprocess.run(argv, input=given, capture_output=True, text=True, env=environment, check=False, cwd=cwd)
        assert done.returncode == 0, f"{done.stdout[-1000:]}\n{done.stderr[-2000:]}"

    run("git", "init", "-q", "--bare", "-b", "main", "../study.git")
    run("git", "init", "-q", "-b", "main", ".")
    run("git", "remote", "add", "origin", f"{tmp_path}/study.git")
    run("git", "config", "--global", "push.autoSetupRemote", "true")
    run("bash", "-ex", given=script)
    clone = other / "study"
    assert (clone / "data" / "measurements.h5").read_bytes() == content
    log = subprocess.run(["git", "log", "--format=%s"], capture_output=True, text=True, check=True, cwd=clone).stdout
    assert log.splitlines() == ["Calibrate again", "Add the measurements of May"]
    run(sys.executable, "-c", text_of("python") + "assert header == b'measured\\n' * 56 + b'measured'", cwd=clone)
