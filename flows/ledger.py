"""The ledger: what has flown, kept in annotated git tags `model/vN`. Change here to keep it elsewhere.

The message of a tag ends in a JSON object, whose `bundle` is the hash of the bundle that became champion: what
`sha256sum * | sha256sum` gives in its folder. The commit that is tagged records that bundle in its dvc.lock. An entry
stands once origin has its tag, or in a clone without an origin the clone; whatever else names a champion follows.
"""

import json
import os
import re
import shutil
import subprocess
import sys
from argparse import ArgumentTypeError
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import datetime
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any, NamedTuple, ParamSpec

from pipeline.canonical import file_hash, files_hash, folder_files
from pipeline.errors import InputError
from pipeline.scoring import Features

TAGS = "refs/tags/model/"
_ENTRY = re.compile(r"(?:refs/tags/)?model/v[1-9][0-9]*")  # tags of other names are no entries

P = ParamSpec("P")


class Refused(InputError):
    """What could be done, and may not be."""


class Entry(NamedTuple):
    """One entry: the name of its tag, and the bundle that it made the champion."""

    tag: str
    bundle: str


Flown = Mapping[Entry, Mapping[str, Any]]  # oldest first, each with all that it tells


def decided(function: Callable[P, int | None]) -> Callable[P, int]:
    """A command that returns 1 where it refuses, and says why."""

    @wraps(function)
    def decide(*args: P.args, **kwargs: P.kwargs) -> int:
        try:
            return function(*args, **kwargs) or 0
        except Refused as error:
            sys.stderr.write(f"{function.__name__}: {error}\n")
            return 1

    return decide


def champion() -> Entry | None:
    """The newest entry, None where nothing has flown yet; InputError where that cannot be told, or not be read."""
    _check_whole()
    return next(iter(_read(last=1)), None)


def entries(*, fetch: bool = False) -> Flown:
    """Every entry; InputError as `champion`. `fetch`: what origin alone has is taken in first, and must be had."""
    if fetch and _origin():
        with suppress(InputError):  # the check tells more
            git("fetch", "--quiet", "origin", f"{TAGS}*:{TAGS}*")
    _check_whole(must_answer=fetch)
    return _read()


def newest(flown: Flown) -> Entry | None:
    """The entry of the champion, None where nothing has flown."""
    return next(reversed(list(flown)), None)


def tag_of(version: str) -> str:
    """The tag that is meant by v3, 3 or model/v3."""
    return f"model/v{version.removeprefix('model/').removeprefix('v')}"


def digest(text: str) -> str:
    """What an image is known by, from a command line; ArgumentTypeError where it is none, since an entry stays."""
    if not re.fullmatch("sha256:[0-9a-f]{64}", text):
        raise ArgumentTypeError(f"expected sha256: and 64 digits, as `python -m flows.deliver find` says, got '{text}'")
    return text


def before(flown: Flown) -> Entry | None:
    """The entry that put in the air what flew before the champion's bundle, None where no other has."""
    listed = list(flown)
    return next((entry for entry in reversed(listed) if entry.bundle != listed[-1].bundle), None)


def enter(told: Mapping[str, Any], *, commit: str, subject: str, at: datetime, flown: Flown) -> Entry:
    """Add an entry after those that have flown, which changes the champion; Refused where another came first, origin
    does not take it, or its run of GitHub Actions made one already, and then nothing has changed. `told`: what its JSON
    holds, with `bundle`, `by` and `because`, and `run` where there is one."""
    last = newest(flown)
    if told.get("run") and (made_by := [entry.tag for entry, each in flown.items() if each.get("run") == told["run"]]):
        raise Refused(
            f"expected a run that has made no entry yet, but {told['run']} made {made_by[-1]}, and {last and last.tag} "
            "flies since; what is to fly again is decided anew: start another run"
        )
    tag = f"model/v{1 + (_number(last.tag) if last else 0)}"
    told = {**told, "at": at.isoformat(timespec="seconds"), "previous": last.tag if last else None}
    text = f"{subject}\n\n{told['by']}: {told['because']}\n\n{json.dumps(told, indent=1, ensure_ascii=False)}\n"
    signed = f"{tagger()} {int(at.timestamp())} +0000"
    made = git("mktag", given=f"object {commit}\ntype commit\ntag {tag}\ntagger {signed}\n\n{text}")
    where = f"refs/tags/{tag}"
    try:  # in one step, and only where there is none of that name
        git(*(("push", "--quiet", "origin", f"{made}:{where}") if _origin() else ("update-ref", where, made, "")))
    except InputError as error:
        raise Refused(
            f"expected {tag} to become the ledger's next entry, but {error}; nothing has changed: run `git fetch "
            "--tags` and `python -m flows.history`, and decide anew"
        ) from error
    git("update-ref", where, made)
    return Entry(tag, told["bundle"])


