"""A bundle that may be served: verified, loaded, and known by its hash. Change here to verify more before it is.

Nothing in it is believed: the service scores the bundle's golden rows as if a client had sent them.
"""

import inspect
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import msgspec
import numpy as np

from pipeline.canonical import file_hash, files_hash, folder_files
from pipeline.errors import InputError
from pipeline.scoring import TOLERANCE, Features, Scorer
from serving.breaker import Fallback
from serving.rows import Inputs, RowError
from serving.settings import Settings, project

FILES = ("baseline.json", "contract.json", "golden.json", "lineage.json", "reference.json")
MODEL_FILES = {"onnx": "model.onnx", "sklearn": "pipeline.skops"}
BESIDE = ("inspection/gates.json", "reports/gates.json", "reports/card.md")  # what a release has beside its bundle
_AGAIN = "pull it again (`dvc pull`), or train again (`dvc repro`)"


class _Input(msgspec.Struct):
    name: str
    kind: Literal["number", "integer", "boolean", "category", "time"]
    description: str
    unit: str | None
    nullable: bool
    minimum: float | None
    maximum: float | None
    categories: list[str] = []
    open: bool = False


class _Feature(msgspec.Struct):
    name: str
    categories: list[str] | None


class _Contract(msgspec.Struct):
    """What of contract.json the service rests on."""

    task: Literal["binary", "multiclass", "regression"]
    runtime: Literal["onnx", "sklearn"]
    target: str
    classes: Annotated[list[str], msgspec.Meta(min_length=3)] | None
    threshold: Annotated[float, msgspec.Meta(ge=0, le=1)] | None
    inputs: Annotated[list[_Input], msgspec.Meta(min_length=1)]
    features: Annotated[list[_Feature], msgspec.Meta(min_length=1)]
    features_hash: str


class _Golden(msgspec.Struct):
    rows: dict[str, list[Any]]
    scores: Annotated[list[list[float]], msgspec.Meta(min_length=1)]


class _Distribution(msgspec.Struct):
    edges: list[float]
    shares: list[float]


class _Reference(msgspec.Struct):
    scores: dict[str, _Distribution]


class _Gate(msgspec.Struct):
    gate: str
    passed: bool


class _Verdict(msgspec.Struct):
    airworthy: bool
    bundle: str
    gates: list[_Gate]


_TYPES: dict[str, Any] = {"contract.json": _Contract, "golden.json": _Golden}
_TYPES |= {"reference.json": _Reference, "gates.json": _Verdict}


@dataclass(frozen=True)
class Release:
    """A verified bundle. `verdict` is the inspection's, or what evaluation alone found, or None; `example` is a golden
    row as a client sends it."""

    name: str
    version: str
    hash: str
    scorer: Scorer
    inputs: Inputs
    lineage: Mapping[str, Any]
    reference: Mapping[str, Any]
    verdict: Mapping[str, Any] | None
    inspected: bool
    example: Mapping[str, Any]
    fallback: Fallback
    folder: Path

    @property
    def contract(self) -> Mapping[str, Any]:
        return self.scorer.contract

    @property
    def airworthy(self) -> bool:
        """Whether an inspection of this very bundle says so."""
        return self.inspected and self.verdict is not None and self.verdict["airworthy"] is True


def load(settings: Settings, features: Features) -> Release:
    """The bundle of the settings, to be scored with `features`; InputError says why it may not be served."""
    try:
        return _load(settings, features)
    except InputError:
        raise
    except Exception as error:  # what a damaged file leads to is up to whoever reads it
        found = f"{type(error).__name__}: {error}"
        raise InputError(f"{settings.model_dir}: expected what training writes, found {found}; {_AGAIN}") from error


def keep(release: Release, folder: Path) -> None:
    """Copy the release to `folder`, in place of the one before, as what to serve where a later one is refused. OSError
    where that cannot be; then the one before stays, and no piece of this one."""
    kept, new = folder / release.hash, folder / f".{release.hash}"
    if not kept.exists():
        shutil.rmtree(new, ignore_errors=True)
        try:
            _copy(release, new)
            new.rename(kept)
        finally:
            shutil.rmtree(new, ignore_errors=True)
    kept.touch()  # the newest is the last that was good
    for other in folder.iterdir():
        if other != kept:
            shutil.rmtree(other)


def _copy(release: Release, new: Path) -> None:
    shutil.copytree(release.folder, new / "bundle")
    if files_hash(folder_files(new / "bundle")) != release.hash:
        raise OSError(f"{release.folder} is another bundle than the one that was loaded from it")
    for name in BESIDE:
        if (told := release.folder.resolve().parent / name).exists():
            (new / name).parent.mkdir(exist_ok=True)
            shutil.copy(told, new / name)


def load_kept(settings: Settings, features: Features, folder: Path) -> Release | None:
    """The release that was kept there, or None; InputError says why it may not be served either."""
    kept = sorted(folder.glob("[!.]*/bundle"), key=lambda bundle: bundle.parent.stat().st_mtime_ns)
    if not kept:
        return None
    return load(settings.model_copy(update={"model_dir": kept[-1], "model_version": None}), features)


