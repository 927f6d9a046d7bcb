"""The page in headless Chromium, driven by the DevTools protocol over a pipe: filled, submitted and looked at."""

import base64
import fcntl
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import cache
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.serving.made import TASKS, Bundle, serving

QUIET = [
    *("--headless", "--hide-scrollbars", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run"),
    *("--disable-background-networking", "--disable-component-update", "--disable-sync", "--disable-dev-shm-usage"),
    *("--remote-debugging-pipe", "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1"),
]
WIDTHS = (360, 768, 1400)
SECONDS = 60.0


class Browser:
    """A tab of a browser of its own."""

    def __init__(self, scratch: Path) -> None:
        found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
        if found is None:
            pytest.fail("expected Chromium on the path, found none; install it, on Debian: apt-get install -y chromium")
        theirs_in, self._in = _pipe()
        self._out, theirs_out = _pipe()
        # The protocol wants the descriptors 3 and 4.
        command = ["bash", "-c", f'exec "$@" 3<&{theirs_in} 4>&{theirs_out}', "bash", found, *QUIET]
        with (scratch / "chromium.err").open("w") as errors:
            self.process = subprocess.Popen(
                [*command, f"--user-data-dir={scratch / 'profile'}"], pass_fds=(theirs_in, theirs_out), stderr=errors
            )
        os.close(theirs_in)
        os.close(theirs_out)
        self._ids, self._read, self._session = count(1), b"", {}
        self.events: list[dict[str, Any]] = []
        target = self.ask("Target.createTarget", url="about:blank")["targetId"]
        self._session = {"sessionId": self.ask("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]}
        for domain in ("Page", "Network", "Log", "Runtime"):
            self.ask(f"{domain}.enable")

    def ask(self, method: str, **given: Any) -> Any:
        """What the browser answers."""
        number = next(self._ids)
        os.write(
            self._in, json.dumps({"id": number, "method": method, "params": given} | self._session).encode() + b"\0"
        )
        while (message := self._next()).get("id") != number:
            self.events.append(message)
        assert "error" not in message, message
        return message["result"]

    def open(self, url: str) -> None:
        self.ask("Page.navigate", url=url)
        self.wait()

    def js(self, source: str) -> Any:
        """The value of an expression in the page."""
        found = self.ask("Runtime.evaluate", expression=source, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def type(self, name: str, text: str) -> None:
        """Type into the field of a column, in place of what it holds."""
        self.js(f"{_field(name)}.focus(); {_field(name)}.select()")
        self.ask("Input.insertText", text=text)

    def choose(self, name: str, value: str) -> None:
        self.js(f"{_field(name)}.value = {json.dumps(value)}")

    def submit(self) -> None:
        """Press the button, and wait for the page that comes."""
        self.js("document.querySelector('button').click()")
        self.wait()

    def text(self, selector: str) -> str:
        return str(self.js(f"document.querySelector({json.dumps(selector)}).innerText"))

    def help(self, name: str) -> str:
        """What stands under the field of a column."""
        return str(self.js(f"document.getElementById({_field(name)}.id + '-help').innerText"))

    def value(self, name: str) -> str:
        return str(self.js(f"{_field(name)}.value"))

    def look(self, width: int, *, dark: bool = False) -> None:
        """Become so wide, and so dark."""
        self.ask("Emulation.setDeviceMetricsOverride", width=width, height=900, deviceScaleFactor=1, mobile=False)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.ask("Emulation.setEmulatedMedia", features=[scheme])

    def screenshot(self, path: Path) -> None:
        taken = self.ask("Page.captureScreenshot", captureBeyondViewport=True)
        path.write_bytes(base64.b64decode(taken["data"]))

    def complaints(self) -> list[Any]:
        """What the console has said."""
        self.js("0")
        return [e["params"] for e in self.events if e["method"] in ("Log.entryAdded", "Runtime.exceptionThrown")]

    def asked(self) -> list[str]:
        """What has been asked of any server."""
        self.js("0")
        return [e["params"]["request"]["url"] for e in self.events if e["method"] == "Network.requestWillBeSent"]

    def close(self) -> None:
        os.write(self._in, json.dumps({"id": next(self._ids), "method": "Browser.close"}).encode() + b"\0")
        self.process.wait(SECONDS)
        os.close(self._in)
        os.close(self._out)

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._read:
            assert select.select([self._out], [], [], SECONDS)[0], "the browser says nothing any more"
            came = os.read(self._out, 1 << 20)
            assert came, "the browser is gone"
            self._read += came
        message, _, self._read = self._read.partition(b"\0")
        return dict(json.loads(message))

    def wait(self) -> None:
        """Wait for the page that comes."""
        while not any(event["method"] == "Page.loadEventFired" for event in self.events):
            self.events.append(self._next())
        self.events = [event for event in self.events if event["method"] != "Page.loadEventFired"]


def _pipe() -> list[int]:
    """A pipe whose descriptors are none of those that the protocol wants."""
    ends = os.pipe()
    high = [fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in ends]
    for end in ends:
        os.close(end)
    return high


def _field(name: str) -> str:
    """The field of a column, found by its help, which names it."""
    return (
        "(name => [...document.querySelectorAll('.field')].find(f => f.querySelector('code')?.textContent === name)"
        f".querySelector('input, select'))({json.dumps(name)})"
    )


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    started = Browser(tmp_path_factory.mktemp("browser"))
    yield started
    started.close()


@pytest.fixture(autouse=True)
def _forget(browser: Browser) -> None:
    browser.look(1400)
    browser.open("about:blank")
    browser.events.clear()


@pytest.fixture(scope="module")
def serve(made: Callable[[str], Bundle], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., str]]:
    """Serve a made bundle with a card, perhaps for those alone who have a key; where its page is."""
    with ExitStack() as running:

        @cache
        def start(name: str, key: str = "") -> str:
            folder, bundle = tmp_path_factory.mktemp("served"), made(name)
            shutil.copytree(bundle.folder.parent, folder / "release")
            (folder / "release" / "reports").mkdir()
            card = f"# Model card: Readings\n\n| | |\n| --- | --- |\n| Bundle | `{bundle.hash}` |\n\n## Limits\n"
            (folder / "release" / "reports" / "card.md").write_text(card)
            digest = sha256(key.encode()).hexdigest()
            (folder / "keys.toml").write_text(f'[owner]\nscopes = ["predict"]\nsha256 = "{digest}"\n')
            keys = {"SERVING_OPEN": "0", "SERVING_KEYS_FILE": str(folder / "keys.toml")} if key else {}
            copied = Bundle(folder / "release" / "bundle", bundle.features)
            return running.enter_context(serving(folder, copied, **keys)).url + "/"

        yield start


@pytest.mark.parametrize("task", TASKS)
def test_the_example_is_filled_in_and_its_score_comes_back(
    browser: Browser, serve: Any, made: Callable[[str], Bundle], task: str
) -> None:
    bundle = made(f"{task}-onnx")
    browser.open(serve(f"{task}-onnx"))
    browser.submit()
    shown = browser.js("[...document.querySelectorAll('.answer data')].map(each => Number(each.value))")
    assert shown == pytest.approx(bundle.golden["scores"][0], abs=1e-9)
    answer = browser.text("#answer")
    assert bundle.hash[:12] in answer
    assert "the model" in answer


def test_what_is_typed_is_scored_and_stays(browser: Browser, serve: Any, made: Callable[[str], Bundle]) -> None:
    release = made("binary-onnx").load()
    row = {
        **{"read_at": "2020-06-01T10:30:00", "site": "south", "maker": "bolt", "measured_at": None},
        **{"temperature": 61.5, "cycles": 900, "guarded": True},
    }
    browser.open(serve("binary-onnx"))
    for name in ("site", "guarded", "read_at", "measured_at"):
        browser.choose(
            name, {"guarded": "true", "measured_at": "", "read_at": "2020-06-01T10:30"}.get(name) or row[name] or ""
        )  # type: ignore[arg-type]
    browser.type("maker", "bolt")
    browser.type("temperature", "61.5")
    browser.type("cycles", "900")
    browser.submit()
    expected = release.scorer.score(release.inputs.arrays(release.inputs.convert([row], 1)))
    assert browser.js("Number(document.querySelector('.answer data').value)") == pytest.approx(
        expected[0, 0], abs=1e-12
    )
    held = [browser.value(name) for name in ("site", "maker", "temperature", "cycles", "guarded", "measured_at")]
    assert held == ["south", "bolt", "61.5", "900", "true", ""]
    assert browser.js("location.hash") == "#answer"


def test_a_category_that_training_never_saw_is_scored_and_said(browser: Browser, serve: Any) -> None:
    browser.open(serve("binary-onnx"))
    browser.type("maker", '<b>O\'Neill & "Söhne"</b>')
    browser.submit()
    assert "never saw" in browser.help("maker")
    assert browser.value("maker") == '<b>O\'Neill & "Söhne"</b>'


def test_the_browser_holds_back_what_cannot_fit(browser: Browser, serve: Any) -> None:
    browser.open(serve("binary-onnx"))
    assert browser.js("document.querySelector('form').checkValidity()") is True
    for name, text in (("cycles", "1001"), ("cycles", "1.5"), ("cycles", ""), ("temperature", "-51")):
        browser.type(name, text)
        assert browser.js(f"{_field(name)}.validity.valid") is False, (name, text)
        browser.type(name, "50")
        assert browser.js(f"{_field(name)}.validity.valid") is True


def test_a_wrong_value_is_named_at_its_field_and_kept(browser: Browser, serve: Any) -> None:
    browser.open(serve("binary-onnx"))
    browser.js("document.querySelector('form').noValidate = true")
    browser.type("cycles", "99999")
    browser.type("maker", "core")
    browser.submit()
    assert "Expected a whole number from 0 to 1000" in browser.help("cycles")
    assert browser.js(f"{_field('cycles')}.getAttribute('aria-invalid')") == "true"
    assert browser.js("document.querySelectorAll('[aria-invalid]').length") == 1
    assert browser.text("#answer .notice a") == "cycles"
    assert (browser.value("cycles"), browser.value("maker")) == ("99999", "core")
    browser.type("cycles", "5")
    browser.submit()
    assert browser.js("document.querySelectorAll('.answer data').length") > 0
    browser.js("document.querySelector('.after a').click()")
    browser.wait()
    assert browser.value("cycles") != "5"
    assert browser.text("#answer").strip() == ""


def test_the_key_goes_with_the_row_and_never_comes_back(browser: Browser, serve: Any) -> None:
    browser.open(serve("binary-onnx", "right-secret"))
    for key in ("wrong-secret", "right-secret"):
        browser.js("document.querySelector('#key').focus()")
        browser.ask("Input.insertText", text=key)
        browser.submit()
        assert browser.js("document.querySelector('#key').value") == ""
        assert key not in browser.js(
            "document.querySelector('#answer').outerHTML + document.querySelector('form').outerHTML"
        )
        assert ("key" in browser.text("#answer")) is (key == "wrong-secret")
    assert browser.js("document.querySelectorAll('.answer data').length") > 0


def test_the_figures_renew_themselves_and_leave_the_form_alone(browser: Browser, serve: Any) -> None:
    browser.open(serve("binary-onnx"))
    shown = "document.querySelector('iframe').contentDocument?.querySelector('.tiles data')?.textContent"
    before = int(browser.js(shown))
    httpx.post(serve("binary-onnx") + "predict", json={}, timeout=60)
    browser.type("temperature", "12.25")
    began = time.monotonic()
    while int(browser.js(shown) or before) == before:
        assert time.monotonic() - began < SECONDS
        time.sleep(0.2)
    assert browser.value("temperature") == "12.25"
    assert int(browser.js(shown)) == before + 1


def test_the_page_complains_of_nothing_and_asks_for_itself_alone(browser: Browser, serve: Any) -> None:
    url = serve("binary-onnx")
    browser.open(url)
    browser.submit()
    browser.open(f"{url}card")
    assert browser.text("h1") == "Model card: Readings"
    assert browser.complaints() == []
    assert {asked for asked in browser.asked() if not asked.startswith("data:")} == {
        f"{url}#answer".partition("#")[0], f"{url}figures", f"{url}card",
    }  # fmt: skip


def test_a_complaint_would_be_heard(browser: Browser, serve: Any) -> None:
    browser.open(serve("binary-onnx"))
    browser.js("document.body.append(Object.assign(document.createElement('img'), {src: 'http://127.0.0.1:9/'}))")
    assert any("Content Security Policy" in str(said) for said in browser.complaints())


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
def test_the_page_fits_every_screen_in_light_and_dark(browser: Browser, serve: Any, task: str, dark: bool) -> None:
    browser.open(serve(f"{task}-onnx"))
    browser.submit()
    for width in WIDTHS:
        browser.look(width, dark=dark)
        assert browser.js("document.documentElement.scrollWidth") == width
        frame = "document.querySelector('iframe').contentDocument.documentElement"
        for size in ("Width", "Height"):
            assert browser.js(f"{frame}.scroll{size} - {frame}.client{size}") == 0, (width, size)
    paper = browser.js("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, paper[4:-1].split(","))) < 200) is dark


def test_every_field_has_a_name_that_is_read_out(browser: Browser, serve: Any) -> None:
    browser.open(serve("binary-onnx", "right-secret"))
    tree = browser.ask("Accessibility.getFullAXTree")["nodes"]
    kinds = ("textbox", "combobox", "spinbutton", "DateTime", "Date", "button", "Iframe")
    named = {
        node["name"]["value"]
        for node in tree
        if node.get("role", {}).get("value") in kinds and node.get("name", {}).get("value")
    }
    assert {"Where it stands", "Who made it", "Its temperature, C", "API key", "Score it"} <= named
