"""Files that are hashed: the same content gives the same bytes. Change here to write another format."""

import hashlib
import json
from collections.abc import Mapping
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas as pd


def json_bytes(value: object) -> bytes:
    """A value as JSON; NaN is an error."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def parquet_bytes(table: "pd.DataFrame") -> bytes:
    """A table as Parquet."""
    buffer = BytesIO()
    table.to_parquet(buffer, index=False, compression="zstd", compression_level=9)
    return buffer.getvalue()


def csv_bytes(table: "pd.DataFrame") -> bytes:
    """A table as CSV, numbers to six significant digits."""
    return table.to_csv(index=False, float_format="%.6g", lineterminator="\n").encode()


def sha256(data: bytes) -> str:
    """The SHA-256 of some bytes, in hex."""
    return hashlib.sha256(data).hexdigest()


def file_hash(*paths: Path) -> str:
    """The SHA-256 of a file, in hex; of several, that of their hashes in the order given."""
    hashes = [sha256(path.read_bytes()) for path in paths]
    return hashes[0] if len(paths) == 1 else sha256("\n".join(hashes).encode())


def folder_files(folder: Path) -> dict[str, bytes]:
    """The files of a folder by their relative names, sorted."""
    files = sorted((path.relative_to(folder).as_posix(), path) for path in folder.rglob("*") if path.is_file())
    return {name: path.read_bytes() for name, path in files}


def files_hash(files: Mapping[str, bytes]) -> str:
    """The SHA-256 of named files, in hex: what a bundle is known by."""
    return sha256("".join(f"{sha256(files[name])}  {name}\n" for name in sorted(files)).encode())
