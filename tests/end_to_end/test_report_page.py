"""The report in a browser: what it shows, asks for, and looks like on a phone, in the dark and on paper."""

import io
import json
import re
import shutil
import subprocess
import threading
from collections.abc import Iterator
from functools import cache, partial
from html import unescape
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from pipeline.duel import Duel
from pipeline.report import report_files
from pipeline.resamples import Estimate
from tests.pipeline.test_report import release, verdict
from tests.synthetic import TASKS, evaluation

QUIET = [
    *(
        "--headless",
        "--hide-scrollbars",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-quic",
        "--no-first-run",
        "--enable-logging=stderr",
    ),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
]
DARK = "--blink-settings=preferredColorScheme=0"
WIDTHS = (360, 768, 1280)
FRAME = '<iframe src="index.html" style="width:{}px;height:900px"></iframe>'
PROBE = """<pre></pre><script>
onload = () => {
  const look = frame => {
    const page = frame.contentDocument, root = page.documentElement;
    page.querySelectorAll("details").forEach(each => each.open = true);
    const of = (part, name) => frame.contentWindow.getComputedStyle(page.querySelector(part))[name];
    return {
      overflow: root.scrollWidth - root.clientWidth, width: root.clientWidth,
      paper: of("body", "backgroundColor"), ink: of("body", "color"), tag: of(".tag", "backgroundColor"),
      text: of("figure text", "fill"), line: of("figure [style*=accent]", "stroke"),
      own: of("figure text", "fontFamily"), font: of("body", "fontFamily"),
    };
  };
  document.querySelector("pre").textContent = JSON.stringify([...document.querySelectorAll("iframe")].map(look));
};
</script>"""
FRAMED = "".join(['<!DOCTYPE html><link rel="icon" href="data:,">', *map(FRAME.format, WIDTHS), PROBE])


class Served(SimpleHTTPRequestHandler):
    """The files of a folder; what was asked for is kept on the server."""

    def log_message(self, *said: Any) -> None:
        if len(said) > 2:
            self.server.asked.append((said[1].split()[1], said[2]))  # type: ignore[attr-defined]


@cache
def files(task: str) -> dict[str, bytes]:
    if task != "grounded":
        return report_files(release(task))
    said = verdict(evaluation(), slices={"passed": False}, groups={"passed": False, "waived": "The workshop agrees."})
    figures = {name: float(f"{each.value:.6g}") for name, each in evaluation().metrics["model"].items()}
    fought = Duel(
        "model/v3", "roc_auc", 120, Estimate(0.02, -0.01, 0.04), dict.fromkeys(("challenger", "champion"), figures)
    )
    return report_files(release(verdict=said, duel=fought, inspected=True))


