"""The comment on a pull request: its model beside that of main, as Markdown. Change here to show more of either.

What the pull request brings is a stranger's: its text stands in code spans alone, and a file that is missing or odd
costs a line. `python -m flows.post` puts the comment in its place.
"""

import argparse
import csv
import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from dvc.api import DVCFileSystem  # type: ignore[import-untyped] # it has no types

from flows import ledger
from flows.markdown import change, chart, code, folded, interval, listed, number, table
from flows.repository import leaves
from flows.stage import say
from pipeline import gates
from pipeline.canonical import sha256
from pipeline.errors import InputError
from pipeline.metrics import LESS_IS_BETTER

LIMIT = 65_000  # characters: GitHub takes 65,536, and flows.post adds a line
CUT = "\n\n✂️ **Cut here**, since GitHub takes no longer comment: the full report has the rest."
_BYTES, _LINES, _DRAWN = 5_000_000, 50, 1e6  # at most: of a file, of a list, of a number that is drawn
_BOUNDS = {"at least": "≥", "at most": "≤"}
_DESCRIBED = ("kind", "unit", "nullable", "minimum", "maximum", "open")  # of a column
_MEASURED = ("null_share", "median", "distinct", "outlier_share")
_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # in C, where there is libyaml: ten times as fast
_CURVES = (
    ("ROC", "reports/curves/roc.csv", "false_positive_rate", "true_positive_rate"),
    ("What waiting costs", "reports/tables/waiting.csv", "age_months", "loss"),
)

Lines = list[str]


class Side:
    """One of the two models: its name, and what reads its files, None where there is none. `wrong` is what could not be
    read, and why."""

    def __init__(self, name: str, read: Callable[[str], bytes] | None) -> None:
        self.name, self.read, self.wrong = name, read, dict[str, str]()
        self._held: dict[str, Any] = {}

    def get(self, file: str, *, needed: bool = True) -> Any:
        """What a file holds, an empty mapping where it cannot be read."""
        try:
            if file not in self._held:
                self._held[file] = _PARSERS[Path(file).suffix](self.read(file)) if self.read else {}
        except Exception as error:  # a stranger's file may raise anything
            if needed or not isinstance(error, FileNotFoundError):
                self.wrong[file] = f"{code(file)} ({_said(error)})"
        return self._held.setdefault(file, {})


def here_in(folder: Path) -> Side:
    """The model that a run left in a folder. Nothing outside of it is read, whatever links say."""

    def read(file: str) -> bytes:
        path = (folder / file).resolve()
        if not path.is_file() or not path.is_relative_to(folder.resolve()):
            raise FileNotFoundError("not there")
        if path.stat().st_size > _BYTES:
            raise InputError(f"expected at most {_BYTES:,} bytes, got more")
        return path.read_bytes()

    return Side("the pull request", read)


def main_at(revision: str) -> Side:
    """The model that a revision records, from git and from DVC's cache or remote; InputError where git knows none."""
    commit = ledger.git("rev-parse", "--verify", f"{revision}^{{commit}}")
    has_model = ledger.git("ls-tree", "--name-only", commit, "dvc.lock")
    return Side(f"main at `{commit[:12]}`", DVCFileSystem(rev=commit).read_bytes if has_model else None)


def comment(here: Side, main: Side, run: str = "") -> str:
    """All of it, cut before the first section that does not fit. `run`: the address of the run that inspected."""
    head = verdict(here, main, f"[the run]({run})" if run else "the run")
    sections = {"Metrics": metrics, "Gates": gates_held, "Worst slices": slices, "Data": data, "Params": params}
    sections |= {"Stages": stages, "Pictures": pictures}
    if here.get("dvc.lock") == main.get("dvc.lock") != {}:
        head.append("Nothing that makes the model or its figures differs: `dvc.lock` is that of main.")
        sections = {"Gates": gates_held, "Params": params}
    told = [_told(title, tell, here, main) for title, tell in sections.items()]
    head += [f"⚪ Of {side.name}, not read: {listed(side.wrong.values())}" for side in (here, main) if side.wrong]
    text = "\n\n".join(head)
    for part in told:
        if len(text) + len(part) + len(CUT) > LIMIT:
            return text + CUT
        text += part
    return text


def _told(title: str, tell: Callable[[Side, Side], Lines], here: Side, main: Side) -> str:
    try:
        lines = tell(here, main)
    except Exception as error:  # as above
        lines = ["", f"⚪ This cannot be told: its files have another shape ({_said(error)})."]
    return "\n".join([f"\n\n### {title}", *lines]) if lines else ""


def _said(error: Exception) -> str:
    return code(f"{type(error).__name__}: {error}")


