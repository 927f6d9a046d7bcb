"""Two makings of the same files compared. Change here to let them differ more, or less."""

import re
from collections.abc import Mapping
from contextlib import suppress
from io import BytesIO
from itertools import zip_longest
from typing import Any, Literal

import numpy as np
import pandas as pd

EQUIVALENT = 1e-6  # scores that differ by no more are equivalent: another processor rounds otherwise
_RELATIVE, _ABSOLUTE = 1e-4, 1e-6  # between figures: they are written to six digits, and refitted models may round
By = Literal["bytes", "figures", "words"]
_NUMBER = re.compile(rb"(-?\d+(?:\.\d+)?(?:[eE][-+]?\d+)?)")


def differences(recorded: Mapping[str, bytes], made: Mapping[str, bytes], by: By = "figures") -> list[str]:
    """What differs between recorded files and those made again, one line a file: the first line that is not the same,
    by its bytes, its words and figures (which another platform rounds otherwise), or its words alone."""
    found = []
    for name in sorted({*recorded, *made}):
        if name not in made:
            found.append(f"{name} is recorded, but not made")
        elif name not in recorded:
            found.append(f"{name} is made, but not recorded")
        elif recorded[name] != made[name] and b"\0" in recorded[name]:
            found.append(f"{name} has other bytes")
        elif recorded[name] != made[name]:
            pairs = zip_longest(recorded[name].split(b"\n"), made[name].split(b"\n"), fillvalue=b"")
            lines = enumerate(pairs, start=1)
            found += next(([_said(name, n, *pair)] for n, pair in lines if not _same(*pair, by)), [])
    return found


def same_table(recorded: bytes, made: bytes) -> bool:
    """Whether two Parquet files hold the same table, but for the rounding of its numbers."""
    if recorded == made:
        return True
    left, right = (pd.read_parquet(BytesIO(content)) for content in (recorded, made))
    with suppress(AssertionError):
        pd.testing.assert_frame_equal(left, right, check_exact=False, rtol=1e-9, atol=0)
        return True
    return False


def golden_gap(new: Mapping[str, Any], old: Mapping[str, Any]) -> float:
    """The largest difference between the scores of the same golden rows, relative to max(1, the score); infinite if
    the rows are not the same."""
    left, right = np.array(new["scores"]), np.array(old["scores"])
    if new["rows"] != old["rows"] or left.shape != right.shape:
        return float("inf")
    return score_gap(left, right)


def score_gap(new: np.ndarray, old: np.ndarray) -> float:
    """The largest difference between scores [n, k] of the same rows, relative to max(1, the score)."""
    return float((np.abs(new - old) / np.maximum(1, np.abs(old))).max(initial=0))


def _same(recorded: bytes, made: bytes, by: By) -> bool:
    left, right = _NUMBER.split(recorded), _NUMBER.split(made)
    if by == "bytes" or left[::2] != right[::2]:
        return recorded == made
    was, now = (np.array(parts[1::2], dtype="float64") for parts in (left, right))
    return by == "words" or np.allclose(was, now, rtol=_RELATIVE, atol=_ABSOLUTE)


def _said(name: str, line: int, recorded: bytes, made: bytes) -> str:
    was, now = (part.decode(errors="replace").strip() for part in (recorded, made))
    start = next((i for i, (a, b) in enumerate(zip(was, now, strict=False)) if a != b), min(len(was), len(now)))
    shown = [text[max(0, start - 30) : start + 30] for text in (was, now)]
    return f"{name} line {line}: recorded '{shown[0]}', made again '{shown[1]}'"
