"""What is known of each column of the raw table, read from the problem's pandera model. Change here to teach the
contract a new kind of column or a new role."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import timedelta
from functools import cached_property
from typing import Any, Literal, get_args

import pandas as pd
import pandera.pandas as pa

Role = Literal["feature", "target", "time", "observed_at", "key", "entity", "slice", "sensitive", "ignored"]
Known = Literal["before", "after"]
Kind = Literal["number", "integer", "boolean", "category", "time"]
Task = Literal["binary", "multiclass", "regression"]

_KINDS: dict[str, Kind] = {"f": "number", "i": "integer", "u": "integer", "b": "boolean", "M": "time", "O": "category"}


def column(
    description: str,
    *,
    roles: Sequence[Role],
    known: Known = "before",
    unit: str | None = None,
    open_categories: bool = False,
    observed_at: str | None = None,
    spans: Mapping[str, float] | None = None,
    **checks: Any,
) -> Any:
    """Describe one column of the raw table; `checks` are those of `pandera.Field` (ge, le, isin, nullable).

    A category is closed where `isin` lists its values, and otherwise must say `open_categories=True`: values never
    seen before are then kept and counted. `observed_at` names the column that holds when this one was observed.
    `spans` names stretches of a number by where each begins ({"night": 0, "day": 360}), for slices and groups; those of
    a number with many values and no spans are its quarters.
    """
    described = {
        "roles": tuple(roles),
        "known": known,
        "unit": unit,
        "open": open_categories,
        "observed_at": observed_at,
        "spans": spans,
    }
    return pa.Field(description=description, metadata=described, **checks)


@dataclass(frozen=True)
class Column:
    """One column of the raw table."""

    name: str
    kind: Kind
    description: str
    roles: tuple[Role, ...]
    known: Known
    unit: str | None
    nullable: bool
    minimum: float | None
    maximum: float | None
    categories: tuple[str, ...] | None  # of a closed category
    observed_at: str | None
    spans: Mapping[str, float] | None


@dataclass(frozen=True)
class Contract:
    """The raw table: `grain` says what a row is, `noun` what rows are called, `lead` how long before the row's time
    the prediction is made."""

    grain: str
    noun: str
    lead: timedelta
    columns: tuple[Column, ...]
    schema: pa.DataFrameSchema

    @classmethod
    def of(cls, model: type[pa.DataFrameModel], *, noun: str, lead: timedelta = timedelta(0)) -> "Contract":
        """Read the contract out of a pandera model; ValueError names a column that is not described, or not rightly."""
        schema = model.to_schema()
        columns = tuple(_column(str(name), field) for name, field in schema.columns.items())
        grain = (model.__doc__ or "").strip()
        contract = cls(grain=grain, noun=noun, lead=lead, columns=columns, schema=schema)
        _ = contract.target  # stands once
        for column in columns:
            contract._check(column)
        return contract

    def only(self, names: Collection[str]) -> "Contract":
        """The same contract for a table that has but these of its columns, without the rules for the whole table."""
        kept = tuple(c for c in self.columns if c.name in names)
        schema = self.schema.select_columns([c.name for c in kept])
        schema.checks = []
        return replace(self, columns=kept, schema=schema)

    def having(self, role: Role) -> tuple[Column, ...]:
        """The columns that have a role, in the order of the table."""
        return tuple(c for c in self.columns if role in c.roles)

    @cached_property
    def inputs(self) -> tuple[Column, ...]:
        """The columns that a client sends: what features may read."""
        return tuple(c for c in self.columns if "feature" in c.roles and c.known == "before")

    @cached_property
    def target(self) -> Column:
        targets = self.having("target")
        if len(targets) != 1:
            raise ValueError(f"expected one column with the role 'target', found {[c.name for c in targets]}")
        return targets[0]

    @cached_property
    def time(self) -> Column | None:
        times = self.having("time")
        if len(times) > 1:
            raise ValueError(f"expected at most one column with the role 'time', found {[c.name for c in times]}")
        return times[0] if times else None

    def _check(self, column: Column) -> None:
        """Refuse a column whose description contradicts itself, or the other columns'."""
        name, roles = column.name, column.roles
        if column == self.time and column.kind != "time":
            raise ValueError(f"'{name}' has the role time: expected it to hold times, its kind is {column.kind}")
        if "feature" in roles and (column == self.target or column.known == "after"):
            raise ValueError(f"'{name}' is the target, or known only afterwards: it cannot have the role feature")
        if "observed_at" in roles and (self.time is None or column.kind != "time"):
            raise ValueError(f"'{name}' has the role observed_at: it must hold times, and another column the role time")
        if column.observed_at and column.observed_at not in [c.name for c in self.having("observed_at")]:
            raise ValueError(
                f"'{name}' is observed_at '{column.observed_at}', which no column with that role is called"
            )

    @cached_property
    def keys(self) -> list[str]:
        return [c.name for c in self.having("key")]

    @property
    def task(self) -> Task:
        """What kind of problem this is: a boolean target is binary, a category multiclass, a number regression."""
        kinds: dict[Kind, Task] = {"boolean": "binary", "category": "multiclass"}
        return kinds.get(self.target.kind, "regression")


def _column(name: str, field: pa.Column) -> Column:
    described: Mapping[str, Any] = field.metadata or {}
    if not described.get("roles") or not field.description:
        raise ValueError(f"column '{name}' has no description or role; declare it with pipeline.contract.column")
    unknown = set(described["roles"]) - set(get_args(Role))
    if unknown:
        raise ValueError(f"column '{name}' has the unknown role {sorted(unknown)}; roles are {get_args(Role)}")
    if described["known"] not in get_args(Known):
        raise ValueError(f"column '{name}' is known '{described['known']}'; expected one of {get_args(Known)}")
    dtype = pd.api.types.pandas_dtype(field.dtype.type)
    if dtype.kind not in _KINDS:
        raise ValueError(f"column '{name}' is of type {dtype}; expected a number, a boolean, a time or text")
    kind = _KINDS[dtype.kind]
    limits = {key: value for check in field.checks for key, value in check.statistics.items()}
    limited = kind in ("number", "integer")
    categories = tuple(limits["allowed_values"]) if kind == "category" and "allowed_values" in limits else None
    if kind == "category" and (categories is None) != described["open"]:
        raise ValueError(f"category '{name}': expected either closed (isin=[...]) or open_categories=True")
    return Column(
        name=name,
        kind=kind,
        description=str(field.description),
        roles=described["roles"],
        known=described["known"],
        unit=described["unit"],
        nullable=field.nullable,
        minimum=limits.get("min_value") if limited else None,
        maximum=limits.get("max_value") if limited else None,
        categories=categories,
        observed_at=described["observed_at"],
        spans=described["spans"],
    )
