import os
import re
import subprocess
import sys
import tomllib
from collections.abc import Callable
from hashlib import sha256
from hmac import compare_digest
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import InputError
from serving import access
from serving.access import Access
from serving.problems import Problem
from tests.serving.made import ROOT

HASH = "0123456789abcdef" * 4
Y2027 = 1_798_761_600.0  # 2027-01-01T00:00:00Z


def table(holder: str, key: str, *scopes: str, more: str = "") -> str:
    return f'[{holder}]\nscopes = {list(scopes)}\nsha256 = "{sha256(key.encode()).hexdigest()}"\n{more}\n'


def bearing(key: str) -> dict[bytes, bytes]:
    return {b"host": b"x", b"authorization": f"Bearer {key}".encode()}


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """Keys of three holders."""
    path = tmp_path / "keys.toml"
    owner = table("owner", "key-o", "predict", "feedback", "admin")
    path.write_text(table("dashboard", "key-d", "predict") + owner + table("batch", "key-b", "feedback"))
    return path


def refused(known: Access, headers: dict[bytes, bytes], scope: Any = "predict") -> Problem:
    with pytest.raises(Problem) as raised:
        known.check(headers, scope)
    return raised.value


def test_a_key_names_its_holder(file: Path) -> None:
    known = Access.from_file(file)
    assert known.check(bearing("key-d"), "predict") == "dashboard"
    assert known.check(bearing("key-o"), "admin") == "owner"
    assert known.check(bearing("key-b"), "feedback") == "batch"


def test_an_open_service_asks_for_no_key() -> None:
    known = Access.open()
    assert {known.check({}, scope) for scope in ("predict", "feedback")} == {"anonymous"}
    with pytest.raises(Problem, match="service with keys") as refused:
        known.check({}, "admin")
    assert refused.value.status == 403
    assert known.refresh() is None


@pytest.mark.parametrize("kind", ["bearer", "BEARER", "Bearer"])
def test_the_word_bearer_is_read_in_any_case(file: Path, kind: str) -> None:
    assert Access.from_file(file).check({b"authorization": f"{kind} key-d".encode()}, "predict") == "dashboard"


@pytest.mark.parametrize(
    "given",
    [
        b"",
        b"key-d",
        b"Basic key-d",
        b"Bearer",
        b"Bearer ",
        b"Bearer wrong",
        b"Bearer  key-d",
        b"Bearer key-d ",
        b"Bearer KEY-D",
        b"Bearer \xff\x00",
        b"Bearer key-d" + b" " * 300,
        b"Bearer " + b"x" * 100_000,
    ],
)
def test_no_key_and_a_wrong_one_are_401(file: Path, given: bytes) -> None:
    problem = refused(Access.from_file(file), {b"authorization": given} if given else {})
    assert problem.status == 401
    assert problem.headers == ((b"www-authenticate", b"Bearer"),)


def test_a_hash_is_no_key(file: Path) -> None:
    assert refused(Access.from_file(file), bearing(sha256(b"key-d").hexdigest())).status == 401


@pytest.mark.parametrize("header", [b"x-api-key", b"cookie", b"proxy-authorization"])
def test_a_key_in_another_header_is_none(file: Path, header: bytes) -> None:
    assert refused(Access.from_file(file), {header: b"Bearer key-d"}).status == 401


def test_a_key_without_the_scope_is_403_that_names_the_scope_and_no_key(file: Path) -> None:
    problem = refused(Access.from_file(file), bearing("key-d"), "admin")
    assert problem.status == 403
    assert problem.detail == "expected a key with the scope 'admin', which this one lacks"


def test_no_refusal_repeats_what_was_sent(file: Path) -> None:
    for given in ("marker-1", "marker-1 " * 20, "marker-1" * 100):
        assert b"marker" not in refused(Access.from_file(file), bearing(given)).answer("1").body


def test_a_key_is_known_until_it_expires(tmp_path: Path) -> None:
    path, now = tmp_path / "keys.toml", [Y2027 - 1]
    path.write_text(table("dashboard", "key-d", "predict", more="expires = 2027-01-01T00:00:00Z"))
    known = Access.from_file(path, lambda: now[0])
    assert known.check(bearing("key-d"), "predict") == "dashboard"
    now[0] = Y2027
    problem = refused(known, bearing("key-d"))
    assert (problem.status, problem.detail) == (401, "expected a key that has not expired")


