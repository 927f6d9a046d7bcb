import json
from contextlib import chdir, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from flows import ledger, promote, registry
from flows.ledger import Refused, decided
from flows.promote import promote as fly
from flows.register import register
from flows.rollback import rollback
from pipeline.errors import InputError
from tests.flows.hangar import MLFLOW_WARNS, Hangar, flown, hangar, hangars, killed_before, other, registry_now
from tests.flows.test_tracking import Killed, client, hasty_sqlite

pytestmark = MLFLOW_WARNS
__all__ = ["flown", "hangar", "hangars", "hasty_sqlite", "other"]  # fixtures


def newest() -> tuple[ledger.Entry, dict[str, Any]]:
    flown = ledger.entries()
    entry = list(flown)[-1]
    return entry, dict(flown[entry])


def test_a_promotion_is_a_tag_on_the_commit_and_the_aliases_that_follow(hangar: Hangar) -> None:
    origin = hangar.with_origin()
    one = hangar.bundle()
    fly("ada", "the first")
    two = hangar.take("two")
    fly("@Grace", "better in fog", image="sha256:2")
    assert origin.tags() == hangar.tags() == ["model/v1", "model/v2"]
    assert hangar.git("rev-parse", "model/v2^{commit}") == hangar.git("rev-parse", "two")
    entry, told = newest()
    assert entry == ledger.Entry("model/v2", two)
    known = {key: told[key] for key in ("action", "by", "because", "previous", "restores", "grounds", "image")}
    assert known == {
        **{"action": "promote", "by": "Grace", "because": "better in fog"},
        **{"previous": "model/v1", "restores": None, "grounds": [], "image": "sha256:2"},
    }
    assert told["verdicts"] == json.loads(Path("inspection/gates.json").read_text())["gates"]
    assert told["metrics"]["roc_auc"] == {"value": 0.7, "low": 0.6, "high": 0.8}
    assert told["at"].endswith("+00:00")
    assert hangar.git("log", "-1", "--format=%s", "model/v2") == "model two"
    message = hangar.git("for-each-ref", "--format=%(contents)", "refs/tags/model/v2")
    assert message.startswith(f"Promoted {two[:12]}\n\nGrace: better in fog\n\n{{")
    assert registry_now()["aliases"] == {"champion": two, "previous": one}
    hangar.git("fsck", "--strict")


def test_what_flies_already_is_not_promoted_again(hangar: Hangar) -> None:
    fly("ada", "the first")
    with pytest.raises(Refused, match="expected another bundle than the champion's, but model/v1 is"):
        fly("ada", "again")
    assert hangar.tags() == ["model/v1"]


@pytest.mark.parametrize(
    "name", ["params.yaml", "dvc.lock", "src/pipeline/scoring.py", "flows/inspect.py", "flows/new.py"]
)
def test_what_is_not_committed_does_not_fly(hangar: Hangar, name: str) -> None:
    with Path(name).open("a") as file:
        file.write("# changed\n")
    with pytest.raises(Refused, match=rf"expected a working tree as it is committed, but .*{name}"):
        promote.check_ready({}, "HEAD", hangar.bundle())


def test_what_the_remote_lacks_does_not_fly(hangar: Hangar) -> None:
    hangar.git("rm", "--quiet", "-r", ".dvc/store/files")
    hangar.git("commit", "--quiet", "--message", "forgotten")
    with pytest.raises(
        Refused, match=r"expected all that dvc.lock records in DVC's remote, which lacks bundle, .*dvc push"
    ):
        promote.check_ready({}, "HEAD", hangar.bundle())


def test_a_remote_that_does_not_answer_is_an_error(hangar: Hangar) -> None:
    Path(".dvc/config.local").write_text("['remote \"store\"']\nurl = oracle://nowhere\n")
    with pytest.raises(InputError, match="expected DVC's remote to answer, got: "):
        promote.check_ready({}, "HEAD", hangar.bundle())


@pytest.mark.parametrize(
    ("failed", "emergency", "said"),
    [
        ("floor", False, r"grounded \(floor: floor was measured\); correct it"),
        ("floor hashes", True, "even in an emergency: these gates say what the model is"),
        ("recorded", True, "even in an emergency"),
        ("hashes", False, "correct it"),
    ],
)
def test_a_grounded_model_does_not_fly(
    hangar: Hangar, monkeypatch: pytest.MonkeyPatch, failed: str, emergency: bool, said: str
) -> None:
    monkeypatch.setenv("GROUNDED", failed)
    with pytest.raises(Refused, match=f"expected an airworthy model, this one is grounded .*{said}|.*{said}"):
        promote.grounding(promote.inspected({}, hangar.bundle()), emergency=emergency)


def test_a_verdict_without_a_failed_gate_helps_no_emergency() -> None:
    with pytest.raises(Refused, match="grounded"):
        promote.grounding({"airworthy": False, "gates": []}, emergency=True)