def verdict(here: Side, main: Side, run: str) -> Lines:
    """What the inspection said, of which bundle, beside what; a gate that main has and it lacks grounds the model."""
    told = here.get("inspection/gates.json")
    beside = f"beside {main.name}" if main.read else "beside nothing: main has no model yet"
    try:
        failed = [gate["gate"] for gate in told["gates"] if gate["passed"] is not True and not gate["waived"]]
        held, waived = ([gate["gate"] for gate in told["gates"] if gate[key]] for key in ("gate", "waived"))
        grounds = failed + [f"{name} (missing)" for name in gates.names(gates.INSPECTION) if name not in held]
        same = ", that of main," * (told["bundle"] == main.get("reports/gates.json").get("bundle"))
        of_this = told["dvc.lock"] == sha256(here.read("dvc.lock") if here.read else b"")
        word = f"🔴 GROUNDED by {listed(map(code, grounds))}" if grounds else "🟢 AIRWORTHY"
        if not of_this or told["airworthy"] is not (not failed):
            word = "⚪ COULD NOT BE INSPECTED: its verdict is of another `dvc.lock`, or contradicts itself"
        word += f" · 🔴 WAIVED: {listed(map(code, waived))}" if waived else ""
        said = f"Bundle {code(told['bundle'][:12])}{same} {beside}. Full report: the artifact `inspection` of {run}."
    except Exception:  # as above
        word, said = "⚪ COULD NOT BE INSPECTED", f"No verdict that can be read came of {run}."
    return [f"## {word}", said]


def metrics(here: Side, main: Side) -> Lines:
    """The figures of both, each with its interval, and what the duel says."""
    ours, theirs = (side.get("reports/metrics.json").get("model", {}) for side in (here, main))
    rows = []
    for name in sorted(ours, key=lambda name: name != _metric(here)):
        new, old, less = ours[name], theirs.get(name, {}), " ↓" * (name in LESS_IS_BETTER)
        moved = change(new.get("value"), old.get("value"))
        rows.append([code(name) + less, interval(old), interval(new), moved])
    lines = table(["metric (↓ less is better)", "main", "here", "change"], rows)
    if rows and theirs:
        tests = [_recorded(side, "preprocess").get("prepared/test.parquet") for side in (main, here)]
        lines += ["", "Both on the same test rows." if tests[0] == tests[1] else "Each on test rows of its own."]
    duel = [gate["reason"] for gate in here.get("inspection/gates.json").get("gates", []) if gate["gate"] == "champion"]
    return lines + [f"\nDuel with the champion: {code(reason)}" for reason in duel]


def gates_held(here: Side, _main: Side) -> Lines:
    """Every gate: those that failed or are waived in full, the others folded."""
    shown, passed = Lines(), list[Lines]()
    for gate in here.get("inspection/gates.json").get("gates", []):
        name, value, why = code(gate["gate"]), number(gate["value"]), code(gate["reason"])
        limit = f"{_BOUNDS.get(gate['bound'], '')} {number(gate['limit'])}"
        if gate["passed"] is True and not gate["waived"]:
            passed.append([name, value, limit, why])
        else:
            word = "🟢 passed" if gate["passed"] is True else "🔴 **FAILED**"
            word += f", 🔴 **WAIVED** ({code(gate['waived'])})" if gate["waived"] else ""
            shown.append(f"- {name} {word}: {value}, limit {limit}: {why}")
    lines = ["", *shown[:_LINES]] if shown else []
    return lines + folded(f"{len(passed)} passed", table(["gate", "value", "limit", "found"], passed))


def slices(here: Side, main: Side) -> Lines:
    """The worst of the slices that have rows enough to be judged."""
    metric, file = _metric(here), "reports/tables/slices.csv"
    ends, theirs = (metric, f"{metric}_low", f"{metric}_high"), {row["slice"]: row for row in main.get(file)}
    rows = []
    for row in [row for row in here.get(file) if row["judged"] == "True"][:5]:
        beside = (interval(each, *ends) for each in (theirs.get(row["slice"], {}), row))
        rows.append([code(row["slice"]), number(row["rows"]), *beside])
    return table(["slice", "rows", f"{code(metric)} in main", "here"], rows)


def data(here: Side, main: Side) -> Lines:
    """Periods, columns, splits and distributions that differ."""
    lines = _differences(_periods, here, main)
    for title, tell in {"Columns": _contract, "Splits": _splits, "Distributions": _distributions}.items():
        lines += folded(title, _differences(tell, here, main))
    return lines


def _periods(side: Side) -> dict[str, Any]:
    periods = side.get("data/manifest.json").get("periods", {})
    told = {
        n: f"{p['rows']:,} rows, {p['quarantined']:,} quarantined, hash {p['sha256'][:8]}" for n, p in periods.items()
    }
    return told | {"all": f"{sum(period['rows'] for period in periods.values()):,} rows"} if told else {}


def _contract(side: Side) -> dict[str, Any]:
    inputs = {column["name"]: column for column in side.get("bundle/contract.json").get("inputs", [])}
    categories = {f"{n}: {value}": "known" for n, column in inputs.items() for value in column.get("categories", [])}
    return _of_columns(_quality(side, "columns") | inputs, _DESCRIBED) | categories


def _splits(side: Side) -> dict[str, Any]:
    return leaves(_quality(side, "splits"))


def _distributions(side: Side) -> dict[str, Any]:
    return _of_columns(_quality(side, "columns"), _MEASURED)


