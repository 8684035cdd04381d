"""What the cells of one column mean: numbers, dates or categories, by one rule.

Gaps aside, and of the different values of a column:

1. All are numbers as Python writes them: the column is numeric.
2. All are numbers in one other notation, and only one such notation reads them (decimal
   commas, separators of thousands, one unit or currency), or all are ISO dates: numeric
   too, and a warning says so by the name of the column.
3. At least half, but not all, are numbers or dates of one notation: an error, as some
   of them may be odd cells. So is a column that two notations read as other numbers.
4. At least half only begin as numbers do (`40-49`, `<5`, `12:30`): categories, and a
   warning says so.
5. Anything else is categories.

A column that is declared to hold categories holds them, whatever they look like.
"""

import datetime
import math
import re
import unicodedata
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Literal, NamedTuple

import numpy as np

__all__ = ["Cells", "Column", "Notation", "encode", "plain_number", "read_column"]

Cells = list[str | None]
Decimal = Literal[".", ","]

# Decimal sign, and the separators that may group thousands beside it. The last are a
# blank, one that does not break, a narrow one, and apostrophes as the Swiss write them.
_BLANKS = " \u00a0\u202f'\u2019"
_STYLES: tuple[tuple[Decimal, str], ...] = (
    (".", ","),
    (",", "."),
    (".", _BLANKS),
    (",", _BLANKS),
)
_PARTS = re.compile(
    r"(?P<sign>[+\-\u2212]?)\s*(?P<prefix>[^\d\s.,+\-\u2212<>=~()]*)\s*"
    rf"(?P<body>[.,]?\d(?:[\d.,{_BLANKS}]*\d)?[.,]?(?:[eE][+\-]?\d+)?)"
    r"\s*(?P<suffix>(?:[^\d\s.,+\-\u2212][^\d]*[23]?)?)"
)
_ISO_DATE = re.compile(
    r"\d{4}-\d\d-\d\d([T ]\d\d:\d\d(:\d\d(\.\d{1,9})?)?(Z|[+-]\d\d:?\d\d)?)?"
)
_BEGINS_AS_NUMBER = re.compile(
    r"(?:[^\w\s]|\s)*\d"
    r"|(?:jan|feb|mar|apr|may|jun|jul|aug|sep|oct|nov|dec)[a-z]*\.?\s*\d",
    re.IGNORECASE,
)
_CURRENCIES = ("USD", "EUR", "GBP", "JPY", "CNY", "CHF", "INR", "CAD", "AUD")
_DAY = 86_400.0
_EPOCH = datetime.datetime(1970, 1, 1, tzinfo=datetime.UTC)


class Notation(NamedTuple):
    """How numbers are written.

    Attributes:
      decimal: the decimal sign.
      groups: characters that may group thousands.
      prefix: what stands before every number, such as a currency.
      suffix: what stands behind it, such as a unit.
      is_date: whether it is an ISO date or time.
    """

    decimal: Decimal = "."
    groups: str = ""
    prefix: str = ""
    suffix: str = ""
    is_date: bool = False


class Column(NamedTuple):
    """How a column of text becomes columns of numbers, for this file and for the next.

    Attributes:
      name: in the source.
      values: the categories in order, or None for numbers.
      notation: of numbers.
      origin: of dates, the earliest, in days since 1970.
      filling: what stands where a number is missing, the median.
      has_gaps: whether a column tells where cells are missing.
    """

    name: str
    values: tuple[str, ...] | None = None
    notation: Notation = Notation()
    origin: float = 0.0
    filling: float = 0.0
    has_gaps: bool = False

    @property
    def names(self) -> list[str]:
        """The names of the columns it becomes."""
        names = [self.name]
        if self.values is not None:
            names = [f"{self.name}={value}" for value in self.values]
        return names + [f"{self.name} is missing"] * self.has_gaps


def read_column(
    name: str,
    cells: Cells,
    *,
    categories: Iterable[str] | None,
    decimal: Decimal | None,
    table: str,
    place: Callable[[int], str],
) -> Column:
    """Finds out what a column holds, by the rule above.

    Args:
      name: of the column.
      cells: `[rows]`, None where missing.
      categories: declared ones; an empty list for those that occur, None if it is not
        declared to hold any.
      decimal: the decimal sign of the file, or None to find it out.
      table: its name, for messages.
      place: says where a row stands, for messages.

    Raises:
      ValueError: by point 3 of the rule.
    """
    has_gaps = None in cells
    present = dict.fromkeys(cell for cell in cells if cell is not None)
    if categories is not None:
        declared = dict.fromkeys([*categories, *sorted(present)])
        return Column(name, tuple(declared), has_gaps=has_gaps)
    what = f"Column {name!r} of table {table!r}"
    notation = _notation(list(present), decimal, what, lambda c: place(cells.index(c)))
    if notation is None:
        return Column(name, tuple(sorted(present)), has_gaps=has_gaps)
    column = Column(name, None, notation, has_gaps=has_gaps)
    numbers = _numbers(column, cells)
    known = numbers[~np.isnan(numbers)]
    if notation.is_date and len(known):
        column = column._replace(origin=float(known.min()))
        known = known - known.min()
    return column._replace(filling=float(np.median(known)) if len(known) else 0.0)


