"""A release that answers, and what answers where its model does not."""

import asyncio
import gc
import json
import threading
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from pipeline.journal import read_predictions
from pipeline.scoring import Scorer
from serving.live import Entry, Request
from serving.protocols import Call
from tests.serving.made import Bundle, Service, problem

Made = Callable[[str], Bundle]


def scores_by(service: Service, monkeypatch: pytest.MonkeyPatch, score: Callable[[Any], Any]) -> None:
    """Let a function stand in for the model."""
    monkeypatch.setattr(type(service.release.scorer), "score", lambda _scorer, columns, *_: score(columns))


def fails(_columns: Any) -> Any:
    raise ValueError("marker-x is in row 7")


def logged(service: Service) -> list[Any]:
    return list(read_predictions(service.data / "log"))


def test_a_model_that_raises_is_stood_in_for_by_the_baseline(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle)
    before = service.predict(bundle.rows(2)).json()
    scores_by(service, monkeypatch, fails)
    answer = service.predict(bundle.rows(2))
    after = answer.json()
    assert (before["source"], after["source"]) == ("model", "baseline")
    assert after["scores"] != before["scores"]
    threshold = bundle.read("baseline.json")["simple"]["threshold"]
    assert after["labels"] == [score >= threshold for score in after["scores"]]
    assert "marker-x" not in answer.text
    told = [line for line in service.lines() if line["event"] == "model failed"]
    assert [line["error"] for line in told] == ["ValueError"]
    assert "marker-x" not in str(told)
    assert service.metric("serving_answers_total", source="baseline") == 1
    assert service.metric("serving_model_failures_total", reason="raised") == 1
    assert [entry.source for entry in logged(service)] == ["model", "model", "baseline", "baseline"]


@pytest.mark.parametrize(("score", "reason"), [(np.nan, "not_finite"), (np.inf, "not_finite"), (1.5, "out_of_range")])
def test_scores_that_can_be_none_are_never_an_answer(
    made: Made, monkeypatch: pytest.MonkeyPatch, score: float, reason: str
) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle)
    scores_by(service, monkeypatch, lambda columns: np.full((len(columns["cycles"]), 1), score))
    assert service.predict(bundle.rows(1)).json()["source"] == "baseline"
    assert service.metric("serving_model_failures_total", reason=reason) == 1


@pytest.mark.parametrize("task", ["binary", "multiclass", "regression"])
def test_the_baseline_answers_in_every_form_for_every_task(made: Made, task: str) -> None:
    bundle = made(f"{task}-onnx")
    service = Service(bundle, SERVING_KILLED="1")
    assert service.predict(bundle.rows(3)).json()["source"] == "baseline"
    assert service.post("/invocations", json={"dataframe_records": bundle.rows(3)}).status_code == 200
    assert {entry.source for entry in logged(service)} == {"baseline"}


def test_one_bad_request_of_many_is_alone_in_having_no_model(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle)

    def score(columns: Any) -> np.ndarray:
        return fails(columns) if (columns["cycles"] == 77).any() else np.full((len(columns["cycles"]), 1), 0.5)

    scores_by(service, monkeypatch, score)
    rows = [bundle.rows(1)[0] | {"cycles": cycles} for cycles in (1, 77, 2, 3)]
    answers = service.requests([("POST", "/predict", {"json": {"rows": [row]}}) for row in rows])
    assert [answer.json()["source"] for answer in answers] == ["model", "baseline", "model", "model"]
    assert service.metric("serving_model_failures_total", reason="raised") == 1


def test_a_model_that_fails_too_often_is_no_longer_asked_until_probes_pass(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle, SERVING_BREAKER_COOLDOWN_S="0.2")
    calls = []

    def score(columns: Any) -> Any:
        calls.append(len(columns["cycles"]))
        return fails(columns)

    with monkeypatch.context() as failing:
        scores_by(service, failing, score)
        sources = {service.predict(bundle.rows(1)).json()["source"] for _ in range(30)}
    assert sources == {"baseline"}
    assert len(calls) < 20
    assert service.metric("serving_breaker_open") == 1
    assert "baseline answers" in service.get("/health/ready").json()["details"][0]
    deadline = time.monotonic() + 60
    while service.predict(bundle.rows(1)).json()["source"] == "baseline" or service.metric("serving_breaker_open"):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    assert service.get("/health/ready").json()["details"] == []


