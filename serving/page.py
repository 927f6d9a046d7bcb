"""The page for the people who own the model: what it is, how it does, and a form that scores one row. Change here to
show them more; words and layout stand in templates/.

It needs no script, and asks for nothing but itself. What a contract or a client says is text there, never markup.
"""

import math
import re
from base64 import b64encode
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache, lru_cache
from hashlib import sha256
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import parse_qsl

import numpy as np
from prometheus_client import CollectorRegistry

from serving.release import Release
from serving.rows import Column, Inputs, RowError, WrongValue

if TYPE_CHECKING:
    from jinja2 import Environment

_FOLDER = Path(__file__).parent / "templates"
_STYLE = (_FOLDER / "style.css").read_text()
_MOST = 10_000  # fields of a form
_MINUTE = re.compile(r"\d{4,}-\d\d-\d\dT\d\d:\d\d")  # what a browser sends of a time without seconds
_MILLISECOND = len("2026-01-31T12:00:00.000")  # it knows no finer time
_EXACT = 1e15  # up to here a whole number is written out
CSP = (
    f"default-src 'none'; style-src 'sha256-{b64encode(sha256(_STYLE.encode()).digest()).decode()}'; img-src data:; "
    "form-action 'self'; frame-src 'self'; frame-ancestors 'self'; base-uri 'none'"
)


class Field(NamedTuple):
    """One input of the contract as the form asks for it: by a name of its own, since a column may have any."""

    name: str
    column: Column
    entry: Mapping[str, Any]
    value: str
    error: WrongValue | None
    unseen: bool

    @property
    def choices(self) -> list[str] | None:
        """What may be chosen, with what has been entered; None where it is typed."""
        if self.column.kind != "boolean" and (self.column.kind != "category" or self.column.open):
            return None
        known = self.column.categories or ("true", "false")
        return list(dict.fromkeys([*([""] if self.column.nullable else []), *known, self.value]))


class Bar(NamedTuple):
    """The share of scores up to an edge, beside that of training where it is known."""

    edge: float
    share: float
    expected: float | None


@dataclass(frozen=True)
class Figures:
    """What the service has done since its start, as its metrics have it."""

    samples: Mapping[str, Sequence[tuple[Mapping[str, str], float]]]
    bars: Sequence[Bar]

    @classmethod
    def read(cls, registry: CollectorRegistry, reference: Mapping[str, Any]) -> "Figures":
        """The figures of now; `reference` is the bundle's."""
        samples = defaultdict(list)
        for family in registry.collect():
            for sample in family.samples:
                samples[sample.name].append((sample.labels, sample.value))
        return cls(samples, _bars(samples.get("serving_scores_bucket", []), reference["scores"].get("score")))

    def total(self, name: str) -> float:
        """A metric over all its labels; 0 where there is none of that name."""
        return sum(value for _, value in self.samples.get(name, ()))

    def by(self, name: str, label: str) -> dict[str, float]:
        """A metric by the values of a label, the most first, and none that is 0."""
        found: dict[str, float] = defaultdict(float)
        for labels, value in self.samples.get(name, ()):
            found[labels[label]] += value
        return {key: value for key, value in sorted(found.items(), key=lambda item: -item[1]) if value}

    def mean(self, name: str) -> float | None:
        """The mean of a histogram."""
        count = self.total(f"{name}_count")
        return self.total(f"{name}_sum") / count if count else None

    @property
    def requests(self) -> float:
        """How many asked for scores."""
        return sum(count for route, count in self.by("serving_requests_total", "route").items() if _scores(route))

    @property
    def errors(self) -> dict[str, float]:
        """How many requests were answered with each status from 400 on."""
        answered = self.by("serving_requests_total", "status")
        return {status: count for status, count in answered.items() if status >= "400"}

    def quantile_s(self, share: float) -> float | None:
        """How long that share of the requests for scores took at most: linear within a bucket, as Prometheus has it."""
        counts: dict[float, float] = defaultdict(float)
        for labels, value in self.samples.get("serving_request_seconds_bucket", ()):
            if _scores(labels["route"]):
                counts[float(labels["le"])] += value
        edges = [0.0, *sorted(counts)]
        cumulated = [0.0, *map(counts.__getitem__, edges[1:])]
        if not cumulated[-1]:
            return None
        rank = share * cumulated[-1]
        place = bisect_left(cumulated, rank)
        low, high = edges[place - 1 : place + 1]
        part = (rank - cumulated[place - 1]) / (cumulated[place] - cumulated[place - 1])
        return low if math.isinf(high) else low + (high - low) * part


def page(
    release: Release,
    *,
    filled: Mapping[str, str] | None = None,
    answer: Mapping[str, Any] | None = None,
    errors: Sequence[WrongValue] = (),
    detail: str | None = None,
    asks_key: bool = False,
    card: str | None = None,
) -> bytes:
    """The page. The form holds what was `filled` in, else the release's example; `answer` is what `/predict` said to
    it, `errors` and `detail` why it said nothing."""
    if filled is None:
        filled = {name: _text(release.example.get(column.name)) for name, column in _named(release.inputs)}
    wrong = {error.column: error for error in reversed(errors)}
    unseen = {each["column"] for each in answer["unseen"]} if answer else set()
    fields = [
        Field(name, column, entry, filled.get(name, ""), wrong.pop(column.name, None), column.name in unseen)
        for (name, column), entry in zip(_named(release.inputs), release.contract["inputs"], strict=True)
    ]
    title, glance = _summary(card) if card else (release.name, "")
    shown = {"title": title, "glance": glance, "fields": fields, "others": [*wrong.values()]}
    return _rendered("page.html", release, **shown, answer=answer, detail=detail, asks_key=asks_key)


