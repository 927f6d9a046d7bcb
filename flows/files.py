"""Outputs on disk, written whole or not at all. Change here to write them elsewhere."""

from collections.abc import Mapping
from pathlib import Path

from flows.stage import written_whole


def write_whole(path: Path, content: bytes | Mapping[str, bytes]) -> None:
    """Write a file, or a folder of files by relative name, whole or not at all."""
    with written_whole(path) as new:
        if isinstance(content, bytes):
            new.write_bytes(content)
            return
        for name, data in content.items():
            (new / name).parent.mkdir(parents=True, exist_ok=True)
            (new / name).write_bytes(data)
