import shutil
from contextlib import suppress
from datetime import UTC, datetime
from pathlib import Path

import pytest

from flows import ledger, registry
from flows.ledger import Refused
from flows.rollback import restored, rollback
from pipeline.canonical import files_hash, folder_files
from pipeline.errors import InputError
from tests.flows.hangar import MLFLOW_WARNS, MODELS, Hangar, flown, hangar, hangars, registry_now
from tests.flows.test_tracking import hasty_sqlite

pytestmark = MLFLOW_WARNS
__all__ = ["flown", "hangar", "hangars", "hasty_sqlite"]  # fixtures


def flying() -> tuple[ledger.Entry, dict[str, bytes]]:
    """The champion, and the files of its bundle."""
    entry = ledger.champion()
    assert entry is not None
    with ledger.bundle_of(entry) as (folder, _):
        return entry, folder_files(folder)


def test_a_rollback_lets_the_earlier_bundle_fly_byte_for_byte(hangar: Hangar, flown: dict[str, str]) -> None:
    hangar.take("two")
    files = folder_files(Path("bundle"))
    shutil.rmtree("bundle")
    shutil.rmtree(".dvc/cache")
    rollback("ada", "too many alarms")  # v3 is one, before it flew two
    assert flying() == (ledger.Entry("model/v4", flown["two"]), files)
    assert registry_now()["aliases"] == {"champion": flown["two"], "previous": flown["one"]}
    assert hangar.git("rev-parse", "model/v4^{commit}") == hangar.git("rev-parse", "model/v2^{commit}")
    told = list(ledger.entries().values())[-1]
    known = {key: told[key] for key in ("action", "by", "because", "previous", "restores", "grounds")}
    assert known == {
        **{"action": "rollback", "by": "ada", "because": "too many alarms"},
        **{"previous": "model/v3", "restores": "model/v2", "grounds": ["floor"]},
    }
    assert hangar.git("for-each-ref", "--format=%(subject)", "refs/tags/model/v4").startswith("EMERGENCY, grounded: R")


@pytest.mark.usefixtures("hangar")
def test_a_rollback_of_a_rollback_flies_what_it_took_back(
    flown: dict[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    rollback("ada", "back")
    rollback("ada", "and forth")
    rollback("ada", "and back")
    bundles = [entry.bundle for entry in ledger.entries()][2:]
    assert bundles == [flown["one"], flown["two"], flown["one"], flown["two"]]
    assert [told.get("restores") for told in ledger.entries().values()][3:] == ["model/v2", "model/v1", "model/v2"]
    assert "model/v6: EMERGENCY, grounded: rolled back to model/v2" in capsys.readouterr().out


@pytest.mark.usefixtures("hangar")
@pytest.mark.parametrize("to", ["v2", "2", "model/v2"])
def test_any_earlier_entry_can_fly_again(flown: dict[str, str], to: str) -> None:
    entries = ledger.entries()
    assert restored(entries, to) == ledger.Entry("model/v2", flown["two"])


@pytest.mark.usefixtures("flown")
@pytest.mark.parametrize(
    ("to", "said"),
    [
        ("v1", "but model/v3 flies that of model/v1 already"),
        ("v9", r"\(model/v1, model/v2, model/v3 has flown\), found no"),
    ],
)
def test_what_flies_or_never_flew_is_refused(to: str, said: str) -> None:
    with pytest.raises(Refused, match=said):
        restored(ledger.entries(), to)


@pytest.mark.usefixtures("hangar")
def test_before_the_second_flight_there_is_nothing_to_go_back_to() -> None:
    with pytest.raises(Refused, match=r"expected an earlier entry to go back to \(nothing has flown\)"):
        rollback("ada", "back")


@pytest.mark.usefixtures("flown")
def test_a_rollback_asks_for_an_approver_and_a_reason(hangar: Hangar) -> None:
    for by, because in (("mallory", "back"), ("ada", "")):
        with suppress(Refused):
            rollback(by, because)
    assert len(hangar.tags()) == 3


@pytest.mark.usefixtures("flown")
def test_a_bundle_that_is_gone_does_not_fly(hangar: Hangar, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "follow", lambda _: None)  # it would miss it first
    shutil.rmtree(".dvc/cache")
    shutil.rmtree(".dvc/store")
    with pytest.raises(InputError, match="model/v2: expected its bundle in DVC's remote or cache, found none"):
        rollback("ada", "back")
    assert len(hangar.tags()) == 3


@pytest.mark.parametrize(
    ("lost", "code", "to", "aliases"),
    [
        ("one", 1, "v2", {"champion": "two", "previous": "three"}),
        ("two", 1, "v1", {"champion": "one", "previous": "three"}),
        ("three", 2, "v2", {"champion": "two"}),
    ],
)
def test_a_lost_bundle_is_named_and_stops_no_rollback_to_another(
    hangar: Hangar,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    lost: str,
    code: int,
    to: str,
    aliases: dict[str, str],
) -> None:
    bundles = {model: files_hash(folder_files(hangar.pulled / model / "bundle")) for model in MODELS}
    for model in MODELS:
        told = {"bundle": bundles[model], "by": "ada", "because": "better", "image": f"sha256:{model}"}
        at, commit = datetime(2013, 11, 1, tzinfo=UTC), hangar.git("rev-parse", model)
        ledger.enter(told, commit=commit, subject="Flown", at=at, flown=ledger.entries())
    hangar.take("three")
    hangar.lose(lost, tmp_path / "store")
    if code == 1:
        assert registry.registry() == 1
    else:
        with pytest.raises(registry.Lost, match="model/v3: expected the bundle"):
            registry.registry()
    rollback("ada", "complaints", to=to)
    assert f"LOST: model/v{1 + MODELS.index(lost)}: expected the bundle {bundles[lost][:12]}" in capsys.readouterr().out
    assert registry_now()["aliases"] == {alias: bundles[model] for alias, model in aliases.items()}
    assert list(ledger.entries().values())[-1]["image"] == f"sha256:{aliases['champion']}"
    with pytest.raises(InputError, match="expected its bundle in DVC's remote or cache, found none"):
        rollback("ada", "and to what is lost", to=f"v{1 + MODELS.index(lost)}")
    assert len(hangar.tags()) == 4


@pytest.mark.usefixtures("flown")
def test_a_rollback_that_is_run_again_is_content_with_what_it_did(
    hangar: Hangar, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        rollback("ada", "too many alarms", to="v2", once=True)
    assert "model/v4: bundle" in (said := capsys.readouterr().out)
    assert "is the champion already" in said
    assert len(hangar.tags()) == 4
    with pytest.raises(Refused, match="found no v9"):
        rollback("ada", "too many alarms", to="v9", once=True)
