import re
from pathlib import Path

import pytest

from flows.ledger import Refused
from flows.recorded import recorded
from pipeline.errors import InputError
from tests.flows.hangar import Hangar, hangar, hangars

__all__ = ["hangar", "hangars"]  # fixtures
DVC = r"\n  \.venv/bin/python -m dvc "


def commit(hangar: Hangar) -> None:
    hangar.git("add", "--all")
    hangar.git("commit", "--quiet", "--message", "changed")


def test_a_commit_that_changes_no_stage_runs_none_and_needs_no_data(
    hangar: Hangar, capsys: pytest.CaptureFixture[str]
) -> None:
    Path("README.md").write_text("about")
    commit(hangar)
    before = {path: path.stat().st_mtime_ns for path in Path(".dvc/cache").rglob("*")}
    recorded()
    assert "dvc.lock is what this commit makes, and DVC's remote holds it" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path(".dvc/cache").rglob("*")} == before
    assert hangar.git("status", "--porcelain") == ""


@pytest.mark.parametrize(
    ("file", "old", "new", "said"),
    [
        ("params.yaml", "missed: 3", "missed: 5", "train.costs.missed"),
        ("dvc.yaml", "python -m flows.train", "python -m flows.train --fast", "the command of train"),
        ("data.dvc", r"md5: \w+", f"md5: {'0' * 32}", "what preprocess reads"),
    ],
)
def test_a_change_that_was_not_run_is_refused_with_the_commands_that_mend_it(
    hangar: Hangar, file: str, old: str, new: str, said: str
) -> None:
    Path(file).write_text(re.sub(old, new, Path(file).read_text(), count=1))
    commit(hangar)
    mend = rf"{DVC}repro{DVC}push\n  git add dvc\.lock \.dvc/store\n  git commit$"
    with pytest.raises(Refused, match=rf"dvc\.lock was made before {said}[\w ,.]* changed.*run{mend}"):
        recorded()
    assert hangar.git("status", "--porcelain") == ""


def test_a_result_that_only_this_machine_has_is_refused_with_the_commands_that_mend_it(hangar: Hangar) -> None:
    hangar.git("rm", "--quiet", "-r", ".dvc/store/files")
    hangar.git("commit", "--quiet", "--message", "forgotten")
    with pytest.raises(Refused, match=rf"DVC's remote lacks bundle, .*run{DVC}push\n  git add dvc\.lock \.dvc/store"):
        recorded()


def test_a_pipeline_that_dvc_cannot_read_is_an_error(hangar: Hangar) -> None:
    Path("dvc.yaml").write_text("stages: 7")
    commit(hangar)
    with pytest.raises(InputError, match="expected DVC to say what would run, got: "):
        recorded()