@pytest.mark.parametrize("name", ["binary-onnx", "binary-sklearn"])
def test_a_model_that_hangs_delays_nobody_beyond_its_budget(
    made: Made, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    bundle, go = made("binary-onnx"), threading.Event()
    service = Service(bundle, SERVING_MODEL_BUDGET_S="0.1", SERVING_BREAKER_WINDOW="10")
    if name == "binary-sklearn":
        live = service.edge.service.live
        live._onnx = live._inline = False  # in a thread, as scikit-learn is
    rows = bundle.rows(1) * (1 if name == "binary-sklearn" else 201)  # ONNX is called in a thread for many rows

    def score(columns: Any) -> Any:
        go.wait(60)
        return fails(columns)

    scores_by(service, monkeypatch, score)
    try:
        assert [service.predict(rows).json()["source"] for _ in range(12)] == ["baseline"] * 12
        assert service.metric("serving_model_failures_total", reason="slow") == 5  # half of the window
        assert service.metric("serving_breaker_open") == 1
    finally:
        go.set()


def test_an_answer_that_was_slow_is_given_and_counted(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle, SERVING_MODEL_BUDGET_S="0.01")

    def score(columns: Any) -> np.ndarray:
        time.sleep(0.02)
        return np.full((len(columns["cycles"]), 1), 0.5)

    scores_by(service, monkeypatch, score)
    assert service.predict(bundle.rows(1)).json()["source"] == "model"
    assert service.metric("serving_model_failures_total", reason="slow") == 1


def test_a_person_can_switch_the_model_off_and_on_again(made: Made) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle)
    live = service.edge.service.live
    live.breaker.kill("it looks wrong", "a person")
    assert service.predict(bundle.rows(1)).json()["source"] == "baseline"
    details = service.get("/health/ready").json()["details"]
    assert "it looks wrong" in details[0]
    assert "a person" in details[0]
    live.breaker.revive("a person")
    assert service.predict(bundle.rows(1)).json()["source"] == "model"


def test_the_log_has_what_was_asked_and_answered_in_every_form(made: Made) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle)
    rows = bundle.rows(2)
    answer = service.predict(rows, headers={"x-request-id": "json-1"}).json()
    inputs = [{"name": name, "shape": [2], "datatype": tensor["datatype"], "data": [row[name] for row in rows]}
              for tensor in service.edge.service.live.tensors["inputs"] for name in [tensor["name"]]]  # fmt: skip
    asked = service.post(f"/v2/models/{service.release.name}/infer", json={"inputs": inputs})
    assert asked.status_code == 200, asked.text
    first, second, third, fourth = logged(service)
    assert (first.request_id, first.row, second.row) == ("json-1", 0, 1)
    assert [first.score, second.score] == answer["scores"] == [third.score, fourth.score]
    assert first.model == bundle.hash
    assert set(first.inputs) == set(third.inputs) == set(rows[0])
    assert {name: value for name, value in first.inputs.items() if value is not None} == {
        name: value for name, value in third.inputs.items() if value is not None
    }


def test_many_at_once_are_logged_by_one_write(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle)
    appended = []
    journal = service.edge.service.journal
    append = journal.append
    monkeypatch.setattr(journal, "append", lambda entries: (appended.append(len(entries)), append(entries)))
    service.requests([("POST", "/predict", {"json": {"rows": bundle.rows(1)}})] * 8)
    assert sum(appended) == 8
    assert len(appended) < 8


def test_what_cannot_be_logged_waits_and_predictions_go_on(made: Made) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle)
    (service.data / "log").write_text("a file where the folder should be")
    assert service.predict(bundle.rows(1)).json()["source"] == "model"
    assert service.metric("serving_journal_waiting") == 1
    assert service.metric("serving_journal_failing") == 1
    assert "predictions" in service.get("/health/ready").json()["details"][0]
    document = problem(service.post("/feedback", json={"outcomes": [{"request_id": "a", "outcome": True}]}), 503)
    assert "again" in document["detail"]
    (service.data / "log").unlink()
    service.edge.service.close()
    assert len(logged(service)) == 1


def test_outcomes_are_joined_to_predictions(made: Made) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle)
    early = {"outcomes": [{"request_id": "later", "row": 1, "outcome": True}]}
    assert service.post("/feedback", json=early).json() == {"kept": 1}
    service.predict(bundle.rows(2), headers={"x-request-id": "later"})
    assert [entry.outcome for entry in logged(service)] == [None, True]
    service.post("/feedback", json={"outcomes": [{"request_id": "later", "row": 1, "outcome": False}]})
    assert [entry.outcome for entry in logged(service)] == [None, False]
    wrong = problem(service.post("/feedback", json={"outcomes": [{"request_id": "later", "outcome": "yes"}]}), 422)
    assert wrong["errors"][0]["column"] == "outcome"


@pytest.mark.parametrize(
    "form",
    [
        '{{"rows": {last}}}',
        ' \t{{ "rows"\t:\r{last} }} \r',
        '\n{{"rows":\n{last}\n}}\n',
        '{{"\\u0072ows": {last}}}',
        '{{"rows": {first}, "rows": {last}}}',
        '{{"rows": {first}, "\\u0072ows": {last}}}',
        '{{"\\u0072ows": {first}, "rows": {last}}}',
        '{{"rows": [{{"cycles": {{"marker": 1}}, {rest}]}}',
    ],
)
def test_many_rows_are_logged_as_they_were_scored_however_the_client_wrote_them(made: Made, form: str) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle)
    first, last = bundle.rows()[:1] * 300, bundle.rows()[1:] * 10
    body = form.format(first=json.dumps(first), last=json.dumps(last), rest=json.dumps(last)[2:-1])
    scores = service.post("/predict", content=body, headers={"content-type": "application/json"}).json()["scores"]
    assert [entry.inputs for entry in logged(service)] == last
    assert [entry.score for entry in logged(service)] == scores
    (segment,) = (service.data / "log").glob("predictions-*")
    text = segment.read_text()
    assert text.splitlines() == [text.rstrip("\n")]
    assert "marker" not in text


