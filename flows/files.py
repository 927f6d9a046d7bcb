"""Outputs on disk, written whole or not at all. Change here to write them elsewhere."""

import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path


def write_whole(path: Path, content: bytes | Mapping[str, bytes]) -> None:
    """Write a file, or a folder of files by relative name, whole or not at all."""
    with written_whole(path) as new:
        if isinstance(content, bytes):
            new.write_bytes(content)
            return
        for name, data in content.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(data)


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside `path` for a file or a folder; at the end of the block it becomes `path`, whole or not at all."""
    new, old = path.with_name(f".new.{path.name}"), path.with_name(f".old.{path.name}")
    path.parent.mkdir(parents=True, exist_ok=True)
    for left in (new, old):
        _remove(left)
    try:
        yield new
        if path.is_dir():  # a folder cannot be replaced in one step
            path.replace(old)
        new.replace(path)
    finally:
        for left in (new, old):
            _remove(left)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
