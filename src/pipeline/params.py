"""`params.yaml` read into one typed, frozen object per section. Change here to read parameters from elsewhere."""

from pathlib import Path
from typing import Annotated, Any, TypeVar

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from pipeline.errors import InputError


class Params(BaseModel):
    """A section of `params.yaml`: an unknown, missing or ill-typed key is an error that names it."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


Seed = Annotated[int, Field(ge=0, lt=2**31)]

SECTIONS = ("ingest", "preprocess", "tune", "train", "evaluate", "inspect")
Section = TypeVar("Section", bound=Params)


def read_section(path: Path, name: str, model: type[Section]) -> Section:
    """The section `name` of the file at `path`, checked against `model`."""
    if not path.is_file():
        raise InputError(
            f"expected the parameters in {path}, found no such file; restore it with `git checkout {path}`"
        )
    try:
        sections = yaml.safe_load(path.read_text())
    except yaml.YAMLError as error:
        raise InputError(f"{path}: expected YAML, got a file that does not parse: {error}; correct it") from error
    if not isinstance(sections, dict) or not isinstance(sections.get(name), dict):
        raise InputError(f"{path}: expected a section '{name}' with keys, found none; restore it")
    if unknown := sorted(map(str, set(sections) - set(SECTIONS))):
        raise InputError(f"{path}: expected the sections {list(SECTIONS)}, got {unknown} too; remove, or correct them")
    try:
        return model.model_validate(sections[name])
    except ValidationError as error:
        raise InputError(f"{path}: " + "; ".join(_explain(name, sections[name], e) for e in error.errors())) from error


def _explain(section: str, given: Any, error: Any) -> str:
    parts = [section]
    for part in error["loc"][:-1]:
        if part in given:  # else it names the kind of a union, which is no key
            parts.append(part)
            given = given[part]
    key = ".".join(map(str, [*parts, error["loc"][-1]]))
    if error["type"] == "extra_forbidden":
        return f"'{key}' is not a parameter; remove it, or correct its spelling"
    if error["type"] == "missing":
        return f"'{key}' is missing; add it"
    return f"'{key}' is {error['input']!r}, but {error['msg'][0].lower()}{error['msg'][1:]}; correct it"
