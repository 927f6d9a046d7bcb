"""Bad inputs as a user meets them: one line that names the culprit, and not a byte of output changed."""

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd
import pytest
import yaml

from pipeline.canonical import json_bytes, parquet_bytes, sha256
from tests.clones import Clone

JANUARY, FEBRUARY = "data/2013-01.parquet", "data/2013-02.parquet"
Edit = Callable[[pd.DataFrame], pd.DataFrame]
Break = Callable[[Path], None]


class Case(NamedTuple):
    """How an input is broken in a clone, and words that the error must hold."""

    spoil: Break
    words: list[str]


def rewritten(edit: Edit, *files: str) -> Break:
    """Partitions rewritten as if ingest had let them through: the manifest agrees."""

    def spoil(clone: Path) -> None:
        manifest = json.loads((clone / "data/manifest.json").read_text())
        for file in files or (FEBRUARY,):
            path = clone / file
            content = parquet_bytes(edit(pd.read_parquet(path)))
            path.write_bytes(content)
            manifest["periods"][path.stem]["sha256"] = sha256(content)
        (clone / "data/manifest.json").write_bytes(json_bytes(manifest))

    return spoil


def damaged(edit: Callable[[bytes], bytes]) -> Break:
    """A partition whose bytes are no longer those that were written."""

    def spoil(clone: Path) -> None:
        (clone / FEBRUARY).write_bytes(edit((clone / FEBRUARY).read_bytes()))

    return spoil


def params(edit: Callable[[dict[str, Any]], Any]) -> Break:
    """Another `preprocess` section in params.yaml."""

    def spoil(clone: Path) -> None:
        given = yaml.safe_load((clone / "params.yaml").read_text())
        edit(given["preprocess"])
        (clone / "params.yaml").write_text(yaml.safe_dump(given))

    return spoil


def value(column: str, came: object, row: int = 7) -> Edit:
    """One value of a table replaced."""

    def edit(table: pd.DataFrame) -> pd.DataFrame:
        table.loc[row, column] = came
        return table

    return edit


def month_lost(clone: Path) -> None:
    """February called March: a gap."""
    manifest = json.loads((clone / "data/manifest.json").read_text())
    manifest["periods"]["2013-03"] = manifest["periods"].pop("2013-02")
    (clone / "data/manifest.json").write_bytes(json_bytes(manifest))
    (clone / FEBRUARY).rename(clone / "data/2013-03.parquet")


def leak(clone: Path) -> None:
    """The outcome under another name, declared as known before and made a feature."""
    rewritten(lambda table: table.assign(was_late=table["is_late"]), JANUARY, FEBRUARY)(clone)
    for name, before, added in [
        (
            "schema",
            "    class Config:",
            '    was_late: pd.BooleanDtype = column("x", roles=["feature"], nullable=True)\n\n',
        ),
        ("features", '        "carrier": columns["carrier"],\n', '        "was_late": columns["was_late"],\n'),
    ]:
        path = clone / f"src/problem/{name}.py"
        assert before in path.read_text()
        path.write_text(path.read_text().replace(before, added + before))


