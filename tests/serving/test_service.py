"""Which release answers: the champion, a challenger beside it, the last good one."""

import asyncio
import json
import shutil
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import pytest

from pipeline.canonical import json_bytes
from pipeline.errors import InputError
from pipeline.journal import read_predictions
from serving.problems import Problem
from serving.protocols import Call
from tests.serving.made import Bundle, Service, problem

Made = Callable[[str], Bundle]


def other(bundle: Bundle, folder: Path, threshold: float = 0.99) -> Bundle:
    """The same model with another threshold, and its inspection."""
    shutil.copytree(bundle.folder, folder / "bundle")
    changed = Bundle(folder / "bundle", bundle.features)
    (changed.folder / "contract.json").write_bytes(json_bytes(bundle.read("contract.json") | {"threshold": threshold}))
    changed.inspect()
    return changed


def replace(bundle: Bundle, by: Bundle) -> None:
    """Put another release where one is served from."""
    for name in ("bundle", "inspection"):
        shutil.rmtree(bundle.folder.parent / name)
        shutil.copytree(by.folder.parent / name, bundle.folder.parent / name)


def reload(service: Service) -> int:
    """The status of a reload; the answer is a problem where it is refused."""
    return asyncio.run(service.edge.service.reload(Call("a", {}, holder="a person")))[0].status


def test_a_new_bundle_answers_once_it_is_loaded(bundle: Bundle, tmp_path: Path) -> None:
    service, second = Service(bundle), other(bundle, tmp_path / "second")
    before = service.predict(bundle.rows(1)).json()["model"]["hash"]
    replace(bundle, second)
    assert service.predict(bundle.rows(1)).json()["model"]["hash"] == before
    assert reload(service) == 200
    assert service.predict(bundle.rows(1)).json()["model"]["hash"] == second.hash != before
    assert service.metric("serving_model_info", name=service.release.name, version=second.hash[:12], hash=second.hash,
                          runtime="onnx") == 1  # fmt: skip
    assert service.metric("serving_reloads_total", outcome="done") == 1
    assert second.hash in service.get("/openapi.json").json()["info"]["description"]
    assert service.get("/version").text == second.hash[:12]
    assert service.get(f"/v2/models/{service.release.name}/versions/{second.hash[:12]}/ready").status_code == 200


@pytest.mark.parametrize("damage", ["golden.json", "model.onnx", "baseline.json", "contract.json"])
def test_a_bundle_that_is_refused_leaves_the_one_that_is_served(bundle: Bundle, damage: str) -> None:
    service = Service(bundle)
    before = bundle.hash
    path = bundle.folder / damage
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    bundle.inspect()
    with pytest.raises(Exception, match=r"golden\.json|model\.onnx|baseline\.json|contract\.json"):
        reload(service)
    assert service.predict(json.loads(json.dumps([dict(service.release.example)]))).json()["model"]["hash"] == before
    assert service.metric("serving_reloads_total", outcome="refused") == 1