def test_a_request_alone_waits_for_no_batch_but_where_the_model_was_slow(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = made("binary-onnx")
    live = Service(bundle).edge.service.live
    asked = live.forms["predict"].read(Call("a", {}, json.dumps({"rows": bundle.rows(1)}).encode()))
    batched: list[str] = []

    async def ask(request: Request) -> None:
        batched.append(request.id)

    monkeypatch.setattr(live._batcher, "ask", ask)
    assert asyncio.run(live.score(Request("alone", asked, alone=True))) is not None
    asyncio.run(live.score(Request("one of several", asked)))
    monkeypatch.setattr(live, "_inline", False)
    asyncio.run(live.score(Request("alone with a slow model", asked, alone=True)))
    assert batched == ["one of several", "alone with a slow model"]


def test_a_request_cancelled_while_it_is_scored_costs_the_breaker_nothing(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle)
    live, go = service.edge.service.live, threading.Event()
    scores_by(service, monkeypatch, lambda columns: go.wait(60) and fails(columns))

    async def leave() -> None:
        asked = live.forms["predict"].read(Call("a", {}, json.dumps({"rows": bundle.rows(1) * 201}).encode()))
        asking = asyncio.create_task(live.score(Request("a", asked)))
        await asyncio.sleep(0.05)
        asking.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asking

    for _ in range(20):
        asyncio.run(leave())
    go.set()
    assert live.breaker.state == "closed"


def test_a_model_that_was_slow_is_called_in_a_thread_so_that_others_are_answered(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle, SERVING_MODEL_BUDGET_S="0.01")
    threads = []

    def score(columns: Any) -> np.ndarray:
        threads.append(threading.current_thread())
        time.sleep(0.02)
        return np.full((len(columns["cycles"]), 1), 0.5)

    scores_by(service, monkeypatch, score)
    for _ in range(2):
        service.predict(bundle.rows(1))
    assert threads[0] is threading.main_thread()
    assert threads[1] is not threading.main_thread()


def test_the_rows_of_the_log_are_made_once_all_threads_are_in_the_model_and_while_they_are(
    made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = made("binary-onnx")
    service = Service(bundle)
    live, encoded, order = service.edge.service.live, threading.Event(), []
    encode, score = live._encode, Scorer.score

    def encode_and_tell(entry: Any) -> bytes:
        order.append("rows made")
        encoded.set()
        return encode(entry)

    def score_and_wait(scorer: Scorer, columns: Any, tell: Callable[[], object]) -> np.ndarray:
        def wait() -> None:
            order.append("in the model")
            tell()
            assert encoded.wait(60)

        return score(scorer, columns, wait)

    monkeypatch.setattr(live, "_encode", encode_and_tell)
    monkeypatch.setattr(Scorer, "score", score_and_wait)
    assert service.predict(bundle.rows(1) * 201).json()["source"] == "model"
    assert order[:3] == ["in the model", "in the model", "rows made"]
    assert len(logged(service)) == 201


def test_threads_that_come_late_keep_no_rows_and_make_none(made: Made, monkeypatch: pytest.MonkeyPatch) -> None:
    bundle = made("binary-onnx")
    live = Service(bundle, SERVING_MODEL_BUDGET_S="0.05").edge.service.live
    encoded: list[type] = []
    go, encode, score = threading.Event(), live._encode, Scorer.score

    def encode_and_tell(entry: Any) -> bytes:
        encoded.append(type(entry))
        return encode(entry)

    def wait_and_score(scorer: Scorer, columns: Any, tell: Callable[[], object]) -> np.ndarray:
        assert go.wait(60)
        return score(scorer, columns, tell)

    monkeypatch.setattr(live, "_encode", encode_and_tell)
    monkeypatch.setattr(Scorer, "score", wait_and_score)

    def kept() -> bool:
        gc.collect()
        return any(isinstance(each, Request) and each.id == "marker-late" for each in gc.get_objects())

    async def ask() -> str | None:
        asked = live.forms["predict"].read(Call("a", {}, json.dumps({"rows": bundle.rows(1) * 201}).encode()))
        scored = await live.score(Request("marker-late", asked))
        for _ in range(500):  # both halves of the call have ended soon, not only the first to be late
            if not kept():
                break
            await asyncio.sleep(0.01)
        assert not kept()
        go.set()
        await asyncio.to_thread(live._threads.shutdown)
        await asyncio.sleep(0.01)  # what the threads told is heard
        return scored and scored.source

    assert asyncio.run(ask()) == "baseline"
    assert encoded == [Entry]
