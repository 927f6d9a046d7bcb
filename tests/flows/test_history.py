import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flows.history import history
from tests.clones import ROOT
from tests.flows.hangar import flown, hangar, hangars

__all__ = ["flown", "hangar", "hangars"]  # fixtures


@pytest.mark.usefixtures("hangar")
def test_before_the_first_flight_there_is_none(capsys: pytest.CaptureFixture[str]) -> None:
    history()
    assert capsys.readouterr().out.endswith("nothing has flown yet\n")


def test_every_entry_is_a_line_with_emergency_and_rollback_marked(
    flown: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    history()
    head, first, second, third, champion = capsys.readouterr().out.splitlines()
    assert head.split() == ["version", "at", "(UTC)", "bundle", "by", "what", "because"]
    assert first.split() == [
        "v1",
        "2013-11-01",
        "00:00:00",
        flown["one"][:12],
        "ada",
        "promote",
        *"it was time".split(),
    ]
    assert "EMERGENCY, grounded by floor" in second
    assert "rollback to v1" in third
    assert champion == "champion: model/v3"
    assert "\033" not in second


@pytest.mark.usefixtures("flown")
def test_a_terminal_shows_an_emergency_in_red(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    history()
    assert [line.startswith("\033[31m") for line in capsys.readouterr().out.splitlines()] == [
        False,
        False,
        True,
        False,
        False,
    ]


@pytest.mark.usefixtures("flown")
def test_all_that_the_ledger_holds_is_told_as_json(hangar: object, capsys: pytest.CaptureFixture[str]) -> None:
    assert hangar
    history(as_json=True)
    told = json.loads(capsys.readouterr().out)
    assert [(entry["tag"], entry["previous"]) for entry in told] == [
        ("model/v1", None), ("model/v2", "model/v1"), ("model/v3", "model/v2"),
    ]  # fmt: skip
    assert told[2]["restores"] == "model/v1"
    assert told[0]["at"] == "2013-11-01T00:00:00+00:00"


def test_the_program_prints_json_alone_and_ends_with_2_where_it_cannot_tell(
    flown: dict[str, str], tmp_path: Path
) -> None:
    env = {**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT}/src"}
    command = [sys.executable, "-m", "flows.history", "--json"]
    scratch = tmp_path / "elsewhere"
    subprocess.run(["git", "clone", "--quiet", "--no-tags", str(tmp_path / "hangar"), str(scratch)], check=True)
    (scratch / "flows").rename(scratch / "toys")  # not these
    done = subprocess.run(command, cwd=scratch, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (2, "")
    assert "history: expected the ledger's tags" in done.stderr
    subprocess.run(["git", "config", "--unset", "remote.origin.tagOpt"], cwd=scratch, check=True)
    subprocess.run(["git", "fetch", "--quiet", "--tags"], cwd=scratch, check=True)
    done = subprocess.run(command, cwd=scratch, env=env, capture_output=True, text=True)
    assert [entry["bundle"] for entry in json.loads(done.stdout)] == [flown[name] for name in ("one", "two", "one")]
