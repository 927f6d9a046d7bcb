import shutil
import sqlite3
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows import ledger, registry
from flows.promote import promote
from flows.register import register
from flows.registry import follow
from flows.rollback import rollback
from pipeline.errors import InputError
from tests.flows.hangar import MLFLOW_WARNS, Hangar, flown, hangar, hangars, registry_now
from tests.flows.test_tracking import client, free_port, hasty_sqlite, snapshot

pytestmark = MLFLOW_WARNS
__all__ = ["flown", "hangar", "hangars", "hasty_sqlite"]  # fixtures


def test_registry_is_made_from_the_tags_on_an_empty_database(
    hangar: Hangar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flown = {"one": hangar.bundle()}
    promote("ada", "the first")
    flown["two"] = hangar.take("two")
    with monkeypatch.context() as patch:
        patch.setenv("GROUNDED", "floor")
        promote("ada", "a storm", emergency=True)
    rollback("grace", "it is over")
    before = registry_now()
    assert before["aliases"] == {"champion": flown["one"], "previous": flown["two"]}
    assert [tags["bundle"] for tags in before["versions"]] == [flown["one"], flown["two"]]
    assert "EMERGENCY" in before["versions"][1]["emergency"]
    assert before["versions"][0]["git.commit"] == hangar.git("rev-parse", "one")
    shutil.rmtree(".dvc/cache")
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("DVC_ROOT", str(home))
    uri = f"sqlite:///{home}/mlflow.db"
    registry.registry()
    assert registry_now(uri) == before
    made = snapshot(uri)
    registry.registry()
    assert (registry_now(uri), snapshot(uri)) == (before, made)
    loaded = client(uri).get_model_version_by_alias("toy", "champion")
    (model,) = Path(loaded.source.removeprefix("file://")).rglob("model.json")
    assert model.read_text() == "2.0"


def test_aliases_that_a_hand_has_moved_follow_the_ledger_again(flown: dict[str, str]) -> None:
    registry.registry()
    client().set_registered_model_alias("toy", "champion", "2")
    client().delete_registered_model_alias("toy", "previous")
    follow(ledger.entries())
    assert registry_now()["aliases"] == {"champion": flown["one"], "previous": flown["two"]}


@pytest.mark.usefixtures("hangar")
def test_where_nothing_has_flown_nothing_is_champion() -> None:
    register()
    client().set_registered_model_alias("toy", "champion", "1")
    registry.registry()
    assert list(registry_now()["aliases"]) == ["challenger"]


@pytest.mark.usefixtures("flown")
def test_a_bundle_that_nobody_has_is_named() -> None:
    shutil.rmtree(".dvc/cache")
    Path(".dvc/config.local").write_text("[core]\n    remote = gone\n['remote \"gone\"']\n    url = /nowhere\n")
    with pytest.raises(
        InputError, match=r"model/v\d: expected the bundle .* in DVC's remote or cache, got bundle none:"
    ):
        registry.registry()


def test_an_old_bundle_that_nobody_has_keeps_no_alias_from_following(
    hangar: Hangar, flown: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    told = {"bundle": "0" * 64, "by": "ada", "because": "lost since", "waived": ["size"]}
    entries = dict(list(ledger.entries().items())[:1])
    at, commit = datetime(2013, 11, 1, tzinfo=UTC), hangar.git("rev-parse", "one")
    hangar.git("tag", "--delete", "model/v2")
    ledger.enter(told, commit=commit, subject="x", at=at, flown=entries)
    three = hangar.take("three")
    told = {"bundle": three, "by": "ada", "because": "better", "waived": ["size"], "grounds": [], "verdicts": []}
    ledger.enter(told, commit=hangar.git("rev-parse", "three"), subject="x", at=at, flown=ledger.entries())
    assert registry.registry() == 1
    said = capsys.readouterr().out
    assert "LOST: model/v2: expected the bundle 000000000000" in said
    assert "the registry has 2 of the 3 bundles that have flown; champion: model/v4" in said
    assert registry_now()["aliases"] == {"champion": three, "previous": flown["one"]}
    assert [(tags["airworthy"], tags.get("waived")) for tags in registry_now()["versions"]] == [
        ("not recorded", None), ("true", "size"),
    ]  # fmt: skip


@pytest.mark.usefixtures("hangar")
def test_a_locked_database_is_an_error_that_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_PATIENCE_S", 0.1)
    register()
    before = registry_now()
    with closing(sqlite3.connect("mlflow.db")) as connection:
        connection.execute("BEGIN EXCLUSIVE")
        for command in (register, lambda: promote("ada", "now")):
            with pytest.raises(InputError, match=r"mlflow.db gave: database is locked; see that no other program"):
                command()
    assert registry_now() == before
    assert ledger.champion() is None


@pytest.mark.usefixtures("flown")
def test_a_server_that_is_down_is_an_error_before_anything_changes(
    hangar: Hangar, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = hangar.tags()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://me:secret@127.0.0.1:{free_port()}")
    hangar.take("three")
    for command in (register, lambda: promote("ada", "now"), lambda: rollback("ada", "now"), registry.registry):
        with pytest.raises(InputError, match="expected an MLflow server at") as raised:
            command()
        assert "secret" not in str(raised.value)
    assert hangar.tags() == before


@pytest.mark.usefixtures("hangar")
def test_what_mlflow_says_is_told_without_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "oracle://me:secret@example.org/db")
    with pytest.raises(InputError, match="expected MLflow's registry to answer, oracle://") as raised:
        registry.registry()
    assert "secret" not in str(raised.value)


def test_two_machines_that_register_at_once_leave_one_version(hangar: Hangar, monkeypatch: pytest.MonkeyPatch) -> None:
    from mlflow import MlflowClient

    register()
    create = MlflowClient.create_model_version

    def late(self: Any, *args: Any, **kwargs: Any) -> Any:
        create(self, *args, **kwargs)  # the other machine's
        return create(self, *args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_model_version", late)
    bundle = hangar.take("two")
    register()
    assert [tags["bundle"] for tags in registry_now()["versions"]].count(bundle) == 1


def test_a_model_in_mlflow_that_is_not_the_bundle_is_refused(hangar: Hangar) -> None:
    register()
    Path("bundle/model.json").unlink()
    Path("bundle/model.json").write_text("9.0")
    hangar.dvc("commit -q -f")
    with pytest.raises(InputError, match=r"expected .* to be bundle .* the same code and data gave another one before"):
        register(dirty=True)
    assert len(registry_now()["versions"]) == 1


def test_an_error_that_is_not_mlflows_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError), registry._readable():
        1 / 0  # noqa: B018 - any error will do


@pytest.mark.usefixtures("hangar")
def test_an_entry_of_a_bundle_that_its_commit_does_not_record_is_named() -> None:
    told = {"bundle": "0" * 64, "by": "ada", "because": "a mistake"}
    ledger.enter(told, commit=ledger.git("rev-parse", "HEAD"), subject="x", at=datetime.now(UTC), flown={})
    with pytest.raises(
        InputError, match="expected the bundle 000000000000 and its reports in DVC's remote or cache, got bundle"
    ):
        registry.registry()