def _quality(side: Side, part: str) -> dict[str, Any]:
    return dict(side.get("prepared/quality.json").get(part, {}))


def _of_columns(columns: Mapping[str, Any], keys: tuple[str, ...]) -> dict[str, Any]:
    return {f"{name}: {key}": column[key] for name, column in columns.items() for key in keys if key in column}


def params(here: Side, main: Side) -> Lines:
    """Every parameter that differs."""
    return _differences(lambda side: leaves(side.get("params.yaml")), here, main)


def stages(here: Side, main: Side) -> Lines:
    """Every stage that differs, and in what: its command, parameters, inputs and outputs."""
    old, new = (side.get("dvc.lock").get("stages", {}) for side in (main, here))
    changed = {name: _changed(_recorded(main, name), _recorded(here, name)) for name in {**old, **new}}
    lines = [f"- {code(name)}: {listed(map(code, parts))}" for name, parts in changed.items() if parts]
    return ["", *lines[:_LINES]] if old and new and lines else []


def _recorded(side: Side, stage: str) -> dict[str, Any]:
    told = side.get("dvc.lock").get("stages", {}).get(stage, {})
    files = {file["path"]: file["md5"] for kind in ("deps", "outs") for file in told.get(kind, [])}
    return {"command": told.get("cmd"), **leaves(told.get("params", {}).get("params.yaml", {})), **files}


def _changed(old: Mapping[str, Any], new: Mapping[str, Any]) -> list[str]:
    return [name for name in {**old, **new} if old.get(name) != new.get(name)]


def _differences(tell: Callable[[Side], dict[str, Any]], here: Side, main: Side) -> Lines:
    """What both tell otherwise, as a table; nothing where one of them tells nothing."""
    old, new = tell(main), tell(here)
    names = _changed(old, new) if old and new else []
    rows = [[code(name), *(code(side[name]) if name in side else "" for side in (old, new))] for name in names]
    return table(["changed", "main", "here"], rows)


def pictures(here: Side, main: Side) -> Lines:
    """Calibration, ROC and what waiting costs, where there are such curves."""
    lines = Lines()
    if bins := _curve(here, "reports/curves/calibration.csv", "mean_score", "observed_rate"):
        caption = "**Calibration**: 🟦 how often it came true, 🟧 the mean score"
        lines += chart(caption, f'"parts of the rows, by score" 1 --> {len(bins[0])}', bar=bins[1:], line=bins[:1])
    for title, file, x, y in _CURVES:
        if ours := _curve(here, file, x, y):
            theirs = _curve(main, file, x, y)
            grid = np.linspace(min(ours[0]), max(ours[0]), 21)
            shown = [ours, theirs] if theirs and theirs != ours else [ours]
            drawn = [np.interp(grid, places, values).tolist() for places, values in shown]
            caption = f"**{title}**: 🟦 here{', 🟧 main' * (len(drawn) > 1)}"
            lines += chart(caption, f'"{x.replace("_", " ")}" {grid[0]:.5f} --> {grid[-1]:.5f}', line=drawn)
    return lines


def _curve(side: Side, file: str, x: str, y: str) -> list[list[float]]:
    """The places and the values of a curve, nothing for a single place; InputError where it cannot be drawn."""
    axes = [[float(row[name]) for row in side.get(file, needed=False)] for name in (x, y)]
    if not all(abs(end) < _DRAWN for axis in axes for end in axis):
        raise InputError(f"expected numbers that can be drawn in {file}")
    return axes if len({*axes[0]}) > 1 else []


def _metric(side: Side) -> str:
    return str(side.get("params.yaml").get("evaluate", {}).get("metric"))


def _yaml(content: bytes) -> Any:
    if any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(content, Loader=_LOADER)):
        raise InputError("expected no aliases, of which a few lines make a billion values")
    return yaml.load(content, Loader=_LOADER)  # noqa: S506 - a safe one


def _csv(content: bytes) -> list[dict[str, str]]:
    return list(csv.DictReader(content.decode().splitlines()))


_PARSERS: dict[str, Callable[[bytes], Any]] = {".json": json.loads, ".csv": _csv, ".yaml": _yaml, ".lock": _yaml}

if __name__ == "__main__":
    parser = argparse.ArgumentParser(prog="python -m flows.comment", description=comment.__doc__)
    parser.add_argument("--here", type=Path, default=Path(), metavar="FOLDER", help="where the inspected model lies")
    parser.add_argument("--against", default="main", metavar="REVISION", help="what it is compared with")
    parser.add_argument("--run", default="", metavar="URL", help="the run that inspected it, and has the full report")
    parser.add_argument("--output", type=Path, metavar="FILE", help="else it is printed")
    given = parser.parse_args()
    try:
        made = comment(here_in(given.here), main_at(given.against), given.run)
    except InputError as error:
        sys.stderr.write(f"comment: {error}\n")
        sys.exit(2)
    if given.output:
        given.output.write_text(made + "\n")
    else:
        say(made)
