"""One line for `print`: what a table or a task distribution holds, and not its numbers.

The values of an image table would fill the screen of everyone who shows it, and of
everyone whose traceback has it among its variables.
"""

import dataclasses
from typing import Any

__all__ = ["brief", "summary"]

_MOST_ITEMS = 4


def summary(instance: Any) -> str:
    """Writes a dataclass with arrays by their type and shape; serves as `__repr__`."""
    fields = [
        f"{field.name}={brief(getattr(instance, field.name))}"
        for field in dataclasses.fields(instance)
    ]
    return f"{type(instance).__name__}({', '.join(fields)})"


def brief(value: Any) -> str:
    """Writes any value in a few words, arrays as in `uint8[12, 20]`."""
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is not None and dtype is not None:
        return f"{dtype}{list(shape)}"
    if isinstance(value, tuple | list) and not hasattr(value, "_fields"):
        items = [brief(item) for item in value[:_MOST_ITEMS]]
        if len(value) > _MOST_ITEMS:
            items.append(f"... {len(value) - _MOST_ITEMS} more")
        return f"({', '.join(items)})"
    return " ".join(repr(value).split())
