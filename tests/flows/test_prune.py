import shutil
from pathlib import Path

import pytest

from flows import ledger
from flows.prune import STORE, prune
from pipeline.errors import InputError
from tests.flows.hangar import Hangar, flown, hangar, hangars

__all__ = ["flown", "hangar", "hangars"]  # fixtures
PULLED = "pull -q -f data tuning bundle reports prepared/quality.json"


def stored(hangar: Hangar) -> set[str]:
    return set(hangar.git("ls-files", STORE).split())


@pytest.fixture
def abandoned(hangar: Hangar, flown: dict[str, str]) -> set[str]:
    """Three was on main, which went back to two: the files that only three names."""
    assert flown
    before = hangar.git("ls-tree", "-r", "--name-only", "two", STORE).split()
    hangar.git("checkout", "--quiet", "-b", "main", "three")
    hangar.git("checkout", "--quiet", "two", "--", "dvc.lock", "params.yaml")
    hangar.git("commit", "--quiet", "--all", "--message", "back to two")
    hangar.with_origin()
    hangar.git("push", "--quiet", "--tags", "origin")
    only = stored(hangar) - set(before)
    assert only
    return only


def test_main_and_every_entry_can_be_pulled_and_what_was_abandoned_is_gone(
    hangar: Hangar, flown: dict[str, str], abandoned: set[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (hangar.path / ".dvc/config.local").write_text(f"['remote \"store\"']\nurl = {tmp_path / 'elsewhere'}\n")
    cached = {path for path in Path(".dvc/cache").rglob("*") if path.is_file()}
    prune()
    assert f"{len(abandoned)} of {len(stored(hangar))} files in {STORE} (" in capsys.readouterr().out
    assert hangar.git("status", "--porcelain") == ""
    prune(drop=True)
    assert set(hangar.git("diff", "--name-only").split()) == abandoned
    assert {path for path in Path(".dvc/cache").rglob("*") if path.is_file()} == cached
    hangar.git("commit", "--quiet", "--all", "--message", "pruned")
    hangar.git("push", "--quiet", "origin", "main")

    fresh = Hangar(tmp_path / "fresh", hangar.pulled)
    hangar.git("clone", "--quiet", "--branch", "main", str(tmp_path / "origin.git"), str(fresh.path))
    expected = {"main": flown["two"], **{entry.tag: entry.bundle for entry in ledger.entries()}}
    for revision, bundle in expected.items():  # each from the remote of main
        fresh.git("checkout", "--quiet", revision, "--", "dvc.lock", "dvc.yaml", "data.dvc")
        shutil.rmtree(fresh.path / ".dvc/cache", ignore_errors=True)
        fresh.dvc(PULLED)
        assert fresh.bundle() == bundle
    prune()
    assert f"0 of {len(stored(hangar))} files" in capsys.readouterr().out


def test_a_new_model_that_is_only_pushed_stays(hangar: Hangar, abandoned: set[str]) -> None:
    prune(drop=True)
    hangar.git("commit", "--quiet", "--all", "--message", "pruned")
    hangar.git("checkout", "--quiet", "three", "--", "dvc.lock", "params.yaml")
    hangar.dvc("push -q")
    assert {name for name in abandoned if Path(name).exists()} == abandoned
    prune(drop=True)
    assert {name for name in abandoned if Path(name).exists()} == abandoned


def test_without_the_whole_ledger_nothing_is_removed(hangar: Hangar, abandoned: set[str]) -> None:
    hangar.git("tag", "--delete", "model/v3")
    hangar.git("config", "remote.origin.tagOpt", "--no-tags")
    with pytest.raises(InputError, match="expected the ledger's tags"):
        prune(drop=True)
    hangar.git("config", "--unset", "remote.origin.tagOpt")
    damaged = next(name for name in sorted(stored(hangar) - abandoned) if name.endswith(".dir"))
    hangar.git("rm", "--quiet", damaged)
    hangar.git("commit", "--quiet", "--message", "damaged")
    with pytest.raises(InputError, match=r"expected DVC to tell what is in use, got: .*without cache for directory"):
        prune(drop=True)
    assert {name for name in stored(hangar) if not Path(name).exists()} == set()


def test_a_remote_elsewhere_is_not_touched(hangar: Hangar) -> None:
    hangar.git("rm", "-r", "--quiet", STORE)
    with pytest.raises(InputError, match=r"expected a remote in .dvc/store, nothing is committed there"):
        prune(drop=True)
