import json
import subprocess
from pathlib import Path

import pytest

from flows import ledger
from flows.reproduce import reproduce
from pipeline.canonical import files_hash, folder_files
from pipeline.errors import InputError

MAKE = "mkdir bundle && cat data/raw > bundle/model && {} > bundle/lineage.json"


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)


def train(how: str) -> None:
    """Let a stage make the bundle so, and enter it in the ledger."""
    stage = {"cmd": MAKE.format(how), "deps": ["data"], "outs": ["bundle"]}
    Path("dvc.yaml").write_text(json.dumps({"stages": {"train": stage}}))
    run("dvc", "repro", "--quiet")
    run("dvc", "push", "--quiet")
    run("git", "add", "--all")
    run("git", "commit", "--quiet", "--message", "a model")
    number = len(ledger.entries()) + 1
    told = json.dumps({"bundle": files_hash(folder_files(Path("bundle")))})
    run("git", "tag", "--annotate", f"model/v{number}", "--message", told)


@pytest.fixture
def repository(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A git repository whose one stage copies data."""
    path = tmp_path / "repository"
    path.mkdir()
    monkeypatch.chdir(path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    run("git", "init", "--quiet")
    run("git", "config", "user.email", "tests@example.org")
    run("git", "config", "user.name", "Tests")
    (path / ".dvc/store").mkdir(parents=True)
    (path / ".dvc/config").write_text("[core]\nremote = store\nanalytics = false\n['remote \"store\"']\nurl = store\n")
    (path / ".gitignore").write_text("/bundle\n/data\n/.dvc/cache\n/.dvc/tmp\n")
    (path / "requirements.lock").write_text("numpy==2\n")
    (path / "data").mkdir()
    (path / "data/raw").write_text("1,2,3")
    run("dvc", "add", "--quiet", "data")
    train("""echo '{{"platform": "here"}}'""".replace("{{", "{").replace("}}", "}"))
    return path


@pytest.mark.usefixtures("repository")
def test_an_entry_is_made_again_from_its_commit_and_agrees(capsys: pytest.CaptureFixture[str]) -> None:
    Path("data/raw").unlink()
    Path("data/raw").write_text("changed since")
    Path("dvc.yaml").write_text("stages: {}")
    assert reproduce("v1") == 0
    assert capsys.readouterr().out.splitlines()[-3:] == [
        "agrees   bundle", "agrees   the bundle, by the ledger", "model/v1: reproduced",
    ]  # fmt: skip
    assert Path("data/raw").read_text() == "changed since"


@pytest.mark.usefixtures("repository")
def test_what_comes_out_otherwise_is_told(capsys: pytest.CaptureFixture[str]) -> None:
    train("""date +'{"platform": "%N"}'""")
    Path("requirements.lock").write_text("numpy==3\n")
    assert reproduce("v2") == 1
    said = capsys.readouterr().out
    assert "model/v2 was made with other packages than those installed" in said
    assert "DIFFERS  bundle\nDIFFERS  the bundle, by the ledger\nmodel/v2: not reproduced on " in said


@pytest.mark.usefixtures("repository")
def test_what_cannot_be_made_again_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"expected an entry of the ledger \(model/v1\), got v7"):
        reproduce("v7")
    run("rm", "-rf", ".dvc/cache")
    (Path(".dvc") / "config.local").write_text(f"['remote \"store\"']\nurl = {tmp_path}/nowhere\n")
    with pytest.raises(InputError, match=r"expected `dvc pull --quiet data.dvc` to succeed in the clone"):
        reproduce("v1")
