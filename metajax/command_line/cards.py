"""What docstrings say of a constructor: its title, its paper, its choices."""

import inspect
import re

from metajax.command_line.catalogue import Constructor

__all__ = ["choices_in", "choose_it", "link", "paper", "papers", "title"]


def title(constructor: Constructor) -> str:
    """Says what a constructor is about, in one line.

    It is the first line of its module, or that of its own docstring if the module is
    not named after it.
    """
    module = inspect.getmodule(constructor)
    is_own = constructor.__module__.endswith(f".{constructor.__name__}")
    return (inspect.getdoc(module if is_own else constructor) or "").split("\n", 1)[0]


def link(constructor: Constructor) -> str:
    """Gives the first address that the module of a constructor cites, or nothing."""
    text = inspect.getdoc(inspect.getmodule(constructor)) or ""
    found = re.search(r"https?://[^\s,;)]+[^\s,;).]", text)
    return found[0] if found else ""


def choose_it(constructor: Constructor) -> str:
    """Says when to choose a learner: the first clause of "Choose it ..."."""
    words = " ".join((inspect.getdoc(constructor) or "").split())
    found = re.search(r"Choose it (.+?)(?:[:;] |\. |\.$)", words)
    return found[1] if found else ""


def paper(text: str | None) -> str:
    """Finds the first paper a docstring cites, as title, venue and year; or nothing."""
    words = " ".join((text or "").split())
    found = re.search(r'"([^"]{12,})", ((?:[A-Za-z]+ )+\d{4})', words)
    return f"{found[1]}, {found[2]}" if found else ""


def papers(constructor: Constructor) -> str:
    """Finds the first paper that a constructor, or else its module, cites."""
    own = paper(inspect.getdoc(constructor))
    return own or paper(inspect.getdoc(inspect.getmodule(constructor)))


def choices_in(docstring: str | None) -> dict[str, str]:
    """Reads the named choices that a docstring has as a list: name -> description."""
    items = re.findall(
        r'^\* `"(\w+)"`:? (.*?)(?=^\* |\n\n|\Z)',
        docstring or "",
        re.DOTALL | re.MULTILINE,
    )
    return {name: " ".join(text.split()) for name, text in items}
