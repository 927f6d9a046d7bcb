import json
import shutil
import subprocess
from functools import partial
from pathlib import Path

import pytest

from flows.ledger import Entry, before, bundle_of, champion, entries
from pipeline.canonical import file_hash, files_hash, folder_files
from pipeline.errors import InputError

DVC_CONFIG = "[core]\nremote = store\nanalytics = false\n['remote \"store\"']\nurl = store\n"
FEATURES = "def features(columns):\n    return {'twice': 2 * columns['x']}\n"


def git(*arguments: str) -> None:
    subprocess.run(["git", *arguments], check=True, capture_output=True)


def dvc(*arguments: str) -> None:
    subprocess.run(["dvc", *arguments], check=True, capture_output=True)


def enter(tag: str, message: str) -> None:
    git("tag", "--annotate", tag, "--message", message)


@pytest.fixture(scope="module")
def original(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A git repository in which DVC keeps a bundle, as a stage's output."""
    path = tmp_path_factory.mktemp("original")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(path)
        patch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path_factory.mktemp("site")))
        git("init", "--quiet")
        git("config", "user.email", "tests@example.org")
        git("config", "user.name", "Tests")
        (path / ".dvc/store").mkdir(parents=True)
        (path / ".dvc/config").write_text(DVC_CONFIG)
        (path / "src/problem").mkdir(parents=True)
        (path / "src/problem/features.py").write_text(FEATURES)
        features_hash = file_hash(path / "src/problem/features.py")
        make = f"mkdir bundle && echo '{json.dumps({'features_hash': features_hash})}' > bundle/contract.json"
        (path / "dvc.yaml").write_text(json.dumps({"stages": {"train": {"cmd": make, "outs": ["bundle"]}}}))
        (path / ".gitignore").write_text("/bundle\n/.dvc/cache\n/.dvc/tmp\n")
        dvc("repro", "--quiet")
        dvc("push", "--quiet")
        git("add", "--all")
        git("commit", "--quiet", "--message", "a model")
    return path