def test_an_offset_of_an_expiry_counts(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(table("dashboard", "key-d", "predict", more="expires = 2027-01-01T02:00:00+02:00"))
    assert Access.from_file(path, lambda: Y2027 - 1).check(bearing("key-d"), "predict") == "dashboard"
    assert refused(Access.from_file(path, lambda: Y2027), bearing("key-d")).status == 401


@pytest.mark.parametrize("given", ["key-d", "key-o", "key-b", "wrong", ""])
def test_every_hash_is_compared_whichever_key_came(file: Path, monkeypatch: pytest.MonkeyPatch, given: str) -> None:
    compared: list[bytes] = []

    def compare(stored: bytes, came: bytes) -> bool:
        compared.append(stored)
        return compare_digest(stored, came)

    monkeypatch.setattr(access, "compare_digest", compare)
    known = Access.from_file(file)
    if given.startswith("key"):
        known.check(bearing(given), "predict" if given == "key-d" else "feedback")
    else:
        refused(known, bearing(given))
    assert compared == [sha256(key).digest() for key in (b"key-d", b"key-o", b"key-b")]


def test_a_header_too_long_for_a_key_is_not_hashed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def never(_data: bytes) -> Any:
        raise AssertionError("hashed")

    known = Access.from_file(file)
    monkeypatch.setattr(access, "sha256", never)
    assert refused(known, bearing("x" * 1_000)).status == 401


@pytest.mark.parametrize(
    ("text", "found"),
    [
        ("", "expected a table for each key, got none"),
        ("[a", "expected TOML, got '.+'"),
        ("a = 1", r"\[a\]: .*Expected `object`, got `int`"),
        (f'[a]\nscopes = ["predict"]\nsha256 = "{HASH}"\nkey = "x"', r"\[a\]: .*unknown field `key`"),
        (f'[a.b]\nscopes = ["predict"]\nsha256 = "{HASH}"', r"\[a\]: .*unknown field `b`"),
        (f'[a]\nscopes = ["predict", "all"]\nsha256 = "{HASH}"', r"\[a\]: .*some of predict, feedback, admin.*'all'"),
        (f'[a]\nscopes = []\nsha256 = "{HASH}"', r"\[a\]: .*length >= 1 - at `\$\.scopes`"),
        (f'[a]\nscopes = "predict"\nsha256 = "{HASH}"', r"\[a\]: .*Expected `array`"),
        (f'[a]\nsha256 = "{HASH}"', r"\[a\]: .*missing required field `scopes`"),
        ('[a]\nscopes = ["predict"]', r"\[a\]: .*missing required field `sha256`"),
        (f'[a]\nscopes = ["predict"]\nsha256 = "{HASH[1:]}"', r"\[a\]: .*64 hex digits.*at `\$\.sha256`"),
        (f'[a]\nscopes = ["predict"]\nsha256 = "{HASH.upper()}"', r"\[a\]: .*at `\$\.sha256`"),
        (f'[a]\nscopes = ["predict"]\nsha256 = "{HASH}\\n"', r"\[a\]: .*at `\$\.sha256`"),
        (f'[a]\nscopes = ["predict"]\nsha256 = "{HASH}"\nexpires = 2027-01-01', r"\[a\]: .*at `\$\.expires`"),
        (f'[a]\nscopes = ["predict"]\nsha256 = "{HASH}"\nexpires = 2027-01-01T00:00:00', r"\[a\]: .*timezone"),
        (f'["a b"]\nscopes = ["predict"]\nsha256 = "{HASH}"', r"\[a b\]: expected a name of letters"),
        (table("a", "same", "predict") + table("b", "same", "admin"), r"\[b\]: expected a key of its own, .*\[a\]"),
    ],
)
def test_a_wrong_file_is_refused_with_its_name_the_holder_and_what_was_expected(
    tmp_path: Path, text: str, found: str
) -> None:
    path = tmp_path / "keys.toml"
    path.write_text(text)
    with pytest.raises(InputError, match=f"^{re.escape(str(path))}: {found}"):
        Access.from_file(path)


@pytest.mark.parametrize("spoil", [Path.mkdir, Path.exists, lambda path: path.write_bytes(b"\xff")])
def test_what_is_no_readable_file_is_refused(tmp_path: Path, spoil: Callable[[Path], Any]) -> None:
    path = tmp_path / "keys.toml"
    spoil(path)
    with pytest.raises(InputError, match=rf"^{re.escape(str(path))}: expected .*, got '.+'; `python -m serving.access"):
        Access.from_file(path)


def test_a_key_pasted_for_its_hash_is_not_repeated(tmp_path: Path) -> None:
    path = tmp_path / "keys.toml"
    path.write_text('[a]\nscopes = ["predict"]\nsha256 = "key_secret"')
    with pytest.raises(InputError) as raised:
        Access.from_file(path)
    assert "secret" not in str(raised.value)


def test_keys_are_rotated_without_a_restart(file: Path) -> None:
    known = Access.from_file(file)
    assert known.refresh() is None
    file.write_text(table("dashboard", "key-new", "predict"))
    assert known.refresh() is None
    assert known.check(bearing("key-new"), "predict") == "dashboard"
    assert refused(known, bearing("key-d")).status == 401


def test_keys_behind_links_are_rotated_as_kubernetes_does(tmp_path: Path) -> None:
    for version in ("1", "2"):  # of the same size
        (tmp_path / version).mkdir()
        (tmp_path / version / "keys.toml").write_text(table("dashboard", f"key-{version}", "predict"))
        os.utime(tmp_path / version / "keys.toml", (0, 0))
    (tmp_path / "data").symlink_to("1")
    (tmp_path / "keys.toml").symlink_to("data/keys.toml")
    known = Access.from_file(tmp_path / "keys.toml")
    assert known.check(bearing("key-1"), "predict") == "dashboard"
    (tmp_path / "next").symlink_to("2")
    (tmp_path / "next").replace(tmp_path / "data")
    assert known.refresh() is None
    assert known.check(bearing("key-2"), "predict") == "dashboard"


@pytest.mark.parametrize("spoil", [Path.unlink, lambda path: path.write_text("[a"), lambda path: path.write_text("")])
def test_a_spoiled_file_keeps_the_keys_and_is_told_once(file: Path, spoil: Callable[[Path], Any]) -> None:
    good = file.read_text()
    known = Access.from_file(file)
    for _ in range(2):  # once for each time that it is spoiled
        spoil(file)
        reason = known.refresh()
        assert reason is not None
        assert str(file) in reason
        assert known.refresh() is None
        assert known.check(bearing("key-d"), "predict") == "dashboard"
        file.write_text(good)
        assert known.refresh() is None
    assert known.check(bearing("key-o"), "admin") == "owner"


def test_another_reason_is_told_as_well(file: Path) -> None:
    known = Access.from_file(file)
    file.write_text("[a")
    assert "TOML" in (known.refresh() or "")
    file.unlink()
    assert "No such file" in (known.refresh() or "")


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "serving.access", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)


