import json
import re
import socket
import subprocess
import time
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote
from urllib.request import urlopen

import pytest
import yaml

from tests.clones import ROOT
from tests.container.conftest import ROWS, Container

ALERTS = yaml.safe_load((ROOT / "serving/alerts.yml").read_text())["groups"][0]["rules"]
DASHBOARD = json.loads((ROOT / "serving/grafana/dashboard.json").read_text())
ASKED = [rule["expr"] for rule in ALERTS] + [t["expr"] for panel in DASHBOARD["panels"] for t in panel["targets"]]


@pytest.fixture(scope="module")
def told(service: Container) -> dict[str, set[str]]:
    """The series of a service that has answered and refused, with their labels."""
    assert service.predict(ROWS)[0] == 200
    assert service.predict([{}])[0] == 422
    series: dict[str, set[str]] = {}
    for name, labels in re.findall(r"^([a-z_]+)(?:{(.*)})? ", service.ask("/metrics")[1], re.MULTILINE):
        series.setdefault(name, set()).update(re.findall(r'([a-z]+)="', labels))
    return series


@pytest.mark.parametrize("expression", ASKED)
def test_what_alerts_and_dashboard_ask_for_is_there(expression: str, told: dict[str, set[str]]) -> None:
    names = set(re.findall(r"\b(?:serving|process)_[a-z_]+", expression))
    assert names - set(told) == set()
    scraped = {"instance", "job"}  # which Prometheus adds
    used = re.findall(r"\bby \(([^)]*)\)", expression) + re.findall(r"([a-z]+)=?[=~!]", expression)
    labels = {label.strip() for group in used for label in group.split(",")}
    assert labels - scraped - set().union(*(told[name] for name in names)) == set()


@pytest.mark.parametrize("expression", ASKED)
def test_only_what_counts_up_is_asked_for_its_rise(expression: str) -> None:
    for name in re.findall(r"\b(?:rate|increase)\(([a-z_]+)", expression):
        assert name.endswith(("_total", "_bucket", "_sum", "_count"))


def test_every_alert_says_what_happened_what_to_do_and_how_urgent_it_is() -> None:
    for rule in ALERTS:
        assert set(rule["annotations"]) == {"summary", "runbook"}
        assert rule["labels"]["severity"] in ("page", "ticket")


def test_every_alert_is_shown_to_fire() -> None:
    shown = set(re.findall(r'alertname="(\w+)"', (ROOT / "serving/alerts_test.yml").read_text()))
    assert shown == {rule["alert"] for rule in ALERTS}


def test_prometheus_reads_the_service_and_holds_every_alert_against_it(service: Container, tmp_path: Path) -> None:
    assert service.predict(ROWS)[0] == 200
    (tmp_path / "alerts.yml").write_text((ROOT / "serving/alerts.yml").read_text())
    config = (ROOT / "serving/prometheus.yml").read_text().replace("15s", "1s")
    (tmp_path / "prometheus.yml").write_text(config.replace("serving:8000", f"127.0.0.1:{service.port}"))
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"config.file": "prometheus.yml", "storage.tsdb.path": "data", "web.listen-address": f"127.0.0.1:{port}"}
    command = ["prometheus", *(f"--{name}={value}" for name, value in options.items())]
    with (tmp_path / "log").open("w") as log:
        prometheus = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + 60
        rows: list[Any] = []
        while not rows and prometheus.poll() is None and time.monotonic() < deadline:
            time.sleep(0.2)
            with suppress(OSError):
                rows = told_by(port, f"query?query={quote('serving_rows_total > 0')}")["result"]
        assert rows, (tmp_path / "log").read_text()
        health = {"": "unknown"}
        while "unknown" in health.values() and time.monotonic() < deadline:
            time.sleep(0.2)
            health = {rule["name"]: rule["health"] for rule in told_by(port, "rules")["groups"][0]["rules"]}
        assert health == {rule["alert"]: "ok" for rule in ALERTS}
    finally:
        prometheus.terminate()
        prometheus.wait()


def told_by(port: int, query: str) -> Any:
    with urlopen(f"http://127.0.0.1:{port}/api/v1/{query}", timeout=5) as answer:
        return json.load(answer)["data"]


def test_compose_pins_its_images_and_hardens_each_service() -> None:
    services = yaml.safe_load((ROOT / "serving/compose.yaml").read_text())["services"]
    for name, service in services.items():
        assert service["read_only"] is True
        assert service["cap_drop"] == ["ALL"]
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert name != "serving" or service["mem_limit"] == "1g"
        assert name == "serving" or re.fullmatch(r"docker\.io/[a-z/]+:v?\d+\.\d+\.\d+", service["image"])
