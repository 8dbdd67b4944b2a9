"""One cache, and what every operation on it needs: the first argument of every function that works on a cache."""

from __future__ import annotations

from sccache_dtool.clock import Clock
from sccache_dtool.disk.filesystem import FileSystem
from sccache_dtool.disk.names import Layout
from sccache_dtool.liveness.process import Proc
from sccache_dtool.log import Log
from sccache_dtool.oddity import Fate, Oddity
from sccache_dtool.tuples import NamedTuple


class Store(NamedTuple):
    """One cache, and what every operation on it needs."""

    fs: FileSystem
    layout: Layout
    clock: Clock
    proc: Proc  # this host's processes
    id: str  # the cache's id; a Store is made only of a directory that was checked to be a cache
    log: Log = Log()  # is given anomalies, as Oddity, and what else users must know

    def report(self, path: str, kind: str, fate: Fate | str) -> None:
        """Log an anomaly; see Oddity."""
        self.log.warning(Oddity(path, kind, fate))

    def command(self, *words: str) -> str:
        """A command line for this cache, quoted for a shell."""
        import shlex

        return shlex.join(("sc-dtool", "-C", self.layout.root, *words))

    def logging_to(self, log: Log) -> Store:
        """The same cache, with another log."""
        return self._replace(log=log)
