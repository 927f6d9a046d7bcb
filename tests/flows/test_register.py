import json
import subprocess
import sys
from contextlib import chdir, suppress
from pathlib import Path

import pytest

from flows.ledger import Refused, decided
from flows.register import register
from pipeline.errors import InputError
from tests.flows.hangar import MLFLOW_WARNS, Hangar, flown, hangar, hangars, killed_before, other, registry_now
from tests.flows.test_tracking import Killed, client, hasty_sqlite, snapshot

pytestmark = MLFLOW_WARNS
__all__ = ["flown", "hangar", "hangars", "hasty_sqlite", "other"]  # fixtures


def test_a_bundle_is_one_run_and_one_version_however_often_it_is_registered(hangar: Hangar) -> None:
    register()
    once = (registry_now(), snapshot())
    assert once[0] == {
        "aliases": {"challenger": hangar.bundle()},
        "versions": [
            {"bundle": hangar.bundle(), "git.commit": hangar.git("rev-parse", "HEAD"), "airworthy": "not inspected"}
        ],
    }
    register()
    assert (registry_now(), snapshot()) == once


def test_on_another_machine_with_the_same_store_it_is_there_exactly_once(
    hangar: Hangar, other: Hangar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    uri = f"sqlite:///{tmp_path}/shared.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    bundle = hangar.take("three")
    register()
    once = (registry_now(uri), snapshot(uri))
    monkeypatch.setenv("DVC_ROOT", str(other.path))
    with chdir(other.path):
        register()
    assert (registry_now(uri), snapshot(uri)) == once
    assert once[0]["aliases"] == {"challenger": bundle}


@pytest.mark.usefixtures("hangar")
def test_killed_at_any_step_it_is_completed_by_the_next(monkeypatch: pytest.MonkeyPatch) -> None:
    register()
    undisturbed, write, ended = registry_now(), 0, False
    while not ended:
        write += 1
        client().delete_registered_model("toy")
        with monkeypatch.context() as patch:
            count = killed_before(write, patch)
            with suppress(Killed):
                register()
            ended = count() < write
        register()
        assert registry_now() == undisturbed, f"killed before step {write}"
    assert write == 6


def test_a_second_bundle_is_a_second_version_and_the_challenger(hangar: Hangar) -> None:
    one = hangar.bundle()
    register()
    two = hangar.take("two")
    register()
    assert [tags["bundle"] for tags in registry_now()["versions"]] == [one, two]
    assert registry_now()["aliases"] == {"challenger": two}


def test_the_champion_does_not_challenge_itself(hangar: Hangar, flown: dict[str, str]) -> None:
    hangar.take("one")
    register()
    assert registry_now()["aliases"] == {"champion": flown["one"], "previous": flown["two"]}


def test_a_dirty_tree_is_refused_and_told_unless_it_is_wanted(
    hangar: Hangar, capsys: pytest.CaptureFixture[str]
) -> None:
    text = Path("params.yaml").read_text()
    Path("params.yaml").write_text(text.replace("unread: 1", "unread: 2"))
    Path("notes.txt").write_text("of no matter")
    assert decided(register)() == 1
    said = capsys.readouterr().err
    assert said.startswith("register: expected a working tree as it is committed, but params.yaml differ;")
    assert registry_now()["versions"] == []
    register(dirty=True)
    (tags,) = registry_now()["versions"]
    assert tags["dirty"] == "params.yaml"
    Path("params.yaml").write_text(text)
    register()
    (tags,) = registry_now()["versions"]
    assert "dirty" not in tags
    assert tags["bundle"] == hangar.bundle()


@pytest.mark.usefixtures("hangar")
def test_what_dvc_lock_does_not_record_is_dirty_and_cannot_be_registered_at_all() -> None:
    Path("reports/metrics.json").unlink()
    Path("reports/metrics.json").write_text("{}")
    with pytest.raises(Refused, match="but reports differ"):
        register()
    with pytest.raises(InputError, match="expected a whole run of the pipeline to register, but the files of evaluate"):
        register(dirty=True)


def test_a_tree_without_a_bundle_is_an_error(hangar: Hangar) -> None:
    (hangar.path / "bundle/contract.json").unlink()
    with pytest.raises(InputError, match="expected a bundle in bundle/, found none; run `dvc pull`"):
        register(dirty=True)


@pytest.mark.usefixtures("hangar")
def test_a_version_tells_the_verdict_of_its_own_inspection_alone() -> None:
    subprocess.run([sys.executable, "-m", "flows.inspect"], check=True)
    register()
    assert registry_now()["versions"][0]["airworthy"] == "true"
    told = json.loads(Path("inspection/gates.json").read_text())
    Path("inspection/gates.json").write_text(json.dumps({**told, "dvc.lock": "another"}))
    register()
    assert registry_now()["versions"][0]["airworthy"] == "not inspected"