def encode(
    column: Column, cells: Cells, table: str, place: Callable[[int], str]
) -> np.ndarray:
    """Makes float64 `[rows, columns]` of cells, as `column.names` says.

    Raises:
      ValueError: if a cell of a numeric column is no number in its notation.
    """
    what = f"Column {column.name!r} of table {table!r}"
    is_missing = np.asarray([cell is None for cell in cells])
    if is_missing.any() and not column.has_gaps:
        row = int(np.argmax(is_missing))
        filled = "0 for each value" if column.values is not None else column.filling
        warnings.warn(
            f"{what} is missing at {place(row)}, and in {is_missing.sum()} of "
            f"{len(cells)} rows, but never was in the first table; these get {filled}.",
            UserWarning,
            stacklevel=4,
        )
    if column.values is not None:
        known = {value: place for place, value in enumerate(column.values)}
        new = [cell for cell in cells if cell is not None and cell not in known]
        if new:
            warnings.warn(
                f"{what} holds {new[0]!r} at {place(cells.index(new[0]))}, which is "
                f"none of the values of the first table, and in {len(new)} of "
                f"{len(cells)} rows; these get 0 for each value.",
                UserWarning,
                stacklevel=4,
            )
        block = np.zeros((len(cells), len(column.values)))
        for row, cell in enumerate(cells):
            if cell in known:
                block[row, known[cell]] = 1
    else:
        numbers = _numbers(column, cells)
        is_odd = np.isnan(numbers) & ~is_missing
        if is_odd.any():
            row = int(np.argmax(is_odd))
            raise ValueError(
                f"{what} holds {cells[row]!r} at {place(row)}, and the first table "
                "has numbers there in another notation; repair these cells."
            )
        block = np.where(is_missing, column.filling, numbers - column.origin)[:, None]
    if column.has_gaps:
        block = np.concatenate([block, is_missing[:, None]], axis=1)
    return block


def plain_number(cell: str) -> float | None:
    """Reads a number as Python writes it; None if it is no number."""
    # Python reads "1_2" as 12, which nobody means in data.
    if "_" in cell:
        return None
    try:
        return float(cell)
    except ValueError:
        return None


