"""What the tables of the documentation are made of: cells, in Markdown."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any


def table(head: str, rows: Iterable[Iterable[str]]) -> str:
    """In Markdown. The head's cells are separated by commas."""
    cells = head.split(", ")
    lines = [cells, ["---"] * len(cells), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def picture(meaning: str, file: str) -> str:
    return f"![{meaning}]({file})\n\n"


def number(value: float | None) -> str:
    """Three significant digits."""
    if value is None:
        return ""
    digits = 0 if value >= 100 else 1 if value >= 10 else 2 if value >= 0.1 else 4
    return f"{value:.{digits}f}"


def ratio(value: float | None) -> str:
    return "" if value is None else f"{number(value)}×"


def percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.0f}%"


def megabytes(size: float | None) -> str:
    return "" if size is None else number(size / 1e6)


def over(value: float | None, other: float | None) -> float | None:
    return None if value is None or other is None else value / other


def machine_and_command(it: dict[str, Any], command: str, *more: str) -> str:
    """What numbers depend on, and what printed them."""
    cores = f"{it['cores']} cores of an {it['cpu']} ({it['kernels']} kernels)"
    parts = f"{cores}, JAX {it['jax']}, Python {it['python']}", *more
    return f"{'; '.join(parts)}. `{command}`"
