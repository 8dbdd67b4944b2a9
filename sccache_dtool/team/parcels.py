"""Work and results as bytes, from one process of a user to another of the same.

Only what this package itself puts into them is taken out again. That is a second bar: reading starts only where the
file and its directory are the reader's own and nobody else's (`FileSystem.read_private`).
"""

from __future__ import annotations

import builtins
import functools
import io
import pickle
from typing import Any

from sccache_dtool.clock import Clock, Deadline

_PACKAGE = __name__.partition(".")[0]

_PLAIN = frozenset({"set", "frozenset", "bytearray", "complex", "range", "slice"})


def wrap(content: object) -> bytes:
    """What can be sent. Deadlines are sent as what is left of them, as no two hosts have one monotonic clock."""
    file = io.BytesIO()
    _Wrapper(file, protocol=pickle.HIGHEST_PROTOCOL).dump(content)
    return file.getvalue()


def unwrap(data: bytes, clock: Clock, age: float) -> Any:
    """What was sent `age` seconds ago. Raises pickle.UnpicklingError for anything that this package does not send."""
    return _Unwrapper(io.BytesIO(data), clock, age).load()


class _Wrapper(pickle.Pickler):
    def persistent_id(self, obj: object) -> float | tuple[()] | None:
        if type(obj) is not Deadline:
            return None
        return () if obj.at is None else obj.at - obj.clock.monotonic()


class _Unwrapper(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, clock: Clock, age: float) -> None:
        super().__init__(file)
        self._clock = clock
        self._age = age

    def persistent_load(self, pid: Any) -> Deadline:
        return Deadline(self._clock, None if pid == () else self._clock.monotonic() + pid - self._age)

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) == ("functools", "partial"):
            return functools.partial
        if module_name == "builtins" and (global_name in _PLAIN or _is_exception(global_name)):
            return getattr(builtins, global_name)
        if module_name.startswith(f"{_PACKAGE}.") and "." not in global_name:
            found = super().find_class(module_name, global_name)
            if getattr(found, "__module__", None) == module_name:  # and nothing that the module itself has imported
                return found
        raise pickle.UnpicklingError(f"{module_name}.{global_name} is not sent between tasks")


def _is_exception(name: str) -> bool:
    found = getattr(builtins, name, None)
    return isinstance(found, type) and issubclass(found, Exception)
