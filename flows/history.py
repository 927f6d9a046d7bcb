"""History: who let what fly, when and why, from the ledger. Change here to show more of an entry."""

import argparse
import json
import os
import sys
from collections.abc import Mapping
from typing import Any

from flows import ledger
from flows.stage import say
from pipeline.errors import InputError

_HEAD = ("version", "at (UTC)", "bundle", "by", "what", "because")


def history(as_json: bool = False) -> None:
    """Show every entry, oldest first, the newest being the champion."""
    flown = ledger.entries()
    if as_json:
        say(json.dumps([{"tag": entry.tag, **told} for entry, told in flown.items()], indent=1, ensure_ascii=False))
        return
    rows = [_HEAD, *(_row(entry, told) for entry, told in flown.items())]
    widths = [max(len(row[column]) for row in rows) for column in range(len(_HEAD))]
    for row in rows:
        line = "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        say(red(line) if "EMERGENCY" in line or "WAIVED" in line else line)
    say(f"champion: {newest.tag}" if (newest := ledger.newest(flown)) else "nothing has flown yet")


def _row(entry: ledger.Entry, told: Mapping[str, Any]) -> tuple[str, ...]:
    grounds, waived = told.get("grounds") or [], told.get("waived") or []
    what = f"rollback to {told['restores'].removeprefix('model/')}" if told.get("restores") else "promote"
    marks = [f"EMERGENCY, grounded by {', '.join(grounds)}"] * bool(grounds)
    marks += [f"WAIVED {', '.join(waived)}"] * bool(waived)
    at, by, because = (str(told.get(key, "?")) for key in ("at", "by", "because"))
    moment = at.removesuffix("+00:00").replace("T", " ")
    return entry.tag.removeprefix("model/"), moment, entry.bundle[:12], by, ": ".join([what, *marks]), because


def red(text: str) -> str:
    """A text in red, where a terminal shows it."""
    return f"\033[31m{text}\033[0m" if sys.stdout.isatty() and "NO_COLOR" not in os.environ else text


if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.history", description=history.__doc__)
    parser.add_argument("--json", dest="as_json", action="store_true", help="everything that the entries tell")
    try:
        history(**vars(parser.parse_args()))
    except InputError as error:
        sys.stderr.write(f"history: {error}\n")
        sys.exit(2)
