"""What was meant by a name or an option that the command line does not have.

Names are compared with those in the docstrings too, so that "protonets" finds
Prototypical Networks. Options are compared with those of the learner, model and tasks
that were named, and with no others.
"""

import dataclasses
import difflib
import re
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence

from metajax.command_line.cards import title
from metajax.command_line.catalogue import LEARNERS, MODELS, TASKS
from metajax.command_line.forms import FORMS

__all__ = ["nearest_names", "options_of", "what_is_unknown"]

_GROUPS = {"learner": LEARNERS, "model": MODELS, "tasks": TASKS}
_MOST = 3  # suggestions


def what_is_unknown(
    argv: Sequence[str], commands: Mapping[str, Iterable[str]]
) -> str | None:
    """Says which words of a command line are unknown, and what they may have meant.

    Args:
      argv: what follows the name of the program.
      commands: the options that each command has in any case, such as `--steps`.

    Returns:
      The message; or None where every name and option is known.
    """
    command, *words = argv
    if command not in commands:
        near = difflib.get_close_matches(command, commands, n=1)
        return (
            f"There is no command `{command}`{_did_you_mean(near)}\n"
            f"Commands: {', '.join(commands)}. Options come after them."
        )
    names, options = _names_and_options(words)
    if command == "evaluate":
        names = names[1:]  # after the folder
    kinds = {"train": list(_GROUPS), "evaluate": ["tasks"]}.get(command, [])
    known = {kind: [w for w in words if w in _GROUPS[kind]] for kind in kinds}
    open_kinds = [kind for kind in kinds if not known[kind]]
    strange = [n for n in names if not any(n in known[kind] for kind in kinds)]
    strange = [n for n in strange if (command, n) != ("evaluate", "same")]
    if strange and open_kinds:
        return "\n".join(
            [
                *(_about_name(name, open_kinds) for name in strange),
                *(f"{kind}: {', '.join(_GROUPS[kind])}" for kind in open_kinds),
            ]
        )
    flags = []
    for kind in kinds:
        flags += [f for n in known[kind] for f in options_of(FORMS[kind][n], kind)]
    flags += [*commands[command], "--help"]
    unknown = [option for option in options if _dashed(option) not in flags]
    if not unknown:
        return None
    named = " ".join(word for kind in kinds for word in known[kind])
    ask = " ".join(f"metajax {command} {named}".split())
    return "\n".join(
        [
            *(_about_option(option, flags) for option in unknown),
            f"`{ask} --help` shows all of them.",
        ]
    )


def options_of(form: type, group: str = "") -> list[str]:
    """Lists the options that a form has on the command line.

    Args:
      form: a dataclass.
      group: what stands before the dot, such as `learner`; nothing for no group.
    """
    flags = []
    hints = typing.get_type_hints(form)
    for field in dataclasses.fields(form):
        name = _dashed(f"{group}.{field.name}" if group else field.name)
        if dataclasses.is_dataclass(hints[field.name]):
            flags += options_of(typing.cast(type, hints[field.name]), name)
            continue
        flags.append(f"--{name}")
        if hints[field.name] is bool:
            start, dot, end = name.rpartition(".")
            flags.append(f"--{start}{dot}no-{end}")
    return flags


def nearest_names(
    word: str, constructors: dict[str, Callable[..., object]]
) -> list[str]:
    """Finds the names that a word is like: equal, else shortened, else misspelt.

    Args:
      word: what was written.
      constructors: functions by name; their docstrings say what else they are called.
    """
    spellings = {}
    for name, constructor in constructors.items():
        others = {_squashed(other) for other in constructors if other != name}
        titles = [t for t in _other_names(constructor) if _squashed(t) not in others]
        spellings[name] = [name, *titles]
    return _nearest(word, spellings)


