"""What the service may be told, by environment variables. Change here to let it be told more."""

import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from pydantic_core import ErrorDetails

from pipeline.errors import InputError
from serving import ROOT

PREFIX = "SERVING_"


class Settings(BaseModel):
    """Every setting: `model_dir` is the variable SERVING_MODEL_DIR, and so on."""

    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())

    model_dir: Path = Field(default=Path("bundle"), description="the folder of the bundle")
    model_hash: str | None = Field(
        default=None, pattern="^[0-9a-f]{64}$", description="the only bundle to serve, also as the last good one"
    )
    model_version: str | None = Field(
        default=None, pattern="^[A-Za-z0-9._-]{1,64}$", description="what clients call it by"
    )
    inspected: bool = Field(default=True, description="0 serves a bundle that no inspection found airworthy")
    data_dir: Path = Field(
        default=Path(".serving"), description="the folder of the prediction log and the last good bundle"
    )
    keys_file: Path | None = Field(default=None, description="the file of the API keys: python -m serving.access")
    open: bool = Field(default=False, description="1 lets everybody ask for predictions, without a key")
    challenger_dir: Path | None = Field(default=None, description="the folder of a second bundle, to be compared")
    challenger_share: float = Field(default=0, ge=0, le=1, description="of requests that the second bundle answers")
    killed: bool = Field(default=False, description="1 lets the baseline answer for the model")
    host: str = Field(default="127.0.0.1", description="the address to listen at; 0.0.0.0 is every one")
    port: int = Field(default=8000, ge=0, le=65535, description="the port to listen at")
    max_body_bytes: int = Field(default=10_000_000, gt=0, description="a longer body is refused with 413")
    max_rows: int = Field(default=10_000, gt=0, description="more rows in one request are refused with 413")
    max_in_flight: int = Field(default=64, gt=0, description="more requests at once are refused with 503")
    max_bytes_in_flight: int = Field(default=40_000_000, gt=0, description="longer bodies at once are refused with 503")
    max_connections: int = Field(default=1_000, gt=0, description="more connections at once are refused with 503")
    model_budget_s: float = Field(default=2, gt=0, description="a call of the model that takes longer has failed")
    breaker_window: int = Field(default=20, gt=0, description="of so many calls of the model")
    breaker_rate: float = Field(default=0.5, gt=0, le=1, description="this share may fail, then the baseline answers")
    breaker_cooldown_s: float = Field(default=10, gt=0, description="after so long the model is tried again")
    read_timeout_s: float = Field(default=10, gt=0, description="a body that is not there by then is refused with 408")
    write_timeout_s: float = Field(default=10, gt=0, description="a client that reads no more is cut off after so long")
    keep_alive_s: int = Field(default=75, ge=0, description="an idle connection is closed after so long")
    shutdown_s: int = Field(default=30, ge=0, description="how long a stop waits for requests under way")


def read_settings(environment: Mapping[str, str]) -> Settings:
    """The settings among environment variables; InputError names an unknown variable, or a value that does not fit."""
    given = {name: value for name, value in environment.items() if name.startswith(PREFIX) and value}
    known = {PREFIX + name.upper(): name for name in Settings.model_fields}
    if unknown := sorted(set(given) - set(known)):
        raise InputError(f"{', '.join(unknown)}: no such setting; the settings are {', '.join(known)}")
    try:
        return Settings.model_validate({known[name]: value for name, value in given.items()})
    except ValidationError as error:
        raise InputError("; ".join(_wrong(found) for found in error.errors())) from None


def _wrong(found: ErrorDetails) -> str:
    name = str(found["loc"][0])
    meaning = Settings.model_fields[name].description
    return f"{PREFIX}{name.upper()} ({meaning}): {found['msg'].lower()}, got '{found['input']}'"


def project() -> dict[str, Any]:
    """The project's table of pyproject.toml: its name is the model's."""
    return dict(tomllib.loads((ROOT / "pyproject.toml").read_text())["project"])