@pytest.fixture
def repository(original: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of that repository."""
    path = tmp_path / "repository"
    shutil.copytree(original, path, symlinks=True, ignore=shutil.ignore_patterns("tmp"))
    monkeypatch.chdir(path)
    monkeypatch.setenv("DVC_SITE_CACHE_DIR", str(tmp_path / "site"))
    return path


def bundle_hash(repository: Path) -> str:
    return files_hash(folder_files(repository / "bundle"))


@pytest.mark.usefixtures("repository")
def test_without_tags_nothing_has_flown() -> None:
    git("tag", "--annotate", "v1.0", "--message", "another tag")
    assert champion() is None


@pytest.mark.usefixtures("repository")
def test_the_newest_entry_names_the_champion_and_ten_comes_after_nine() -> None:
    for number, bundle in (("9", "ab"), ("10", "cd")):
        enter(
            f"model/v{number}", f"Promoted by someone {{gladly}}\n\n{json.dumps({'bundle': bundle, 'by': 'someone'})}"
        )
    assert champion() == Entry("model/v10", "cd")


def test_tags_of_other_names_are_no_entries(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("clone", "--quiet", str(repository), str(tmp_path / "other"))
    for name in ("newest", "vfoo", "v2-rc", "v3/x", "v04", "v"):
        enter(f"model/{name}", json.dumps({"bundle": "no"}))
    assert champion() is None
    enter("model/v1", json.dumps({"bundle": "ab"}))
    enter("model/v2", json.dumps({"bundle": "cd"}))
    assert champion() == Entry("model/v2", "cd")
    assert list(entries()) == [Entry("model/v1", "ab"), Entry("model/v2", "cd")]
    monkeypatch.chdir(tmp_path / "other")
    git(
        "fetch",
        "--quiet",
        "--no-tags",
        "origin",
        "refs/tags/model/v1:refs/tags/model/v1",
        "refs/tags/model/v2:refs/tags/model/v2",
    )
    git("-c", "user.name=a", "-c", "user.email=b", "tag", "-a", "model/vfoo", "-m", "another")
    assert champion() == Entry("model/v2", "cd")
    assert list(entries(fetch=True)) == [Entry("model/v1", "ab"), Entry("model/v2", "cd")]


def test_what_flew_before_is_the_newest_other_bundle() -> None:
    one, two, again = Entry("model/v1", "ab"), Entry("model/v2", "cd"), Entry("model/v3", "cd")
    assert before({}) is before({one: {}}) is None
    assert before({one: {}, two: {}, again: {}}) == one


@pytest.mark.usefixtures("repository")
def test_a_signed_entry_is_read_without_its_signature(tmp_path: Path) -> None:
    key = str(tmp_path / "key")
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    signing = ("-c", "gpg.format=ssh", "-c", f"user.signingkey={key}")
    git(*signing, "tag", "--sign", "model/v1", "--message", f"Promoted\n\n{json.dumps({'bundle': 'ab'})}")
    signed = subprocess.run(["git", "cat-file", "tag", "model/v1"], check=True, capture_output=True, text=True)
    assert "BEGIN SSH SIGNATURE" in signed.stdout
    assert champion() == Entry("model/v1", "ab")


@pytest.mark.usefixtures("repository")
@pytest.mark.parametrize("message", ["promoted", '{"bundle"', '{"by": "someone"}', "[1]"])
def test_an_entry_that_names_no_bundle_is_an_error_and_no_first_flight(message: str) -> None:
    enter("model/v1", message)
    with pytest.raises(InputError, match="model/v1: expected a tag whose message ends in JSON"):
        champion()


def test_a_clone_without_history_cannot_tell(repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    git("commit", "--quiet", "--allow-empty", "--message", "more")
    git("clone", "--quiet", "--depth", "1", f"file://{repository}", str(tmp_path / "shallow"))
    monkeypatch.chdir(tmp_path / "shallow")
    with pytest.raises(InputError, match="git fetch --unshallow --tags"):
        champion()


def test_a_clone_that_fetches_no_tags_cannot_tell(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git("clone", "--quiet", "--no-tags", str(repository), str(tmp_path / "bare"))
    monkeypatch.chdir(tmp_path / "bare")
    with pytest.raises(InputError, match="fetches no tags"):
        champion()


def test_a_clone_that_lacks_entries_of_its_origin_cannot_tell(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git("clone", "--quiet", str(repository), str(tmp_path / "behind"))
    enter("model/v1", json.dumps({"bundle": "ab"}))
    monkeypatch.chdir(tmp_path / "behind")
    with pytest.raises(InputError, match="differ in model/v1; run `git fetch --tags --force`"):
        champion()
    git("fetch", "--quiet", "--tags")
    assert champion() == Entry("model/v1", "ab")


def test_a_clone_whose_entry_is_not_that_of_its_origin_cannot_tell(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git("clone", "--quiet", str(repository), str(tmp_path / "other"))
    enter("model/v1", json.dumps({"bundle": "ab"}))
    monkeypatch.chdir(tmp_path / "other")
    git("-c", "user.name=a", "-c", "user.email=b", "tag", "-a", "model/v1", "-m", json.dumps({"bundle": "cd"}))
    for read in (champion, partial(entries, fetch=True)):
        with pytest.raises(InputError, match="differ in model/v1; run `git fetch --tags --force`"):
            read()
    git("fetch", "--quiet", "--tags", "--force")
    assert champion() == Entry("model/v1", "ab")


def test_what_origin_alone_has_is_taken_in_where_that_is_wanted(
    repository: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    git("clone", "--quiet", str(repository), str(tmp_path / "behind"))
    enter("model/v1", json.dumps({"bundle": "ab"}))
    monkeypatch.chdir(tmp_path / "behind")
    assert entries(fetch=True) == {Entry("model/v1", "ab"): {"bundle": "ab"}}
    git("remote", "set-url", "origin", str(tmp_path / "nowhere"))
    assert champion() == Entry("model/v1", "ab")
    with pytest.raises(InputError, match=r"expected `git ls-remote .* to answer, got: "):
        entries(fetch=True)


def test_an_origin_that_does_not_answer_leaves_what_this_clone_knows(repository: Path) -> None:
    git("remote", "add", "origin", str(repository / "nowhere"))
    enter("model/v1", json.dumps({"bundle": "ab"}))
    assert champion() == Entry("model/v1", "ab")


def test_outside_a_repository_nothing_can_be_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match="expected `git rev-parse --is-shallow-repository` to answer"):
        champion()


def test_a_champion_comes_from_the_remote_with_the_features_of_its_time(repository: Path) -> None:
    enter("model/v1", json.dumps({"bundle": bundle_hash(repository)}))
    (repository / "src/problem/features.py").write_text("def features(columns):\n    return {}\n")
    subprocess.run(["rm", "-rf", "bundle", ".dvc/cache"], check=True)
    entry = champion()
    assert entry is not None
    with bundle_of(entry) as (folder, features):
        assert list(folder_files(folder)) == ["contract.json"]
        assert features({"x": 2}) == {"twice": 4}


@pytest.mark.usefixtures("repository")
def test_a_bundle_that_is_not_what_the_ledger_says_is_refused() -> None:
    enter("model/v1", json.dumps({"bundle": "0" * 64}))
    with pytest.raises(InputError, match=r"model/v1: expected bundle with the hash 000000000000, got "):
        read_champion()


def test_features_that_are_not_those_of_the_bundle_are_refused(repository: Path) -> None:
    (repository / "src/problem/features.py").write_text(FEATURES + "# changed after training\n")
    git("commit", "--quiet", "--all", "--message", "changed")
    enter("model/v1", json.dumps({"bundle": bundle_hash(repository)}))
    with pytest.raises(InputError, match="model/v1: expected features with the hash"):
        read_champion()


def test_a_bundle_that_nobody_has_is_an_error_with_the_remedy(repository: Path) -> None:
    enter("model/v1", json.dumps({"bundle": bundle_hash(repository)}))
    subprocess.run(["rm", "-rf", ".dvc/cache", ".dvc/store"], check=True)
    with pytest.raises(InputError, match="expected its bundle in DVC's remote or cache, found none"):
        read_champion()


def read_champion() -> None:
    entry = champion()
    assert entry is not None
    with bundle_of(entry):
        pass