def _notation(
    present: list[str], decimal: Decimal | None, what: str, place: Callable[[str], str]
) -> Notation | None:
    """The notation of the different values of a column; None if they are categories."""
    is_plain = all(plain_number(cell) is not None for cell in present)
    if not present or (is_plain and decimal != ","):
        return Notation()
    affixes = {cell: _affixes(cell) for cell in present}
    counts = Counter(affix for affix in affixes.values() if affix is not None)
    best, count = counts.most_common(1)[0] if counts else (None, 0)
    if best is None or 2 * count < len(present):
        looks = [cell for cell in present if _BEGINS_AS_NUMBER.match(cell)]
        if 2 * len(looks) >= len(present):
            warnings.warn(
                f"{what} holds {looks[0]!r} at {place(looks[0])}, which begins as a "
                f"number does, and is read as {len(present)} categories. If it should "
                "hold numbers (or dates), write it so; if these are categories, name "
                "it in `categories`; else leave it out by `drop`.",
                UserWarning,
                stacklevel=5,
            )
        return None
    odd = [cell for cell in present if affixes[cell] != best]
    remedy = (
        "Repair them; or name them in `missing` if they are gaps; or name the column "
        "in `categories` if it holds no numbers, or in `drop`."
    )
    if odd:
        example = next(cell for cell in present if affixes[cell] == best)
        kind = "dates" if best == _DATE else "numbers"
        raise ValueError(
            f"{what} holds {kind} such as {example!r}, but {odd[0]!r} at "
            f"{place(odd[0])}, and {len(odd)} of {len(present)} different values are "
            f"of another kind. {remedy}"
        )
    if best == _DATE:
        warnings.warn(
            f"{what} holds dates, such as {present[0]!r}, and is read as days since "
            "the earliest of them; name it in `categories` or `drop` if that is not "
            "what you mean.",
            UserWarning,
            stacklevel=5,
        )
        return Notation(is_date=True)
    # Numbers with one prefix and one suffix: how are they written?
    readings: dict[tuple[float | None, ...], Notation] = {}
    plain = Notation(".", "", *best)
    others = [Notation(sign, groups, *best) for sign, groups in _STYLES]
    for notation in [plain, *others] if decimal != "," else others:
        if decimal not in (None, notation.decimal):
            continue
        numbers = tuple(_read(cell, notation) for cell in present)
        if None not in numbers:
            readings.setdefault(numbers, notation)
            if notation == plain:
                break  # without any other sign there is nothing to doubt
    if len(readings) != 1:
        signs = [cell for cell in present if _read(cell, plain) is None] or present
        first = [numbers[present.index(signs[0])] for numbers in readings]
        way = "no notation reads all of its numbers"
        if readings:
            way = f"may be {' or '.join(f'{number:g}' for number in first)}"
        raise ValueError(
            f"{what} holds {signs[0]!r} at {place(signs[0])}: {way}. Say "
            "`decimal='.'` or `decimal=','`, or write all of its numbers in one way, "
            "or name it in `categories` or `drop`."
        )
    [(numbers, notation)] = readings.items()
    is_told = decimal is not None and best == ("", "")
    if not is_told and notation != Notation():
        signs = [cell for cell in present if plain_number(cell) is None]
        warnings.warn(
            f"{what} is read as numbers, {signs[0]!r} at {place(signs[0])} as "
            f"{numbers[present.index(signs[0])]:g}; name it in `categories` or `drop` "
            "if that is not what you mean.",
            UserWarning,
            stacklevel=5,
        )
    return notation


_DATE = ("date", "date")


def _affixes(cell: str) -> tuple[str, str] | None:
    """What stands before and behind the number in a cell; `_DATE`; None if neither."""
    if plain_number(cell) is not None:
        return "", ""
    if _days(cell) is not None:
        return _DATE
    match = _PARTS.fullmatch(cell)
    if match is None:
        return None
    prefix = match["prefix"].strip()
    suffix = match["suffix"].strip()
    # A letter before a number makes a code of it, as in `A1`; `5½` is no unit of `½`.
    is_currency = any(unicodedata.category(sign) == "Sc" for sign in prefix)
    if prefix and not is_currency and prefix not in _CURRENCIES:
        return None
    if suffix and suffix[0].isnumeric():
        return None
    affix = prefix, suffix
    # Not `1.2.3`, which is a number in no notation.
    styles = [Notation(sign, groups, *affix) for sign, groups in _STYLES]
    return affix if any(_read(cell, style) is not None for style in styles) else None


def _numbers(column: Column, cells: Cells) -> np.ndarray:
    """float64 `[rows]`, NaN where a cell is missing or no number."""
    known = {
        cell: _read(cell, column.notation) for cell in set(cells) if cell is not None
    }
    numbers = [None if cell is None else known[cell] for cell in cells]
    return np.asarray([math.nan if n is None else n for n in numbers], np.float64)


def _read(cell: str, notation: Notation) -> float | None:
    if notation == Notation():
        return plain_number(cell)
    if notation.is_date:
        return _days(cell)
    match = _PARTS.fullmatch(cell)
    if match is None:
        return plain_number(cell)  # infinity
    if (match["prefix"].strip(), match["suffix"].strip()) != notation[2:4]:
        return None
    sign = "-" if match["sign"] in ("-", "\u2212") else ""
    body, dot, groups = match["body"], re.escape(notation.decimal), notation.groups
    number = rf"\d*(?:{dot}\d*)?(?:[eE][+\-]?\d+)?"
    if groups:
        group = f"[{re.escape(groups)}]"
        grouped = rf"\d{{1,3}}({group})\d{{3}}(?:\1\d{{3}})*(?:{dot}\d*)?"
        number = f"{grouped}|{number}"
    if not re.fullmatch(number, body):
        return None
    for group in groups:
        body = body.replace(group, "")
    return plain_number(sign + body.replace(notation.decimal, "."))


def _days(cell: str) -> float | None:
    """Days since 1970 of an ISO date or time; without a zone it is taken as UTC."""
    if not _ISO_DATE.fullmatch(cell):
        return None
    try:
        when = datetime.datetime.fromisoformat(cell)
    except ValueError:
        return None
    if when.tzinfo is None:
        when = when.replace(tzinfo=datetime.UTC)
    return (when - _EPOCH).total_seconds() / _DAY
