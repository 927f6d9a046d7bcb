"""The raw table verified, turned into features, and split. Change here to split otherwise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import pandas as pd
from pydantic import Field
from sklearn.model_selection import GroupShuffleSplit, train_test_split

from pipeline.contract import Contract
from pipeline.errors import InputError
from pipeline.featurize import featurize
from pipeline.leaks import check_single_features
from pipeline.params import Params, Seed
from pipeline.prepared import FEATURE, SPLITS, features_of
from pipeline.quality import quality_report
from pipeline.scoring import Features
from pipeline.verify import describe, violations


class TimeSplit(Params):
    """By time: each split runs from its own month or date (UTC) to the next one's."""

    method: Literal["time"]
    train_from: str
    validation_from: str
    test_from: str
    test_until: str


class RandomSplit(Params):
    """At random, stratified by the target where it has classes; or by group: the rows that share a value of the
    contract's entity column stay together, and the shares are of groups."""

    method: Literal["random", "group"]
    validation_share: float = Field(gt=0, lt=1)
    test_share: float = Field(gt=0, lt=1)
    seed: Seed


class PreprocessParams(Params):
    """What `preprocess` may be told."""

    split: Annotated[TimeSplit | RandomSplit, Field(discriminator="method")]
    suspicious_score: float = Field(gt=0, le=1)


class Prepared(NamedTuple):
    """One table per split, each row a raw row with its features (`feature.<name>`), and the quality report."""

    train: pd.DataFrame
    validation: pd.DataFrame
    test: pd.DataFrame
    quality: dict[str, Any]


def preprocess(
    table: pd.DataFrame,
    *,
    contract: Contract,
    features: Features,
    params: PreprocessParams,
    locations: Sequence[tuple[Path, int]],
    quarantined: Mapping[str, Mapping[str, int]],
) -> Prepared:
    """Split a raw table into prepared ones; rows whose outcome is unknown are left out, and counted.

    InputError where a row breaks the contract, a column is empty, a split has no rows or not every class, or a single
    feature all but gives the target away. `locations` are the files behind the table, `quarantined` what ingest
    refused, per period and reason.
    """
    found = violations(table, contract)
    if len(found):
        raise InputError(describe(found, table, locations))
    _check_not_empty(table)
    labels = _split(table[_split_columns(contract)].dropna(subset=contract.target.name), contract, params.split)
    splits = {name: _prepare(table.loc[labels.index[labels == name]], contract, features) for name in SPLITS}
    _check_splits(splits, contract)
    empty = [name for name, values in features_of(splits["train"]).items() if values.isna().all()]
    if empty:
        raise InputError(
            f"the train split: expected values of every feature, got none of {empty} in {len(splits['train']):,} rows; "
            "move the periods of preprocess.split in params.yaml, or remove the feature"
        )
    check_single_features(
        features_of(splits["train"]), splits["train"][contract.target.name], contract.task, params.suspicious_score
    )
    return Prepared(**splits, quality=quality_report(table, contract, splits, quarantined))


def _prepare(rows: pd.DataFrame, contract: Contract, features: Features) -> pd.DataFrame:
    target = contract.target.name
    kept = rows[[c.name for c in contract.columns if c.known == "before" and c.name != target]]
    made = featurize(rows, contract, features).add_prefix(FEATURE)
    outcome = rows[target].astype("str" if contract.task == "multiclass" else "float64")
    return pd.concat([kept, made, outcome], axis=1).reset_index(drop=True)


def _check_not_empty(table: pd.DataFrame) -> None:
    empty = [str(name) for name in table if table[name].isna().all()]
    if empty:
        raise InputError(
            f"expected values in every column, but {empty} has none in all {len(table):,} rows; "
            "fix the source, or remove the column from src/problem/schema.py and features.py"
        )


def _split_columns(contract: Contract) -> list[str]:
    """The columns that a split may go by."""
    return [c.name for c in contract.columns if {"time", "target", "entity"} & set(c.roles)]