def tagger() -> str:
    """Who git says is at work; InputError where it was never told."""
    return git("-c", "user.useConfigOnly=true", "var", "GIT_COMMITTER_IDENT").rpartition(">")[0] + ">"


def _origin() -> str:
    return git("config", "--default", "", "remote.origin.url")


def _check_whole(*, must_answer: bool = False) -> None:
    """Refuse a clone whose entries are not those of its origin; where none answers, what is here is what is known."""
    if git("rev-parse", "--is-shallow-repository") == "true" or git("config", "--default", "", "remote.origin.tagOpt"):
        raise InputError(
            "expected the ledger's tags, but this clone has no history or fetches no tags, so that none means nothing; "
            "run `git config --unset remote.origin.tagOpt; git fetch --unshallow --tags`"
        )
    if not _origin():
        return
    try:
        listed = git("ls-remote", "--tags", "--refs", "origin", f"{TAGS}*")
    except InputError:
        if must_answer:
            raise
        return
    ours = git("for-each-ref", "--format=%(objectname)%09%(refname)", TAGS)
    differing = {tuple(line.split()) for line in {*listed.splitlines()} ^ {*ours.splitlines()}}
    if other := ", ".join(sorted({name.removeprefix("refs/tags/") for _, name in differing if _ENTRY.fullmatch(name)})):
        raise InputError(
            f"expected the same ledger here and at origin, but they differ in {other}; run `git fetch --tags --force`, "
            "or where it is here alone and right, `git push origin` with its name"
        )


def _read(*, last: int = 0) -> dict[Entry, Mapping[str, Any]]:
    """Entries, oldest first, or the last ones; a signature is no part of what git calls subject and body."""
    listed = git("for-each-ref", "--format=%(refname:lstrip=2)%00%(contents:subject)%0a%(contents:body)%00", TAGS)
    parts = [part.strip() for part in listed.split("\0")[:-1]]
    messages = {tag: message for tag, message in zip(parts[::2], parts[1::2], strict=True) if _ENTRY.fullmatch(tag)}
    return dict(_parsed(tag, messages[tag]) for tag in sorted(messages, key=_number)[-last:])


def _parsed(tag: str, message: str) -> tuple[Entry, Mapping[str, Any]]:
    try:
        told = json.loads(message[f"\n{message}".rindex("\n{") :])
        return Entry(tag, str(told["bundle"])), told
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            f"{tag}: expected a tag whose message ends in JSON with the hash of a 'bundle', got '{message[:60]}' "
            f"({error}); restore the tag from another clone"
        ) from error


def _number(tag: str) -> int:
    return int(tag.removeprefix("model/v"))


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A scratch clone of a revision, with this one's Python, and its cache and settings of DVC."""
    with TemporaryDirectory() as scratch:
        folder = Path(scratch, "clone")
        git("clone", "--quiet", "--shared", "--no-checkout", ".", str(folder))
        git("-C", str(folder), "checkout", "--quiet", "--detach", git("rev-parse", f"{revision}^{{commit}}"))
        cache = Path(".dvc/cache").resolve()
        cache.mkdir(exist_ok=True)
        (folder / ".dvc/cache").symlink_to(cache)
        if Path(".dvc/config.local").is_file():
            shutil.copy(".dvc/config.local", folder / ".dvc")
        if not (folder / ".venv").exists():
            (folder / ".venv").symlink_to(sys.prefix)
        yield folder


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


def git(*arguments: str, given: str = "") -> str:
    """What git answers; InputError where it fails."""
    return _git_bytes(*arguments, given=given).decode().strip()


def _git_bytes(*arguments: str, given: str = "") -> bytes:
    asking = {**os.environ, "GIT_TERMINAL_PROMPT": "0"}
    done = subprocess.run(["git", *arguments], env=asking, input=given.encode(), capture_output=True, check=False)  # noqa: S603, S607 - git, as found
    if done.returncode:
        said = " ".join(done.stderr.decode().split())
        raise InputError(f"expected `git {' '.join(arguments)}` to answer, got: {said}")
    return done.stdout