def test_an_emergency_flies_and_is_told_wherever_the_model_is(
    hangar: Hangar, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("GROUNDED", "floor")
    fly("ada", "a storm", emergency=True)
    assert "model/v1: EMERGENCY, grounded by floor" in capsys.readouterr().out
    assert newest()[1]["action"] == "emergency"
    assert hangar.git("for-each-ref", "--format=%(subject)", "refs/tags").startswith("EMERGENCY: ")
    assert registry_now()["versions"][0] | {"bundle": "", "git.commit": ""} == {
        **{"bundle": "", "git.commit": "", "airworthy": "false"},
        "emergency": "EMERGENCY: flown although grounded by floor",
    }


def test_where_nobody_has_the_only_champion_any_more_another_can_fly_in_an_emergency(
    hangar: Hangar, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one, at = hangar.bundle(), datetime(2013, 11, 1, tzinfo=UTC)
    told = {"bundle": one, "by": "ada", "because": "the first"}
    ledger.enter(told, commit=ledger.git("rev-parse", "HEAD"), subject="Flown", at=at, flown={})
    two = hangar.take("two")
    hangar.lose("one", tmp_path / "store")
    register()
    assert registry_now()["aliases"] == {"challenger": two}
    monkeypatch.setenv("GROUNDED", "champion")  # which cannot be read
    with pytest.raises(Refused, match="this one is grounded"):
        fly("ada", "a storm")
    fly("ada", "a storm", emergency=True)
    assert f"LOST: model/v1: expected the bundle {one[:12]}" in capsys.readouterr().out
    assert registry_now()["aliases"] == {"champion": two}
    assert hangar.tags() == ["model/v1", "model/v2"]


@pytest.mark.usefixtures("hangar")
def test_an_airworthy_model_is_no_emergency(capsys: pytest.CaptureFixture[str]) -> None:
    fly("ada", "in a hurry", emergency=True)
    assert newest()[1]["action"] == "promote"
    assert "EMERGENCY" not in capsys.readouterr().out


def test_an_inspection_that_could_not_be_made_is_an_error(hangar: Hangar, monkeypatch: pytest.MonkeyPatch) -> None:
    Path("inspection").mkdir()
    told = {"airworthy": True, "gates": [], "bundle": hangar.bundle(), "champion": {}}
    Path("inspection/gates.json").write_text(json.dumps(told))  # of an earlier one
    monkeypatch.setenv("GROUNDED", "broken")
    with pytest.raises(InputError, match="expected an inspection, it could not be made"):
        promote.inspected({}, hangar.bundle())


def test_an_inspection_of_other_files_or_against_another_champion_does_not_count(hangar: Hangar) -> None:
    with pytest.raises(InputError, match="the files or the ledger changed meanwhile"):
        promote.inspected({}, "0" * 64)
    with pytest.raises(InputError, match="the files or the ledger changed meanwhile"):
        promote.inspected({ledger.Entry("model/v1", "0" * 64): {}}, hangar.bundle())


def test_git_must_know_who_is_at_work(hangar: Hangar, monkeypatch: pytest.MonkeyPatch) -> None:
    hangar.git("config", "--unset", "user.name")
    hangar.git("config", "--unset", "user.email")
    monkeypatch.setenv("GIT_CONFIG_GLOBAL", "/dev/null")
    monkeypatch.setenv("GIT_CONFIG_SYSTEM", "/dev/null")
    for name in ("GIT_COMMITTER_NAME", "GIT_COMMITTER_EMAIL", "EMAIL"):
        monkeypatch.delenv(name, raising=False)
    with pytest.raises(InputError, match=r"git config --global user\.email"):
        fly("ada", "the first")
    assert hangar.tags() == []


def reject(origin: Hangar) -> None:
    hook = origin.path / "hooks/pre-receive"
    hook.write_text("#!/bin/sh\necho 'tags are protected here' >&2\nexit 1\n")
    hook.chmod(0o755)


def test_a_push_that_is_rejected_changes_nothing(hangar: Hangar) -> None:
    origin = hangar.with_origin()
    fly("ada", "the first")
    before = registry_now()["aliases"]
    hangar.take("two")
    reject(origin)
    with pytest.raises(
        Refused, match=r"expected model/v2 to become the ledger's next entry, .* tags are protected here"
    ):
        fly("ada", "the second")
    assert hangar.tags() == origin.tags() == ["model/v1"]
    registry.registry()
    assert registry_now()["aliases"] == before


def test_of_two_promotions_at_once_one_wins_and_the_other_is_refused(
    hangar: Hangar, other: Hangar, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    inspected = promote.inspected

    def meanwhile(*arguments: Any) -> dict[str, Any]:
        verdict = inspected(*arguments)
        monkeypatch.setattr(promote, "inspected", inspected)
        with chdir(other.path), monkeypatch.context() as patch:
            patch.setenv("DVC_ROOT", str(other.path))
            fly("grace", "I was faster")
        return verdict

    hangar.take("two")
    monkeypatch.setattr(promote, "inspected", meanwhile)
    assert decided(fly)("ada", "mine is better") == 1
    assert "expected model/v1 to become the ledger's next entry" in capsys.readouterr().err
    assert hangar.tags() == []
    with pytest.raises(InputError, match="they differ in model/v1; run `git fetch --tags --force`"):
        registry.registry()
    fly("ada", "against theirs")  # which takes it in first
    assert [told["because"] for told in ledger.entries().values()] == ["I was faster", "against theirs"]
    assert registry_now()["aliases"] == {"champion": hangar.bundle(), "previous": other.bundle()}


def test_without_an_origin_git_lets_one_entry_of_a_name_in(flown: dict[str, str]) -> None:
    entries = ledger.entries()
    told = {"bundle": flown["two"], "by": "ada", "because": "x"}
    late = {entry: entries[entry] for entry in list(entries)[:2]}
    for_both: dict[str, Any] = {"commit": ledger.git("rev-parse", "HEAD"), "subject": "x", "flown": late}
    with pytest.raises(Refused, match=r"expected model/v3 to become .* reference already exists"):
        ledger.enter(told, at=datetime(2013, 12, 1, tzinfo=UTC), **for_both)
    assert ledger.entries() == entries


def aliased() -> str:
    """The bundle of the one champion that the registry knows."""
    return str(registry_now()["aliases"]["champion"])


@pytest.mark.parametrize("has_origin", [True, False], ids=["with an origin", "without"])
def test_killed_at_any_step_leaves_the_old_or_the_new_champion_and_the_next_command_completes_it(
    hangar: Hangar, monkeypatch: pytest.MonkeyPatch, has_origin: bool
) -> None:
    origin = hangar.with_origin() if has_origin else hangar
    monkeypatch.setattr(promote, "check_ready", lambda *_: None)  # they change nothing, and take their time
    names = {hangar.bundle(): "one"}
    fly("ada", "the first")
    names[hangar.take("two")] = "two"
    verdict = promote.inspected(ledger.entries(), hangar.bundle())
    monkeypatch.setattr(promote, "inspected", lambda *_: verdict)
    write, seen = 0, set()
    while True:
        write += 1
        with monkeypatch.context() as patch:
            count = killed_before(write, patch)
            with suppress(Killed):
                fly("ada", f"killed before {write}")
            ended = count() < write
        stands = list(_entries(origin))[-1].bundle
        seen.add((names[stands], names[aliased()]))
        with suppress(Refused):  # it stands already
            fly("ada", "once more") if names[stands] == "one" else registry_caught_up()
        assert names[aliased()] == names[list(ledger.entries())[-1].bundle] == "two"
        assert registry_now()["aliases"].keys() == {"champion", "previous"}
        if ended:
            break
        rollback("ada", "for the next")
        assert names[aliased()] == "one"
    assert write == 6
    assert seen == {("one", "one"), ("two", "one"), ("two", "two")}


def _entries(where: Hangar) -> ledger.Flown:
    with chdir(where.path):
        return ledger._read()


def registry_caught_up() -> None:
    ledger.entries(fetch=True)
    registry.registry()


@pytest.mark.usefixtures("hangar")
def test_a_registry_that_fails_after_the_entry_stands_is_said_and_caught_up(monkeypatch: pytest.MonkeyPatch) -> None:
    follow, told = registry.follow, []

    def failing(flown: ledger.Flown, wanted: list[str] | None = None) -> None:
        told.append(flown)
        if len(told) == 2:
            raise InputError("expected MLflow's registry to answer")
        follow(flown, wanted)

    monkeypatch.setattr(registry, "follow", failing)
    with pytest.raises(InputError, match="model/v1 stands, but the registry does not follow yet: expected MLflow"):
        fly("ada", "the first")
    registry.registry()
    assert client().get_model_version_by_alias("toy", "champion").version


def test_a_promotion_that_is_run_again_is_content_with_what_it_did(
    hangar: Hangar, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        fly("ada", "the first", once=True)
    assert "model/v1: bundle" in (said := capsys.readouterr().out)
    assert "is the champion already" in said
    assert hangar.tags() == ["model/v1"]
    with pytest.raises(Refused, match="expected an approver"):
        fly(None, "again", once=True)


def test_a_run_whose_model_was_taken_back_does_not_let_it_fly_once_more(
    hangar: Hangar, monkeypatch: pytest.MonkeyPatch
) -> None:
    fly("ada", "the first")
    hangar.take("two")
    with monkeypatch.context() as run:
        run.setenv("GITHUB_RUN_ID", "7")
        fly("ada", "better in fog", once=True)
    rollback("ada", "complaints")
    assert [told["run"] for told in ledger.entries().values()] == [None, "7", None]
    with monkeypatch.context() as run:
        run.setenv("GITHUB_RUN_ID", "7")
        with pytest.raises(Refused, match=r"7 made model/v2, and model/v3 flies since; .* start another run"):
            fly("ada", "better in fog", once=True)
        assert len(hangar.tags()) == 3
        run.setenv("GITHUB_RUN_ID", "8")
        fly("ada", "it was the sensors", once=True)
    assert len(hangar.tags()) == 4