def _load(settings: Settings, features: Features) -> Release:
    folder = settings.model_dir
    read = {name: _read(folder / name) for name in FILES}
    contract, golden = read["contract.json"], read["golden.json"]
    _check_task(folder, contract)
    digest = files_hash(folder_files(folder))
    if settings.model_hash not in (None, digest):
        raise InputError(f"{folder}: expected the bundle {settings.model_hash}, got {digest}; {_AGAIN}")
    verdict, inspected = _verdict(folder, digest)
    if settings.inspected:
        _check_airworthy(folder, digest, verdict if inspected else None)
    _check_features(folder, contract, features)
    scorer = _scorer(folder, contract, features)
    inputs = Inputs(contract["inputs"])
    records = [dict(zip(golden["rows"], row, strict=True)) for row in zip(*golden["rows"].values(), strict=False)]
    _check_golden(folder, golden, records, inputs, scorer)
    fallback = Fallback(folder / "baseline.json", scorer)
    if files_hash(folder_files(folder)) != digest:  # else this were a mix of two
        raise InputError(f"{folder}: expected a bundle that stays as it is while it is read, it changed; load it again")
    return Release(
        name=project()["name"],
        version=settings.model_version or digest[:12],
        hash=digest,
        scorer=scorer,
        inputs=inputs,
        lineage=read["lineage.json"],
        reference=read["reference.json"],
        verdict=verdict,
        inspected=inspected,
        example=records[0],
        fallback=fallback,
        folder=folder,
    )


def _read(path: Path) -> dict[str, Any]:
    """What a JSON file holds, without NaN, once it has the form that it must have."""
    try:
        told = msgspec.json.decode(path.read_bytes(), type=dict[str, Any])
        msgspec.convert(told, _TYPES.get(path.name, dict[str, Any]))
    except FileNotFoundError:
        raise InputError(f"{path}: expected a bundle with this file, found none; {_AGAIN}") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: expected the JSON that training writes, got another ({error}); {_AGAIN}") from None
    return told


def _check_task(folder: Path, contract: Mapping[str, Any]) -> None:
    needed = {"binary": "threshold", "multiclass": "classes"}.get(contract["task"])
    if needed and contract[needed] is None:
        raise InputError(f"{folder}/contract.json: expected {needed}: the task is {contract['task']}; {_AGAIN}")


def _verdict(folder: Path, digest: str) -> tuple[Mapping[str, Any] | None, bool]:
    """The best verdict on this bundle, and whether an inspection gave it."""
    for name in ("inspection", "reports"):
        path = folder.resolve().parent / name / "gates.json"
        verdict = _read(path) if path.exists() else {}
        if verdict.get("bundle") == digest:
            return verdict, name == "inspection"
    return None, False


def _check_airworthy(folder: Path, digest: str, verdict: Mapping[str, Any] | None) -> None:
    remedy = "inspect it (`python -m flows.inspect`); SERVING_INSPECTED=0 serves it all the same"
    if verdict is None:
        path = folder.resolve().parent / "inspection" / "gates.json"
        found = f"one of {str(_read(path).get('bundle'))[:12]}" if path.exists() else "none"
        raise InputError(f"{path}: expected an inspection of the bundle {digest[:12]}, found {found}; {remedy}")
    if verdict["airworthy"] is not True:
        failed = ", ".join(gate["gate"] for gate in verdict["gates"] if not gate["passed"])
        raise InputError(f"{folder}: expected an airworthy bundle, {digest[:12]} is grounded by {failed}; {remedy}")


def _check_features(folder: Path, contract: Mapping[str, Any], features: Features) -> None:
    source = Path(inspect.getfile(features))
    expected, own = contract.get("features_hash"), file_hash(source)
    if expected != own:
        raise InputError(
            f"{folder}: the bundle was trained with other features than this service has: expected {expected}, "
            f"{source} is {own}; build an image from the bundle's commit, or train again"
        )


def _scorer(folder: Path, contract: Mapping[str, Any], features: Features) -> Scorer:
    runtime = contract["runtime"]
    if runtime == "sklearn" and find_spec("sklearn") is None:
        raise InputError(
            f"{folder}: the bundle runs on scikit-learn, which is not installed here; use the image that is built "
            "from serving/requirements-sklearn.lock"
        )
    try:
        return Scorer.load(folder, features)
    except InputError:
        raise
    except Exception as error:  # what a damaged file raises is up to its library
        path = folder / MODEL_FILES.get(runtime, "model.onnx")
        raise InputError(f"{path}: expected a model, cannot load it ({type(error).__name__}); {_AGAIN}") from error


def _check_golden(
    folder: Path, golden: Mapping[str, Any], records: list[dict[str, Any]], inputs: Inputs, scorer: Scorer
) -> None:
    path, expected = folder / "golden.json", np.array(golden["scores"], dtype="float64")
    lengths = {name: len(values) for name, values in golden["rows"].items()}
    if not records or set(lengths.values()) != {len(expected)}:
        raise InputError(f"{path}: expected as many rows as its {len(expected)} scores, got {lengths}; {_AGAIN}")
    try:
        rows = inputs.decode(msgspec.json.encode({"rows": records}), len(records))
    except RowError as error:
        raise InputError(f"{path}: expected rows that the contract allows; {error}; {_AGAIN}") from error
    made = scorer.score(inputs.arrays(rows))
    if made.shape != expected.shape:
        raise InputError(f"{path}: expected scores of shape {expected.shape}, the model gives {made.shape}; {_AGAIN}")
    scale = np.maximum(1, np.abs(expected)) if scorer.contract["task"] == "regression" else 1.0
    gap = float(np.max(np.abs(made - expected) / scale))
    if not gap <= TOLERANCE:
        raise InputError(
            f"{path}: expected the scores that training gave, within {TOLERANCE}; here they differ by {gap}: another "
            f"model, or other versions of its libraries; {_AGAIN}"
        )
