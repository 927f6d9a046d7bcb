"""A second bundle beside the one that serves: compared out of band, or answering a share. Change here to compare them
otherwise."""

from collections.abc import Callable, Mapping
from hashlib import blake2b
from queue import SimpleQueue
from threading import Thread
from typing import Any, Protocol

import numpy as np
from prometheus_client import CollectorRegistry, Counter

from pipeline.errors import InputError
from pipeline.scoring import TOLERANCE, Columns
from serving.breaker import check_scores
from serving.protocols import labels
from serving.telemetry import Distribution

Contract = Mapping[str, Any]

_DIFFERENCES = (TOLERANCE, 0.001, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0)
_MOST_BATCHES, _MOST_ROWS = 64, 20_000  # that wait: some ten megabytes
_STOP_S = 2.0


class Told(Protocol):
    """Who counts what a shadow finds; called by its thread, `dropped` by the one that offers."""

    def compared(self, differences: np.ndarray, changed: int) -> None: ...

    def failed(self) -> None: ...

    def dropped(self, rows: int) -> None: ...


class Shadow:
    """A challenger that scores what the champion has scored, in a thread of its own, and that no client sees."""

    def __init__(
        self, score: Callable[[Columns], np.ndarray], told: Told, *, champion: Contract, challenger: Contract
    ) -> None:
        """`champion` and `challenger` are the contracts; InputError where the two cannot be compared."""
        check_comparable(champion, challenger)
        self._score, self._told = score, told
        self._contracts = champion, challenger
        self._waiting: SimpleQueue[tuple[Columns, np.ndarray] | None] = SimpleQueue()
        self._rows_in = self._rows_out = 0  # each is written by one thread alone
        self._stopping = False
        self._thread = Thread(target=self._work, name="shadow", daemon=True)
        self._thread.start()

    def offer(self, columns: Columns, scores: np.ndarray) -> None:
        """Hand over rows and the champion's scores [n, k]; drop them where too much waits already. Never blocks."""
        rows = len(scores)
        if self._waiting.qsize() >= _MOST_BATCHES or self._rows_in - self._rows_out >= _MOST_ROWS:
            self._told.dropped(rows)
            return
        self._rows_in += rows
        self._waiting.put((columns, scores))

    def stop(self) -> None:
        """End; what waits is forgotten, and a challenger that hangs is left behind."""
        self._stopping = True
        self._waiting.put(None)
        self._thread.join(_STOP_S)

    def _work(self) -> None:
        while (batch := self._waiting.get()) is not None and not self._stopping:
            try:
                self._compare(*batch)
            except Exception:  # whatever a bundle on trial does
                self._told.failed()
            self._rows_out += len(batch[1])

    def _compare(self, columns: Columns, scores: np.ndarray) -> None:
        champion, challenger = self._contracts
        others = self._score(columns)
        if others.shape != scores.shape or check_scores(others, challenger):
            self._told.failed()
            return
        decided = labels(scores, champion, champion["threshold"]) or []
        otherwise = labels(others, challenger, challenger["threshold"]) or []
        changed = sum(one != other for one, other in zip(decided, otherwise, strict=True))
        self._told.compared(np.abs(others - scores).max(axis=1), changed)


def check_comparable(champion: Contract, challenger: Contract) -> None:
    """InputError unless both contracts take the same columns and answer the same question. Which values a column may
    have is for the champion to say, who lets the rows in."""
    for name in ("task", "target", "classes"):
        if champion[name] != challenger[name]:
            raise _other(f"{name} {champion[name]}, got {challenger[name]}")
    ours, theirs = (
        {(entry["name"], entry["kind"], entry["unit"], entry["nullable"]) for entry in contract["inputs"]}
        for contract in (champion, challenger)
    )
    if ours != theirs:
        raise _other(
            f"inputs; other in kind or unit, or missing in one: {sorted({name for name, *_ in ours ^ theirs})}"
        )


def _other(found: str) -> InputError:
    return InputError(f"the challenger's contract: expected the champion's {found}; serve it in a container of its own")


def in_canary(key: bytes, share: float, salt: bytes) -> bool:
    """Whether a key belongs to the share of the challenger: always the same answer, and a larger share holds the
    smaller. Another salt draws anew.

    By BLAKE2b rather than CRC-32, which is linear: another salt would flip the same bits of every key's checksum, and
    give half of the keys the same half again, or its complement.
    """
    drawn = int.from_bytes(blake2b(salt + key, digest_size=8).digest(), "big")
    return drawn < share * 2.0**64


class ChallengerMetrics:
    """Champion against challenger, for Prometheus. `spread` is how far scores lie apart: 1 for probabilities."""

    def __init__(self, registry: CollectorRegistry, *, spread: float = 1) -> None:
        self._rows = Counter("serving_challenger_rows", "Rows that both scored", registry=registry)
        self._failures = Counter("serving_challenger_failures", "Failed calls of the challenger", registry=registry)
        self._changed = Counter("serving_challenger_changed", "Decisions that differ", registry=registry)
        self._dropped = Counter("serving_shadow_dropped", "Rows that the shadow had no time for", registry=registry)
        self._differences = Distribution(
            "serving_challenger_difference",
            "How far the scores of champion and challenger lie apart; of several classes the farthest",
            [edge * spread for edge in _DIFFERENCES],
        )
        registry.register(self._differences)

    def compared(self, differences: np.ndarray, changed: int) -> None:
        """Count rows by the difference of their scores, shape [n], and the decisions that changed."""
        self._rows.inc(len(differences))
        self._changed.inc(changed)
        self._differences.observe(differences)

    def failed(self) -> None:
        """Count a call that raised, or gave no scores."""
        self._failures.inc()

    def dropped(self, rows: int) -> None:
        """Count rows that were not compared."""
        self._dropped.inc(rows)