def test_a_made_key_opens_what_its_table_says(tmp_path: Path) -> None:
    path, keys = tmp_path / "keys.toml", []
    with path.open("a") as file:
        for arguments in (("dashboard", "predict"), ("owner", "predict", "admin")):
            done = make(*arguments)
            assert done.returncode == 0
            assert "shown this once" in done.stderr
            file.write(done.stdout)
            keys.append(re.search(r"^key_[A-Za-z0-9_-]{43}$", done.stderr, re.MULTILINE))
    assert keys[0]
    assert keys[1]
    assert keys[0][0] != keys[1][0]
    assert keys[0][0] not in path.read_text()
    assert tomllib.loads(path.read_text())["owner"]["scopes"] == ["predict", "admin"]
    known = Access.from_file(path)
    assert known.check(bearing(keys[0][0]), "predict") == "dashboard"
    assert known.check(bearing(keys[1][0]), "admin") == "owner"


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "usage: python -m serving.access NAME SCOPE...; the scopes are predict, feedback, admin"),
        (("dashboard",), "usage: "),
        (("dashboard", "all"), "the new key: [dashboard]: expected "),
        (("a b", "predict"), "the new key: [a b]: expected a name of letters, digits, - and _"),
    ],
)
def test_a_wrong_request_for_a_key_makes_none(arguments: tuple[str, ...], told: str) -> None:
    done = make(*arguments)
    assert done.returncode == 1
    assert done.stdout == ""
    assert done.stderr.startswith(told)
    assert "key_" not in done.stderr
    assert done.stderr.count("\n") == 1
