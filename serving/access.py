"""Who may do what: API keys, each with its scopes. Change here to know clients by something else.

`python -m serving.access NAME SCOPE...` makes a key. It is 32 random bytes, which nobody finds by trying: SHA-256
without salt keeps it as well as a hash made for passwords, which would cost each request a thousand times more.
"""

import json
import math
import secrets
import sys
import time
import tomllib
from collections.abc import Callable, Mapping
from datetime import datetime
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple, Self, get_args

import msgspec
from msgspec import Meta, Struct

from pipeline.errors import InputError
from serving.problems import Problem

Scope = Literal["predict", "feedback", "admin"]
Holder = Annotated[str, Meta(pattern=r"\A[A-Za-z0-9_-]{1,64}\Z")]

ANONYMOUS = "anonymous"
_HEADER_MAX = 256
_SHA256 = sha256()  # to be copied: OpenSSL takes twice as long to begin one
_MAKE = "`python -m serving.access NAME SCOPE...` makes a key and its table"
_TABLE = (
    "expected a name of letters, digits, - and _, and a table of scopes (some of "
    f"{', '.join(get_args(Scope))}), sha256 (64 hex digits) and perhaps expires (a time with its offset)"
)


class Entry(Struct, forbid_unknown_fields=True):
    """A holder's table in the file of keys."""

    scopes: Annotated[frozenset[Scope], Meta(min_length=1)]
    sha256: Annotated[str, Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    expires: Annotated[datetime, Meta(tz=True)] | None = None


class Key(NamedTuple):
    """A key that is known; `expires` is in seconds since 1970."""

    holder: str
    digest: bytes
    scopes: frozenset[Scope]
    expires: float


class Access:
    """The keys that are asked for, or none where the service is open."""

    def __init__(self, path: Path | None, clock: Callable[[], float]) -> None:
        self._path = path
        self._clock = clock
        self._keys: tuple[Key, ...] = ()
        self._stamp: tuple[int, int, int] | None = None
        self._reason: str | None = None
        self._read()

    @classmethod
    def from_file(cls, path: Path, clock: Callable[[], float] = time.time) -> Self:
        """The keys of a file; InputError where it is wrong. `clock` gives seconds since 1970."""
        return cls(path, clock)

    @classmethod
    def open(cls) -> Self:
        """Whoever comes may do all but what an admin does."""
        return cls(None, time.time)

    def check(self, headers: Mapping[bytes, bytes], scope: Scope) -> str:
        """The holder of the key that came; Problem 401 where no valid one did, 403 where it lacks the scope."""
        if self._path is None:
            if scope == "admin":
                raise Problem(403, "expected a service with keys; in the open this is nobody's to do")
            return ANONYMOUS
        given = headers.get(b"authorization", b"")
        kind, _, secret = given[: _HEADER_MAX + 1].partition(b" ")
        if kind.lower() != b"bearer" or len(given) > _HEADER_MAX:
            raise _unauthorized("expected the header 'authorization: Bearer <key>'")
        hashed, found = _SHA256.copy(), None
        hashed.update(secret)
        digest = hashed.digest()
        for key in self._keys:  # every one: the time that it takes tells nothing of them
            if compare_digest(key.digest, digest):
                found = key
        if found is None:
            raise _unauthorized("expected a key that is known here")
        if found.expires <= self._clock():
            raise _unauthorized("expected a key that has not expired")
        if scope not in found.scopes:
            raise Problem(403, f"expected a key with the scope '{scope}', which this one lacks")
        return found.holder

    def refresh(self) -> str | None:
        """Read the file again if it has changed. Where that fails, the keys stay, and the reason is returned once."""
        reason = None
        try:
            self._read()
        except InputError as error:
            reason = str(error)
        said, self._reason = self._reason, reason
        return reason if reason != said else None

    def _read(self) -> None:
        path = self._path
        if path is None:
            return
        try:
            found = path.stat()  # of what a link leads to, as Kubernetes changes a secret by a link
            stamp = found.st_mtime_ns, found.st_size, found.st_ino
            if stamp != self._stamp:
                self._keys = _keys(tomllib.loads(path.read_text("utf-8")), str(path))
                self._stamp = stamp
        except OSError as error:
            raise InputError(f"{path}: expected a file of keys, got '{error.strerror}'; {_MAKE}") from None
        except (ValueError, RecursionError) as error:
            raise InputError(f"{path}: expected TOML, got '{error}'; {_MAKE}") from None


def _unauthorized(detail: str) -> Problem:
    return Problem(401, detail, headers=((b"www-authenticate", b"Bearer"),))


def _keys(tables: Mapping[str, Any], source: str) -> tuple[Key, ...]:
    if not tables:
        raise InputError(f"{source}: expected a table for each key, got none; {_MAKE}")
    keys: dict[bytes, Key] = {}
    for holder, table in tables.items():
        try:
            msgspec.convert(holder, Holder)
            entry = msgspec.convert(table, Entry)
        except msgspec.ValidationError as error:
            raise InputError(f"{source}: [{holder}]: {_TABLE}, got another ({error}); {_MAKE}") from None
        expires = entry.expires.timestamp() if entry.expires else math.inf
        key = Key(holder, bytes.fromhex(entry.sha256), entry.scopes, expires)
        if other := keys.get(key.digest):
            raise InputError(f"{source}: [{holder}]: expected a key of its own, got that of [{other.holder}]; {_MAKE}")
        keys[key.digest] = key
    return tuple(keys.values())


def main(arguments: list[str]) -> None:
    """Make a key: itself to stderr, its table to stdout, which `>> keys.toml` appends."""
    if len(arguments) < 2:
        sys.exit(f"usage: python -m serving.access NAME SCOPE...; the scopes are {', '.join(get_args(Scope))}")
    holder, *scopes = arguments
    key = f"key_{secrets.token_urlsafe(32)}"  # begins so that people and scanners see what it is
    table = {"scopes": scopes, "sha256": sha256(key.encode()).hexdigest()}
    try:
        _keys({holder: table}, "the new key")
    except InputError as error:
        sys.exit(str(error))
    sys.stderr.write(f"The key of {holder}, shown this once:\n{key}\nIts table for the file of keys:\n")
    sys.stdout.write(f"\n[{holder}]\n" + "".join(f"{name} = {json.dumps(value)}\n" for name, value in table.items()))


if __name__ == "__main__":
    main(sys.argv[1:])
