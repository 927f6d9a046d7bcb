"""What DVC's files say of the pipeline in the current directory, and the keys that follow from it. Change here to make
something more part of what a run is known by."""

import hashlib
import json
import os
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import yaml


class Repository:
    """dvc.yaml, dvc.lock, data.dvc and params.yaml as they are now; each file below them is hashed at most once."""

    def __init__(self) -> None:
        self.params = _read("params.yaml")
        self._declared: dict[str, Any] = _read("dvc.yaml")["stages"]
        self._locked: dict[str, Any] = _read("dvc.lock")["stages"] if Path("dvc.lock").is_file() else {}
        self._digests: dict[Path, str] = {}

    @cached_property
    def data(self) -> str:
        """DVC's hash of the data."""
        return str(_read("data.dvc")["outs"][0]["md5"])

    def has_data(self) -> bool:
        """Whether the data on disk is that of data.dvc."""
        return self._digest(Path("data")) == self.data

    @property
    def stages(self) -> list[str]:
        """The stages, in the order of dvc.yaml."""
        return list(self._declared)

    def outputs(self, stage: str) -> list[Path]:
        """What a stage writes."""
        listed = [out for kind in ("outs", "metrics", "plots") for out in self._declared[stage].get(kind, [])]
        return [Path(out if isinstance(out, str) else next(iter(out))) for out in listed]

    def stage_params(self, stage: str) -> dict[str, str]:
        """The parameters that a stage declares."""
        flat, declared = flatten(self.params), self._declared[stage].get("params", [])
        return {k: v for k, v in flat.items() if any(k == d or k.startswith(f"{d}.") for d in declared)}

    def stage_key(self, stage: str) -> str:
        """The hash of a stage's command, dependencies and parameters: the same while it runs and later, and on every
        machine. A dependency that was not pulled is taken to be what dvc.lock records."""
        return _key("stage", stage, self._state(stage))

    def pipeline_key(self) -> str:
        """The hash of data, parameters, code and lock file, with the name of the experiment where DVC runs one."""
        made = [Path("data"), *(path for stage in self.stages for path in self.outputs(stage))]
        needed = {Path(dep) for stage in self.stages for dep in self._declared[stage]["deps"]}
        code = {str(path): self._digest(path) for path in needed if not any(path.is_relative_to(m) for m in made)}
        lock = self._digest(Path("requirements.lock"))
        return _key("pipeline", os.environ.get("DVC_EXP_NAME"), self.data, _comparable(self.params), code, lock)

    def agrees(self, stage: str, outputs: list[Path]) -> bool:
        """Whether the inputs of a stage, and these of its outputs, are on disk as dvc.lock records them."""
        return not self.differing(stage, outputs)

    def differing(self, stage: str, outputs: list[Path]) -> list[str]:
        """The inputs of a stage, and those of these outputs, that are not as dvc.lock records them."""
        if stage not in self._locked:
            return [f"the stage {stage}"]
        recorded = {Path(out["path"]): out["md5"] for out in self._locked[stage].get("outs", [])}
        wrong = [str(path) for path in outputs if not path.exists() or self._digest(path) != recorded.get(path)]
        now, then = self._state(stage), self._recorded(stage)
        for part in ("deps", "params"):
            wrong += [name for name in {**now[part], **then[part]} if now[part].get(name) != then[part].get(name)]
        return wrong + [f"the command of {stage}"] * (now["cmd"] != then["cmd"])

    def _state(self, stage: str) -> dict[str, Any]:
        declared, recorded = self._declared[stage], self._recorded(stage)["deps"]
        deps = {d: self._digest(Path(d)) if Path(d).exists() else recorded.get(d) for d in declared["deps"]}
        return {"cmd": declared["cmd"], "deps": deps, "params": _comparable(self.stage_params(stage))}

    def _recorded(self, stage: str) -> dict[str, Any]:
        entry = self._locked.get(stage, {})
        deps = {dep["path"]: dep["md5"] for dep in entry.get("deps", [])}
        params = entry.get("params", {}).get("params.yaml", {})
        return {"cmd": entry.get("cmd"), "deps": deps, "params": _comparable(params)}

    def _digest(self, path: Path) -> str:
        if path not in self._digests:
            self._digests[path] = dvc_hash(path)
        return self._digests[path]


def flatten(tree: Mapping[str, Any]) -> dict[str, str]:
    """Nested parameters with dotted names, as text."""
    return {name: str(value) for name, value in leaves(tree).items()}


def leaves(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The values of nested mappings by their dotted names."""
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        flat |= leaves(value, f"{prefix}{key}.") if isinstance(value, Mapping) else {f"{prefix}{key}": value}
    return flat


def dvc_hash(path: Path) -> str:
    """The hash that DVC gives to a file or a folder, leaving out what Python caches beside code."""
    if path.is_file():
        return file_hash(path, "md5")
    files = sorted((p.relative_to(path).as_posix(), p) for p in path.rglob("*") if p.is_file() and p.suffix != ".pyc")
    listed = json.dumps([{"md5": file_hash(file, "md5"), "relpath": name} for name, file in files])
    return hashlib.md5(listed.encode(), usedforsecurity=False).hexdigest() + ".dir"


def file_hash(path: Path, algorithm: str = "sha256") -> str:
    """The hash of a file, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, lambda: hashlib.new(algorithm, usedforsecurity=False)).hexdigest()


def _comparable(params: Mapping[str, Any]) -> dict[str, Any]:
    # YAML 1.2, in which DVC writes dvc.lock, has numbers that are text in the YAML 1.1 of PyYAML: 1e-05.
    return {name: _number(value) for name, value in flatten(params).items()}


def _number(text: str) -> float | str:
    try:
        return float(text)
    except ValueError:
        return text


def _read(path: str) -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load(Path(path).read_text())
    return read


def _key(*parts: Any) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()
