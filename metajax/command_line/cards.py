"""What docstrings say of a constructor: its title, its paper, its choices."""

import inspect
import re

from metajax.command_line.catalogue import LEARNERS, MODELS, TASKS, Constructor

__all__ = ["choices_in", "paper", "papers", "title"]


def title(constructor: Constructor) -> str:
    """What a constructor is about, in one line.

    It is the first line of its module, or that of its own docstring if the module has
    several constructors.
    """
    owners = [*LEARNERS.values(), *MODELS.values(), *TASKS.values()]
    is_alone = [c.__module__ for c in owners].count(constructor.__module__) == 1
    source = inspect.getmodule(constructor) if is_alone else constructor
    return (inspect.getdoc(source) or "").split("\n", 1)[0]


def paper(text: str | None) -> str:
    """The first paper that a docstring cites, as title, venue and year; or nothing."""
    words = " ".join((text or "").split())
    found = re.search(r'"([^"]{12,})", ((?:[A-Za-z]+ )+\d{4})', words)
    return f"{found[1]}, {found[2]}" if found else ""


def papers(constructor: Constructor) -> str:
    """The first paper that a constructor, or else its module, cites."""
    own = paper(inspect.getdoc(constructor))
    return own or paper(inspect.getdoc(inspect.getmodule(constructor)))


def choices_in(docstring: str | None) -> dict[str, str]:
    """The named choices that a docstring describes as a list: name -> description."""
    items = re.findall(
        r'^\* `"(\w+)"`:? (.*?)(?=^\* |\n\n|\Z)',
        docstring or "",
        re.DOTALL | re.MULTILINE,
    )
    return {name: " ".join(text.split()) for name, text in items}