CASES = {
    "missing column": Case(rewritten(lambda t: t.drop(columns="distance")), [FEBRUARY, "missing ['distance']"]),
    "extra column": Case(rewritten(lambda t: t.assign(surplus=1)), [FEBRUARY, "['surplus']"]),
    "renamed column": Case(
        rewritten(lambda t: t.rename(columns={"distance": "miles"})), [FEBRUARY, "'distance'", "'miles'", "renamed"]
    ),
    "retyped column": Case(
        rewritten(lambda t: t.astype({"distance": "str"})), [FEBRUARY, "'distance'", "int64", "str"]
    ),
    "value out of range": Case(rewritten(value("distance", 99_999)), [f"{FEBRUARY} row 7", "'distance'", "99999"]),
    "unknown category": Case(rewritten(value("origin", "XXX")), [f"{FEBRUARY} row 7", "'origin'", "XXX"]),
    "no rows": Case(rewritten(lambda t: t.head(0)), [FEBRUARY, "empty"]),
    "no bytes": Case(damaged(lambda _: b""), [FEBRUARY, "0 bytes"]),
    "truncated": Case(damaged(lambda content: content[: len(content) // 2]), [FEBRUARY, "Parquet"]),
    "no Parquet": Case(damaged(lambda _: b"carrier,flight\nUA,1\n"), [FEBRUARY, "20 bytes", "Parquet"]),
    "month missing in the middle": Case(month_lost, ["data", "2013-01", "2013-03", "['2013-02'] is missing"]),
    "duplicate keys": Case(
        rewritten(lambda t: pd.concat([t, t.iloc[[5]]])), [FEBRUARY, "scheduled_departure_at+carrier+flight"]
    ),
    "column without values": Case(rewritten(lambda t: t.assign(seats=float("nan")), JANUARY, FEBRUARY), ["'seats'"]),
    "target of one class": Case(
        rewritten(lambda t: t.assign(is_late=t["is_late"].mask(t["is_late"].notna(), False)), JANUARY, FEBRUARY),
        ["train", "'is_late'", "[0.0]"],
    ),
    "target under another name": Case(leak, ["'was_late'", "suspicious_score", "1.0000"]),
    "unknown parameter": Case(params(lambda p: p.update(shuffle=True)), ["params.yaml", "'preprocess.shuffle'"]),
    "missing parameter": Case(
        params(lambda p: p["split"].pop("test_from")), ["params.yaml", "'preprocess.split.test_from' is missing"]
    ),
    "ill-typed parameter": Case(
        params(lambda p: p.update(suspicious_score="high")), ["params.yaml", "'preprocess.suspicious_score'", "'high'"]
    ),
    "split without rows": Case(
        params(lambda p: p["split"].update(test_from="2013-12", test_until="2014")), ["'test': 0", "params.yaml"]
    ),
}


@pytest.fixture(scope="module")
def prepared(small: Callable[[Path], Clone], tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """A clone with some 3,000 rows a month, recorded in DVC and git, that has run preprocess."""
    clone = small(tmp_path_factory.mktemp("bad input") / "clone")
    rewritten(lambda table: table.iloc[::9].reset_index(drop=True), JANUARY, FEBRUARY)(clone.path)
    clone.dvc("add", "--quiet", "data")
    clone.run("git", "commit", "--quiet", "--all", "--message", "tiny")
    preprocess(clone)
    shutil.copytree(clone.path / "data", clone.path.parent / "data")
    return clone


@pytest.fixture
def scratch(prepared: Clone) -> Clone:
    """The same clone, its inputs as they were."""
    prepared.run("git", "checkout", "--quiet", "--", "data.dvc", "params.yaml", "src")
    shutil.rmtree(prepared.path / "data")
    shutil.copytree(prepared.path.parent / "data", prepared.path / "data")
    return prepared


def preprocess(clone: Clone, check: bool = True) -> tuple[int, str]:
    done = clone.run(sys.executable, "-m", "flows.preprocess", check=check)
    return done.returncode, done.stderr


def outputs(clone: Clone) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (clone.path / "prepared").iterdir()}


@pytest.mark.parametrize("name", CASES)
def test_bad_input_is_one_line_that_names_it_and_leaves_the_outputs(name: str, scratch: Clone) -> None:
    before = outputs(scratch)
    CASES[name].spoil(scratch.path)
    code, said = preprocess(scratch, check=False)
    assert code == 1
    assert said.startswith("preprocess: ")
    assert said.count("\n") == 1
    assert [word for word in CASES[name].words if word not in said] == []
    assert len(before) == 4
    assert outputs(scratch) == before


def test_dvc_repro_says_the_same_and_the_remedy_brings_the_data_back(scratch: Clone) -> None:
    CASES["truncated"].spoil(scratch.path)
    _, said = preprocess(scratch, check=False)
    done = scratch.dvc("repro", "preprocess", check=False)
    assert done.returncode != 0
    assert said in done.stderr
    assert "Traceback" not in done.stderr
    scratch.run("git", "checkout", "data.dvc")
    scratch.dvc("checkout", "--force", "data.dvc")
    assert preprocess(scratch) == (0, "")
    assert len(outputs(scratch)) == 4
