"""The ledger: what has flown, read from annotated git tags `model/vN`. Change here to keep it elsewhere.

The message of a tag ends in a JSON object, whose `bundle` is the hash of the bundle that became champion: what
`sha256sum * | sha256sum` gives in its folder. The commit that is tagged records that bundle in its dvc.lock.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import NamedTuple

from pipeline.canonical import file_hash, files_hash, folder_files
from pipeline.errors import InputError
from pipeline.scoring import Features

TAGS = "refs/tags/model/"


class Entry(NamedTuple):
    """One entry: the name of its tag, and the bundle that it made the champion."""

    tag: str
    bundle: str


def champion() -> Entry | None:
    """The newest entry, None where nothing has flown yet; InputError where that cannot be told, or not be read."""
    if _git("rev-parse", "--is-shallow-repository") == "true" or _git(
        "config", "--default", "", "remote.origin.tagOpt"
    ):
        raise InputError(
            "expected the ledger's tags, but this clone has no history or fetches no tags, so that none means nothing; "
            "run `git config --unset remote.origin.tagOpt; git fetch --unshallow --tags`"
        )
    _check_remote()
    newest = "--sort=-version:refname", "--count=1"
    tag = _git("for-each-ref", *newest, "--format=%(refname:lstrip=2)", TAGS)
    return _entry(tag) if tag else None


def _check_remote() -> None:
    """Refuse a clone whose origin has entries that it lacks; where no origin answers, what is here is what is known."""
    if not _git("config", "--default", "", "remote.origin.url"):
        return
    try:
        listed = _git("ls-remote", "--tags", "--refs", "origin", f"{TAGS}*")
    except InputError:
        return
    theirs = [line.partition("refs/tags/")[2] for line in listed.splitlines()]
    ours = _git("for-each-ref", "--format=%(refname:lstrip=2)", TAGS).splitlines()
    if missing := sorted(set(theirs) - set(ours)):
        raise InputError(
            f"expected all of the ledger, but this clone lacks {', '.join(missing)}; run `git fetch --tags`"
        )


def _entry(tag: str) -> Entry:
    message = _git("for-each-ref", "--format=%(contents:subject)%0a%(contents:body)", f"refs/tags/{tag}")
    try:
        told = json.loads(message[f"\n{message}".rindex("\n{") :])
        return Entry(tag, str(told["bundle"]))
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{tag}: expected a tag whose message ends in JSON with the hash of a 'bundle', got '{message[:60]}' "
            f"({error}); restore the tag from another clone"
        ) from error


@contextmanager
def bundle_of(entry: Entry) -> Iterator[tuple[Path, Features]]:
    """The bundle of an entry, from DVC's cache or remote, and the features that it was trained with, from git; for as
    long as the block lasts. InputError where either is not what the ledger says."""
    with TemporaryDirectory() as scratch:
        folder, code = Path(scratch, "bundle"), Path(scratch, "features.py")
        command = [sys.executable, "-m", "dvc", "get", "--quiet", ".", "bundle", "--rev", entry.tag, "-o", str(folder)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603 - DVC
        if done.returncode:
            said = done.stderr.strip()[-200:]
            raise InputError(f"{entry.tag}: expected its bundle in DVC's remote or cache, found none: {said}; push it")
        _check_hash(entry, "bundle", files_hash(folder_files(folder)), entry.bundle)
        code.write_bytes(_git_bytes("show", f"{entry.tag}:src/problem/features.py"))
        trained_with = json.loads((folder / "contract.json").read_bytes())["features_hash"]
        _check_hash(entry, "features", file_hash(code), trained_with)
        yield folder, _features(code)


def _check_hash(entry: Entry, what: str, found: str, expected: str) -> None:
    if found != expected:
        raise InputError(f"{entry.tag}: expected {what} with the hash {expected[:12]}, got {found[:12]}; find out why")


def _features(code: Path) -> Features:
    module = ModuleType("champions_features")
    exec(compile(code.read_bytes(), code.name, "exec"), module.__dict__)  # noqa: S102 - the project's own past code
    features: Features = module.__dict__["features"]
    return features


def _git(*arguments: str) -> str:
    return _git_bytes(*arguments).decode().strip()


def _git_bytes(*arguments: str) -> bytes:
    asking = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(["git", *arguments], env=asking, capture_output=True, check=False)  # noqa: S603, S607 - git, as found
    if done.returncode:
        raise InputError(f"expected `git {' '.join(arguments)}` to answer, got: {done.stderr.decode().strip()}")
    return done.stdout