def figures_page(figures: Figures, release: Release) -> bytes:
    """The live figures, which renew themselves."""
    return _rendered("figures.html", release, figures=figures)


def card_page(card: str, release: Release) -> bytes:
    """The model card."""
    return _rendered("card.html", release, title=_summary(card)[0], card=_markup(card))


def read_card(folder: Path, digest: str) -> str | None:
    """The model card beside a bundle's folder, where it is of the bundle with this hash."""
    path = folder.resolve().parent / "reports" / "card.md"
    card = path.read_text("utf-8", "replace") if path.is_file() else ""
    return card if digest in card else None


def form_fields(body: bytes) -> dict[str, str]:
    """The fields of a form that a browser sent as `application/x-www-form-urlencoded`."""
    try:
        text, strict = body.decode("ascii"), bool(body)
        return dict(
            parse_qsl(text, strict_parsing=strict, keep_blank_values=True, errors="strict", max_num_fields=_MOST)
        )
    except ValueError:
        raise RowError("expected the fields of a form, as a browser sends them") from None


def record(inputs: Inputs, form: Mapping[str, str]) -> dict[str, Any]:
    """The row that `/predict` would get for a filled form; what does not fit is left as it was entered, and what is
    empty where it may not be is left out."""
    texts = {column: form.get(name, "") for name, column in _named(inputs)}
    return {column.name: _value(column, text) for column, text in texts.items() if text or column.nullable}


def _named(inputs: Inputs) -> Iterator[tuple[str, Column]]:
    return ((f"c{place}", column) for place, column in enumerate(inputs.columns))


def _value(column: Column, text: str) -> Any:
    if text == "":
        return None
    if column.kind == "boolean":
        return {"true": True, "false": False}.get(text, text)
    if column.kind == "time":
        return text + ":00" if _MINUTE.fullmatch(text) else text
    if column.kind == "category":
        return text
    try:
        number = float(text)
    except ValueError:
        return text
    return number if math.isfinite(number) else text


def _text(value: Any) -> str:
    match value:
        case None:
            return ""
        case bool():
            return str(value).lower()
        case float() if value.is_integer() and abs(value) < _EXACT:
            return str(int(value))
    return str(value)


def _bars(buckets: Sequence[tuple[Mapping[str, str], float]], training: Mapping[str, Any] | None) -> list[Bar]:
    """The shares of scores per bucket, and those of training: exact where its edges are the same, else as if scores
    were spread evenly between them."""
    edges, counts = [float(labels["le"]) for labels, _ in buckets], [value for _, value in buckets]
    if not edges or not counts[-1]:
        return []
    shares = np.diff(counts, prepend=0) / counts[-1]
    expected: Sequence[float | None] = [None] * len(edges)
    if training and training["edges"]:
        known = np.array(training["edges"])
        ends = [min(0, known[0]), *known, max(1, np.nextafter(known[-1], np.inf))]
        expected = np.diff(np.interp(edges, ends, [0, *np.cumsum(training["shares"])]), prepend=0).tolist()
    bars = list(map(Bar, edges, shares.tolist(), expected))
    return bars if bars[-1].share or (bars[-1].expected or 0) > 1e-9 else bars[:-1]


def _scores(route: str) -> bool:
    return route in ("/predict", "/invocations") or route.endswith("/infer")


def _rendered(template: str, release: Release, **known: Any) -> bytes:
    common = {"release": release, "contract": release.contract, "verdict": _verdict(release)}
    return _templates().get_template(template).render(common | known).encode()


def _verdict(release: Release) -> str:
    if release.airworthy:
        return "airworthy"
    refused = release.verdict is not None and release.verdict["airworthy"] is not True
    return "grounded" if refused else "not inspected"


@cache
def _templates() -> "Environment":
    from jinja2 import Environment, FileSystemLoader, StrictUndefined  # only here: who scores never waits for it

    loader = FileSystemLoader(_FOLDER)
    made = Environment(loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True)
    made.filters |= {"short": short, "text": _text, "words": words, "phrase": phrase, "ms": ms, "moment": moment}
    made.globals |= {"style": _STYLE, "ceil": math.ceil, "floor": math.floor, "finest": _MILLISECOND}
    return made


def short(value: float) -> str:
    """A figure as one reads it."""
    size = abs(value)
    return f"{value:,.0f}" if size < _EXACT and (size >= 1000 or value == int(value)) else f"{value:.3g}"


def words(name: str) -> str:
    """A name as words."""
    return name.replace("_", " ")


def phrase(status: str) -> str:
    """What an HTTP status says."""
    return {str(int(known)): known.phrase.lower() for known in HTTPStatus}.get(status, "the client left")


def ms(seconds: float) -> str:
    """Seconds in milliseconds."""
    return f"{1000 * seconds:,.2g} ms" if seconds < 0.01 else f"{1000 * seconds:,.0f} ms"


def moment(seconds: float) -> str:
    """A Unix time as a date and a time of day."""
    return f"{datetime.fromtimestamp(seconds, UTC):%d %B %Y, %H:%M} UTC"


def _summary(card: str) -> tuple[str, str]:
    """A card's title, and its first table, which says the most in few words."""
    title, table = re.search(r"(?m)^# (?:Model card: )?(.+)$", card), re.search(r"(?m)^(?:\|.*\n)+", card)
    return title[1] if title else "Model card", _markup(table[0]) if table else ""


@lru_cache(4)
def _markup(card: str) -> str:
    """Markdown as HTML; what is HTML in it is shown as text."""
    from markdown_it import MarkdownIt  # only here, as above

    return str(MarkdownIt("commonmark", {"html": False}).enable("table").disable("image").render(card))
