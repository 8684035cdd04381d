"""Figures without a display, saved atomically."""

import os
import pathlib
from typing import Any

__all__ = ["CLASS_COLORS", "figure_class", "save"]

CLASS_COLORS = (
    "#0072b2",
    "#e69f00",
    "#009e73",
    "#cc79a7",
    "#56b4e9",
    "#d55e00",
    "#f0e442",
)
"""Those of Okabe and Ito, for the colour-blind too; more classes take them in turn."""


def figure_class() -> Any:
    """Gives Matplotlib's figure, which needs no display.

    Raises:
      ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError(
            "matplotlib is not installed: pip install 'metajax[plots]'."
        ) from error
    return Figure


def save(figure: Any, path: str | os.PathLike[str], *, dpi: int = 130) -> None:
    """Writes a PNG file: all of it, or nothing.

    Args:
      figure: what to write.
      path: the file.
      dpi: pixels per inch.
    """
    path = pathlib.Path(path)
    if not path.parent.is_dir():
        raise FileNotFoundError(
            f"`path` must lie in a folder that exists, got {str(path)!r}; make it."
        )
    temporary = path.with_name(f".{path.name}.tmp")
    figure.savefig(temporary, format="png", dpi=dpi)
    os.replace(temporary, path)