def _other_names(constructor: Callable[..., object]) -> list[str]:
    """What the first line of a docstring calls a method, in full and in short."""
    line = title(constructor)
    head = line.partition(":")[0]
    in_full = re.sub(r"\(.*?\)", "", head)
    # Short names have several capitals or digits: R2-D2, ProtoNet, TNP-D.
    in_short = re.findall(r"\b[\w+-]*[A-Z][\w+-]*[A-Z0-9][\w+-]*", line)
    return [in_full, *in_short]


def _nearest(
    word: str, spellings: dict[str, list[str]], *, gaps: bool = False
) -> list[str]:
    """The keys of which a spelling is like the word, best first."""
    squashed = _squashed(word)
    if not squashed:
        return []
    ratios = {
        key: max(
            difflib.SequenceMatcher(None, squashed, _squashed(name)).ratio()
            for name in names
        )
        for key, names in spellings.items()
    }
    short_for = {
        key
        for key, names in spellings.items()
        if len(squashed) > 1
        and any(_abbreviates(squashed, name, gaps=gaps) for name in names)
    }
    by_likeness = sorted(spellings, key=lambda key: -ratios[key])
    for found in (
        [key for key in spellings if ratios[key] == 1],
        [key for key in by_likeness if ratios[key] >= 0.86],
        [key for key in by_likeness if key in short_for],
        [key for key in by_likeness if ratios[key] >= 0.7],
    ):
        if found:
            return found[:_MOST]
    return []


def _squashed(text: str) -> str:
    """Letters and digits alone, without the s of a plural."""
    text = text.lower().replace("+", "plus")
    return re.sub(r"[^a-z0-9]", "", text).removesuffix("s")


def _abbreviates(squashed: str, spelling: str, *, gaps: bool) -> bool:
    """Whether it is made of the beginnings of words, such as protonet or inner-lr.

    Words may be left out at the end, and with `gaps` anywhere but at the start.
    """
    words = re.findall(r"[a-z0-9]+", spelling.lower())
    pattern = ""
    for word in reversed(words[1:]):
        beginnings = _beginnings(word)
        pattern = (
            f"(?:{beginnings})?{pattern}" if gaps else f"(?:{beginnings}{pattern})?"
        )
    pattern = f"{_beginnings(words[0])}{pattern}" if words else "$."
    return re.fullmatch(pattern, squashed) is not None


def _beginnings(word: str) -> str:
    """A pattern of the first letter, the first two, and so on."""
    pattern = ""
    for letter in reversed(word[1:]):
        pattern = f"(?:{letter}{pattern})?"
    return word[0] + pattern


def _names_and_options(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """Names, which stand before all options, and options without their values."""
    starts = [place for place, word in enumerate(words) if word.startswith("-")]
    names = words[: starts[0]] if starts else words
    options = [w.partition("=")[0] for w in words if w.startswith("--")]
    return list(names), options


def _dashed(name: str) -> str:
    return name.replace("_", "-")


def _about_name(name: str, kinds: list[str]) -> str:
    constructors = {n: c for kind in kinds for n, c in _GROUPS[kind].items()}
    near = nearest_names(name, constructors)
    return f"There is no `{name}`{_did_you_mean(near)}"


def _about_option(option: str, flags: list[str]) -> str:
    # An option may have been written without what stands before its dots, or with
    # another thing there, so the ends are compared, too.
    spellings = {flag: _ends(flag) for flag in flags}
    near: list[str] = []
    for text in dict.fromkeys([option, option.rpartition(".")[2]]):
        near = near or _nearest(text, spellings, gaps=True)
    return f"There is no option `{option}`{_did_you_mean(near)}"


def _ends(flag: str) -> list[str]:
    parts = flag.removeprefix("--").split(".")
    return [".".join(parts[start:]) for start in range(len(parts))]


def _did_you_mean(names: Sequence[str]) -> str:
    if not names:
        return "."
    return f"; did you mean {' or '.join(f'`{name}`' for name in names)}?"
