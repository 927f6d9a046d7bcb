"""Markdown as GitHub shows it: figures, tables, charts, the text of strangers. Change here to show them otherwise."""

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

_LINES, _CHARACTERS = 20, 300  # at most, of a list or a table, and of a text
_SAFE = str.maketrans("`|", "'¦")  # what ends a code span, and what ends a cell even inside one
_STYLE = "{xyChart: {width: 640, height: 300}, themeVariables: {xyChart: {plotColorPalette: '#3b88c3, #f4900c'}}}"


def code(value: Any) -> str:
    """A stranger's text, or value, as a code span in one line: GitHub makes no mention, link, formula, emoji or HTML of
    it. What cannot be shown, or would end the span or a table's cell, is replaced, and much is cut."""
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    shown = "".join(c if c.isprintable() else " " for c in text[: 4 * _CHARACTERS].translate(_SAFE))
    short = " ".join(shown.split())
    cut = "…" if len(short) > _CHARACTERS or len(text) > 4 * _CHARACTERS else ""
    return f"`{short[:_CHARACTERS] + cut or '(empty)'}`"


def number(value: Any, sign: str = "") -> str:
    """A figure with four digits, n/a for what is none. `sign`: + to show it where it is positive, too."""
    try:
        found = float(value)
    except (TypeError, ValueError, OverflowError):
        return "n/a"
    if not math.isfinite(found):
        return "n/a"
    return f"{found:{sign},.0f}" if 1000 <= abs(found) < 1e15 else f"{found:{sign}.4g}"


def change(new: Any, old: Any) -> str:
    """How much a figure moved; nothing where either is none."""
    try:
        return number(float(new) - float(old), "+")
    except (TypeError, ValueError, OverflowError):
        return ""


def interval(found: Mapping[str, Any], value: str = "value", low: str = "low", high: str = "high") -> str:
    """A figure with its interval, by their names; nothing of nothing."""
    return f"{number(found.get(value))} ({number(found.get(low))} to {number(found.get(high))})" if found else ""


def listed(texts: Iterable[str]) -> str:
    """Texts in a line, the first of them."""
    known = list(texts)
    return ", ".join([*known[:_LINES], *([f"and {len(known) - _LINES:,} more"] if len(known) > _LINES else [])])


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    """Rows of cells, the first of them; nothing where there is none."""
    if not rows:
        return []
    lines = [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows[:_LINES])]
    return ["", *lines, *(["", f"and {len(rows) - _LINES:,} more"] if len(rows) > _LINES else [])]


def folded(summary: str, lines: list[str]) -> list[str]:
    """Lines that open on a click; nothing where there is none. `summary` is ours, no stranger's."""
    return ["", f"<details><summary>{summary}</summary>", *lines, "", "</details>"] if lines else []


def chart(caption: str, x_axis: str, **plots: Sequence[Sequence[float]]) -> list[str]:
    """A picture that Mermaid draws: `bar`s, then `line`s, the first of all in blue, the second in orange."""
    ends = [y for each in plots.values() for ys in each for y in ys]
    low, high = min(0.0, *ends), max(*ends, 1e-5)
    drawn = [f"{kind} [{', '.join(f'{y:.5f}' for y in ys)}]" for kind, each in plots.items() for ys in each]
    axes = [f"x-axis {x_axis}", f"y-axis {low:.5f} --> {high:.5f}"]
    return ["", caption, "", "```mermaid", "---", f"config: {_STYLE}", "---", "xychart-beta", *axes, *drawn, "```"]
