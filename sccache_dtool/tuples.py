"""`NamedTuple` as in `typing`, made in less than half of the time: a hit makes 70 such classes when it is imported.

`typing` compiles the annotation of each field to check it, which mypy has done before. This takes a tenth of the time
of a short command. Otherwise the classes are the same; a generic one needs `typing.NamedTuple`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from typing import NamedTuple as NamedTuple
else:
    from collections import namedtuple

    class _Maker(type):
        def __new__(cls, name: str, bases: tuple[type, ...], content: dict[str, Any]) -> type:
            if not bases:
                return super().__new__(cls, name, bases, content)
            fields = content.get("__annotations__", {})
            defaults = [content.pop(field) for field in fields if field in content]
            made = namedtuple(name, fields, defaults=defaults, module=content["__module__"])
            for key, value in content.items():
                setattr(made, key, value)
            return made

    class NamedTuple(metaclass=_Maker):
        """The base of classes with fields; they do not inherit from it."""