def test_the_last_good_bundle_is_served_where_the_new_one_is_refused(bundle: Bundle, tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    first = Service(bundle, SERVING_DATA_DIR=data)
    first.edge.service.keep()
    good, rows = bundle.hash, bundle.rows(1)
    (bundle.folder / "golden.json").write_bytes(b"{")
    second = Service(bundle, SERVING_DATA_DIR=data)
    assert second.predict(rows).json()["model"]["hash"] == good
    assert second.metric("serving_last_good") == 1
    assert "golden.json" in second.get("/health/ready").json()["details"][0]
    with pytest.raises(InputError, match=r"golden\.json"):
        Service(bundle)  # where nothing was kept


def test_only_the_last_good_bundle_is_kept(bundle: Bundle, tmp_path: Path) -> None:
    service, second = Service(bundle), other(bundle, tmp_path / "second")
    service.edge.service.keep()
    replace(bundle, second)
    reload(service)
    assert [path.name for path in (service.data / "last-good").iterdir()] == [second.hash]
    service.edge.service.keep()
    assert [path.name for path in (service.data / "last-good").iterdir()] == [second.hash]


def test_a_bundle_that_was_not_inspected_is_not_served_for_being_kept(bundle: Bundle, tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    shutil.rmtree(bundle.folder.parent / "inspection")
    first = Service(bundle, SERVING_DATA_DIR=data, SERVING_INSPECTED="0")
    first.edge.service.keep()
    with pytest.raises(InputError, match="expected an inspection"):
        Service(bundle, SERVING_DATA_DIR=data)


def test_a_shadow_is_compared_and_never_answers(bundle: Bundle, tmp_path: Path) -> None:
    second = other(bundle, tmp_path / "second")
    service = Service(bundle, SERVING_CHALLENGER_DIR=str(second.folder))
    rows = bundle.rows()
    labels = service.predict(rows).json()["labels"]
    assert any(labels)
    assert service.predict(rows).json()["model"]["hash"] == bundle.hash
    deadline = time.monotonic() + 60
    while (service.metric("serving_challenger_rows_total") or 0) < 2 * len(rows):
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert service.metric("serving_challenger_changed_total") == 2 * sum(labels)
    assert service.metric("serving_challenger_difference_count") == 2 * len(rows)
    assert {entry.source for entry in read_predictions(service.data / "log")} == {"model"}


def test_a_shadow_that_fails_is_counted_and_no_client_sees_it(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = Service(bundle, SERVING_CHALLENGER_DIR=str(other(bundle, tmp_path / "second").folder))
    challenger = service.edge.service.challenger
    assert challenger is not None
    monkeypatch.setattr(service.edge.service.live.shadow, "_score", lambda _columns: 1 / 0)
    assert service.predict(bundle.rows(1)).json()["source"] == "model"
    deadline = time.monotonic() + 60
    while not service.metric("serving_challenger_failures_total"):
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_a_canary_answers_its_share_and_the_same_clients_always(bundle: Bundle, tmp_path: Path) -> None:
    second = other(bundle, tmp_path / "second")
    service = Service(bundle, SERVING_CHALLENGER_DIR=str(second.folder), SERVING_CHALLENGER_SHARE="0.5")

    def sources() -> list[str]:
        asked = [("POST", "/predict", {"json": {"rows": bundle.rows(1)}, "headers": {"x-canary-key": f"k{n}"}})
                 for n in range(60)]  # fmt: skip
        return [answer.json()["source"] for answer in service.requests(asked)]

    first = sources()
    assert first == sources()
    assert 10 < first.count("challenger") < 50
    assert service.metric("serving_answers_total", source="challenger") == 2 * first.count("challenger")
    hashes = {entry.source: entry.model for entry in read_predictions(service.data / "log")}
    assert hashes == {"model": bundle.hash, "challenger": second.hash}


def test_where_a_canary_fails_the_champion_answers(
    bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    second = other(bundle, tmp_path / "second")
    service = Service(bundle, SERVING_CHALLENGER_DIR=str(second.folder), SERVING_CHALLENGER_SHARE="1")
    assert service.predict(bundle.rows(1)).json()["source"] == "challenger"
    live = service.edge.service.challenger
    assert live is not None
    monkeypatch.setattr(live, "_called", lambda *_: _raised())
    for _ in range(20):
        answer = service.predict(bundle.rows(1)).json()
        assert (answer["source"], answer["model"]["hash"]) == ("model", bundle.hash)
    assert live.breaker.state == "open"
    assert "challenger" in service.get("/health/ready").json()["details"][0]


async def _raised() -> tuple[None, str]:
    return None, "raised"


def test_a_challenger_that_answers_another_question_ends_the_start(made: Made, bundle: Bundle) -> None:
    with pytest.raises(InputError):
        Service(bundle, SERVING_CHALLENGER_DIR=str(made("regression-onnx").folder))


def test_who_asks_for_a_version_gets_that_one(bundle: Bundle, tmp_path: Path) -> None:
    second = other(bundle, tmp_path / "second")
    service = Service(bundle, SERVING_CHALLENGER_DIR=str(second.folder), SERVING_CHALLENGER_SHARE="1")
    row = bundle.rows(1)[0]
    tensors = service.edge.service.live.tensors["inputs"]
    body = {"inputs": [tensor | {"shape": [1], "data": [row[tensor["name"]]]} for tensor in tensors]}
    model = f"/v2/models/{service.release.name}"
    for path, version in ((model, second), (f"{model}/versions/{bundle.hash[:12]}", bundle)):
        assert service.post(f"{path}/infer", json=body).json()["model_version"] == version.hash[:12]


def test_a_share_without_a_challenger_ends_the_start(bundle: Bundle) -> None:
    with pytest.raises(InputError, match="SERVING_CHALLENGER_DIR"):
        Service(bundle, SERVING_CHALLENGER_SHARE="0.5")


def test_a_hand_that_reloads_without_anything_new_changes_nothing(bundle: Bundle) -> None:
    service = Service(bundle)
    assert reload(service) == 200
    assert service.predict(bundle.rows(1)).json()["model"]["hash"] == bundle.hash


def test_what_was_switched_off_stays_so_whatever_is_loaded(bundle: Bundle, tmp_path: Path) -> None:
    second = other(bundle, tmp_path / "second")
    service = Service(
        bundle, SERVING_KILLED="1", SERVING_CHALLENGER_DIR=str(second.folder), SERVING_CHALLENGER_SHARE="1"
    )
    replace(bundle, second)
    assert reload(service) == 200
    assert service.predict(bundle.rows(1)).json()["source"] == "baseline"
    asyncio.run(service.edge.service.revive(Call("a", {}, holder="a person")))
    assert service.predict(bundle.rows(1)).json()["source"] == "challenger"


def test_a_canary_that_does_not_take_a_row_leaves_it_to_the_champion(bundle: Bundle, tmp_path: Path) -> None:
    shutil.copytree(bundle.folder, tmp_path / "second" / "bundle")
    second = Bundle(tmp_path / "second" / "bundle", bundle.features)
    contract = bundle.read("contract.json")
    for entry in contract["inputs"]:
        if entry["name"] == "cycles":
            entry["maximum"] = 900
    (second.folder / "contract.json").write_bytes(json_bytes(contract))
    golden = bundle.golden
    kept = [place for place, cycles in enumerate(golden["rows"]["cycles"]) if cycles <= 900]
    golden["rows"] = {name: [values[place] for place in kept] for name, values in golden["rows"].items()}
    golden["scores"] = [golden["scores"][place] for place in kept]
    (second.folder / "golden.json").write_bytes(json_bytes(golden))
    second.inspect()
    service = Service(bundle, SERVING_CHALLENGER_DIR=str(second.folder), SERVING_CHALLENGER_SHARE="1")
    for cycles, source in ((900, "challenger"), (901, "model")):
        assert service.predict([bundle.rows(1)[0] | {"cycles": cycles}]).json()["source"] == source
    lines = [line for line in service.lines() if line["event"] == "request"]
    assert [line["model"] for line in lines] == [second.hash[:12], bundle.hash[:12]]


def test_a_shadow_ends_with_the_release_that_it_was_compared_with(bundle: Bundle, tmp_path: Path) -> None:
    service = Service(bundle, SERVING_CHALLENGER_DIR=str(other(bundle, tmp_path / "second").folder))
    shadow = service.edge.service.live.shadow
    assert shadow is not None
    assert reload(service) == 200
    assert not shadow._thread.is_alive()
    assert service.edge.service.live.shadow._thread.is_alive()


@pytest.mark.parametrize("content", [b"{}", b'{"scores": {"score": {"edges": ["a", "b"], "shares": []}}}'])
def test_a_reference_that_is_none_is_refused(bundle: Bundle, content: bytes) -> None:
    service, before = Service(bundle), bundle.hash
    (bundle.folder / "reference.json").write_bytes(content)
    bundle.inspect()
    with pytest.raises(Problem, match=r"reference\.json"):
        reload(service)
    assert service.edge.service.live.release.hash == before
    with pytest.raises(InputError, match=r"reference\.json"):
        Service(bundle)


def test_a_model_that_loads_and_cannot_score_is_refused(bundle: Bundle) -> None:
    contract = bundle.read("contract.json")
    (bundle.folder / "contract.json").write_bytes(json_bytes(contract | {"features": contract["features"][1:]}))
    bundle.inspect()
    with pytest.raises(InputError, match="expected what training writes"):
        Service(bundle)


def test_the_last_good_bundle_is_not_served_where_another_is_pinned(bundle: Bundle, tmp_path: Path) -> None:
    data = str(tmp_path / "data")
    Service(bundle, SERVING_DATA_DIR=data).edge.service.keep()
    with pytest.raises(InputError, match="expected the bundle"):
        Service(bundle, SERVING_DATA_DIR=data, SERVING_MODEL_HASH="0" * 64)


@pytest.mark.parametrize("both", [True, False])
def test_it_starts_with_keys_or_in_the_open(bundle: Bundle, tmp_path: Path, both: bool) -> None:
    given = {"SERVING_KEYS_FILE": str(tmp_path / "keys.toml")} if both else {"SERVING_OPEN": "0"}
    with pytest.raises(InputError, match="got both" if both else "got neither"):
        Service(bundle, **given)


def test_outcomes_need_a_key_for_them(bundle: Bundle, tmp_path: Path) -> None:
    keys = tmp_path / "keys.toml"
    keys.write_text(f'[shop]\nscopes = ["predict"]\nsha256 = "{sha256(b"secret").hexdigest()}"\n')
    service = Service(bundle, SERVING_OPEN="0", SERVING_KEYS_FILE=str(keys))
    headers = {"authorization": "Bearer secret"}
    assert service.predict(bundle.rows(1), headers=headers).status_code == 200
    for path in ("/feedback", "/admin/kill"):
        problem(service.post(path, json={}, headers=headers), 403)
    problem(service.predict(bundle.rows(1)), 401)


def test_in_the_open_nobody_may_switch_anything(bundle: Bundle) -> None:
    service = Service(bundle)
    for path in ("/admin/reload", "/admin/kill", "/admin/revive"):
        problem(service.post(path, json={"because": "x"}), 403)