@pytest.fixture(params=[*TASKS, "grounded"])
def written(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return write(tmp_path / "reports", request.param)


def write(folder: Path, task: str) -> Path:
    for name, content in files(task).items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


@pytest.fixture
def serve() -> Iterator[Any]:
    servers = []

    def start(folder: Path) -> ThreadingHTTPServer:
        server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Served, directory=str(folder)))
        server.asked = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def chromium(scratch: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run the browser once, with a profile of its own."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        pytest.fail("expected Chromium on the path, found none; install it, on Debian: apt-get install -y chromium")
    profile = f"--user-data-dir={scratch / 'profile'}"
    return subprocess.run([found, *QUIET, profile, *arguments], capture_output=True, text=True, check=True, timeout=120)


def shown(server: ThreadingHTTPServer, folder: Path, scratch: Path, *arguments: str) -> list[dict[str, Any]]:
    """What the page looks like in a frame of each width, all of it unfolded, as the browser computes it."""
    (folder / "framed.html").write_text(FRAMED)
    done = chromium(scratch, *arguments, "--dump-dom", f"http://127.0.0.1:{server.server_port}/framed.html")
    told = re.search(r"<pre>(\[.*?\])</pre>", done.stdout)
    assert told, done.stderr[-2000:]
    return list(json.loads(unescape(told[1])))


def in_files(folder: Path, name: str) -> float:
    """The figure of a name, as the JSON and CSV files hold it."""
    first, *rest = name.split(".")
    if first == "gate":
        gates = {gate["gate"]: gate for gate in json.loads((folder / "gates.json").read_text())["gates"]}
        return float(gates[rest[0]][rest[1] if rest[1:] else "value"])
    if (folder / f"tables/{first}.csv").is_file():
        return float(pd.read_csv(folder / f"tables/{first}.csv")[rest[1]][int(rest[0])])
    if first == "duel":
        return {"duel": 0.02, "duel.low": -0.01, "duel.high": 0.04}[name]
    found = json.loads((folder / "metrics.json").read_text())
    for key in (first, *rest):
        found = found[key]
    return float(found["value"] if isinstance(found, dict) else found)


def test_figures_on_the_page_are_those_of_the_files(written: Path, tmp_path: Path) -> None:
    dom = chromium(tmp_path, "--dump-dom", (written / "index.html").as_uri()).stdout
    figures = re.findall(r'<data data-figure="([^"]+)" value="([^"]+)">([^<]+)</data>', dom)
    assert len(figures) == dom.count("data-figure=") > 60
    for name, value, text in figures:
        assert float(value) == pytest.approx(in_files(written, name), rel=1e-5, abs=1e-12), name
        number = text.rstrip("%").replace(",", "")
        decimals = number.partition(".")[2]
        unit = 0.05 * abs(float(value)) if "e" in number else 0.51 * 10.0 ** -len(decimals)
        assert abs(float(number) / (100 if text.endswith("%") else 1) - float(value)) <= unit, name
    named = {name for name, _, _ in figures}
    metrics = json.loads((written / "metrics.json").read_text())
    assert {f"{who}.{metric}" for who in ("model", "simple", "naive") for metric in metrics[who]} <= named
    verdict = json.loads((written / "gates.json").read_text())
    assert f'data-verdict="{"airworthy" if verdict["airworthy"] else "grounded"}"' in dom
    assert len(re.findall(r'<li class="(?:passed|failed|waived)">', dom)) == len(verdict["gates"])


def test_the_page_loads_without_a_complaint_and_asks_for_itself_alone(
    written: Path, tmp_path: Path, serve: Any
) -> None:
    server = serve(written)
    done = chromium(tmp_path, "--dump-dom", f"http://127.0.0.1:{server.server_port}/index.html")
    assert [line for line in done.stderr.splitlines() if "CONSOLE" in line] == []
    assert server.asked == [("/index.html", "200")]


def test_a_complaint_would_be_heard(tmp_path: Path) -> None:
    (tmp_path / "torn.html").write_text("<script>console.error('torn'); missing()</script><img src='http://a.test/'>")
    done = chromium(tmp_path, "--dump-dom", (tmp_path / "torn.html").as_uri())
    said = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    assert any("torn" in line for line in said)
    assert any("missing is not defined" in line for line in said)


def test_the_page_fits_every_screen_with_all_of_it_unfolded(written: Path, tmp_path: Path, serve: Any) -> None:
    found = shown(serve(written), written, tmp_path)
    assert [(each["width"], each["overflow"]) for each in found] == [(width, 0) for width in WIDTHS]
    assert all(each["own"] == each["font"] for each in found)


def test_the_dark_turns_every_colour(tmp_path: Path, serve: Any) -> None:
    folder = write(tmp_path / "reports", "binary")
    server = serve(folder)
    light, dark = (shown(server, folder, tmp_path, *asked)[-1] for asked in ((), (DARK,)))
    for part in ("paper", "ink", "text", "line", "tag"):
        assert light[part] != dark[part], part
    assert brightness(light["paper"]) > 200 > 60 > brightness(dark["paper"])


def brightness(colour: str) -> float:
    return sum(map(float, re.findall(r"\d+", colour)[:3])) / 3


@pytest.mark.parametrize("mode", ["light", "dark"])
def test_text_has_contrast_enough_in_both_modes(mode: str) -> None:
    """WCAG 2.2, AA: 4.5 to 1 for each pair of colours that text is set in."""
    text = files("binary")["index.html"].decode()
    light, dark, *_ = (
        dict(re.findall(r"--([\w-]+): (#[0-9a-f]+)", block)) for block in re.findall(r":root {([^}]*)}", text)
    )
    colours = light if mode == "light" else light | dark
    pairs = [("ink", "card"), ("faint", "card"), ("faint", "paper"), ("accent", "paper"), ("accent", "card")]
    pairs += [("bad", "bad-wash"), ("bad", "card"), ("good", "card"), ("other", "card")]
    ratios = {f"{one} on {other}": contrast(colours[one], colours[other]) for one, other in pairs}
    ratios |= {f"white on {tag}": contrast("#ffffff", tag) for tag in re.findall(r"--tag: (#[0-9a-f]{6})", text)}
    assert {pair: ratio for pair, ratio in ratios.items() if ratio < 4.5} == {}


def contrast(one: str, other: str) -> float:
    light, dark = sorted((luminance(one), luminance(other)), reverse=True)
    return (light + 0.05) / (dark + 0.05)


def luminance(colour: str) -> float:
    digits = colour[1:] if len(colour) == 7 else "".join(2 * digit for digit in colour[1:])
    parts = [int(digits[i : i + 2], 16) / 255 for i in (0, 2, 4)]
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def test_on_paper_it_is_a_few_pages(written: Path, tmp_path: Path) -> None:
    paper = tmp_path / "report.pdf"
    chromium(tmp_path, f"--print-to-pdf={paper}", "--no-pdf-header-footer", (written / "index.html").as_uri())
    assert 2 <= len(re.findall(rb"/Type\s*/Page\b", paper.read_bytes())) <= 12


def test_a_screenshot_has_something_to_look_at(tmp_path: Path) -> None:
    from matplotlib.image import imread

    folder, picture = write(tmp_path / "reports", "binary"), tmp_path / "report.png"
    chromium(tmp_path, "--window-size=1280,1600", f"--screenshot={picture}", (folder / "index.html").as_uri())
    pixels = imread(io.BytesIO(picture.read_bytes()))
    assert pixels.shape[:2] == (1600, 1280)
    assert len(pd.DataFrame((255 * pixels[::4, ::4, :3]).astype("int64").reshape(-1, 3)).drop_duplicates()) > 200