def _split(known: pd.DataFrame, contract: Contract, split: TimeSplit | RandomSplit) -> pd.Series:
    """The name of each row's split, missing where a row belongs to none."""
    if isinstance(split, TimeSplit):
        return _split_by_time(known, contract, split)
    if split.validation_share + split.test_share >= 1:
        raise InputError(
            f"preprocess.split: expected shares that leave rows to train on, got validation_share "
            f"{split.validation_share} and test_share {split.test_share}; lower them"
        )
    rest, test = _draw(known, contract, split, split.test_share)
    train, validation = _draw(rest, contract, split, split.validation_share / (1 - split.test_share))
    labels = pd.Series(None, index=known.index, dtype="str")
    for name, rows in zip(SPLITS, (train, validation, test), strict=True):
        labels[rows.index] = name
    return labels


def _split_by_time(known: pd.DataFrame, contract: Contract, split: TimeSplit) -> pd.Series:
    if contract.time is None:
        raise InputError(
            "preprocess.split.method is 'time', but no column has the role 'time'; choose 'random' or 'group'"
        )
    given = [split.train_from, split.validation_from, split.test_from, split.test_until]
    try:
        edges = list(pd.to_datetime(given, format="ISO8601", utc=True).tz_localize(None))
    except ValueError as error:
        raise InputError(
            f"preprocess.split: expected months or dates such as '2013-01', got {given}; correct it"
        ) from error
    if edges != sorted(set(edges)):
        raise InputError(
            f"preprocess.split: expected each period to begin after the one before, got {given}; correct it"
        )
    return pd.cut(known[contract.time.name], edges, right=False, labels=list(SPLITS)).astype("str")


def _draw(
    rows: pd.DataFrame, contract: Contract, split: RandomSplit, share: float
) -> tuple[pd.DataFrame, pd.DataFrame]:
    try:
        if split.method == "random":
            stratify = None if contract.task == "regression" else rows[contract.target.name].astype("str")
            first, second = train_test_split(rows, test_size=share, random_state=split.seed, stratify=stratify)
            return first, second
        drawn = GroupShuffleSplit(n_splits=1, test_size=share, random_state=split.seed)
        kept, held_out = next(drawn.split(rows, groups=_groups(rows, contract)))
        return rows.iloc[kept], rows.iloc[held_out]
    except ValueError as error:  # too few rows, groups or members of a class
        raise InputError(
            f"preprocess.split: expected rows enough for all splits, got {len(rows):,} ({error}); change the shares"
        ) from error


def _groups(rows: pd.DataFrame, contract: Contract) -> pd.Series:
    entities = contract.having("entity")
    if len(entities) != 1:
        raise InputError(
            "preprocess.split.method is 'group': expected one column with the role 'entity', found "
            f"{[c.name for c in entities]}; give it in src/problem/schema.py, or choose 'random'"
        )
    return rows[entities[0].name].astype("str").fillna("")


def _check_splits(splits: Mapping[str, pd.DataFrame], contract: Contract) -> None:
    remedy = "move the periods or shares of preprocess.split in params.yaml"
    if not all(map(len, splits.values())):
        rows = {name: len(split) for name, split in splits.items()}
        raise InputError(f"expected rows in every split, got {rows}; {remedy}")
    if contract.task == "regression":
        return
    target = contract.target.name
    present = {name: set(rows[target]) for name, rows in splits.items()}
    classes = sorted(set.union(*present.values()))
    least, wanted = 2, f"two classes of '{target}'"
    if contract.task == "multiclass":
        least, wanted = 3, f"three classes of '{target}' (a target of two is declared boolean)"
    for name, found in present.items():
        absent = [value for value in classes if value not in found]
        if absent or len(classes) < least:
            raise InputError(
                f"the {name} split: expected at least {wanted}, and all that any split has ({classes}), "
                f"got {sorted(found)} in {len(splits[name]):,} rows; {remedy}, or check the target"
            )
