"""A real browser for the tests of pages: Chromium without a window, driven over its DevTools protocol."""

import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from websockets.sync.client import connect

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "chrome")
SECONDS = 60
"""So long a busy machine may take for anything."""
KEY_CODES = {"Enter": 13, "Escape": 27, "ArrowDown": 40, "ArrowUp": 38, "Tab": 9}


def wait_for(ready, what):
    """The first true value of `ready()`."""
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if value := ready():
            return value
        time.sleep(0.02)
    raise TimeoutError(f"waited {SECONDS} s for {what}")


class Tools:
    """One end of the protocol by which a browser's own developer tools speak with it."""

    def __init__(self, socket):
        self.socket = socket
        self.numbers = itertools.count(1)
        self.events = []

    def call(self, method, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv(timeout=SECONDS))
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)


class Page(Tools):
    """A tab; `downloads` is the folder that it downloads into."""

    def __init__(self, socket, downloads):
        super().__init__(socket)
        self.downloads = downloads
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def run(self, script):
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def open(self, file):
        self._load("Page.navigate", url=Path(file).resolve().as_uri())

    def reload(self):
        self._load("Page.reload")

    def _load(self, method, **parameters):
        self.events = [event for event in self.events if event.get("method") != "Page.loadEventFired"]
        self.call(method, **parameters)
        while not any(event.get("method") == "Page.loadEventFired" for event in self.events):
            self.events.append(json.loads(self.socket.recv(timeout=SECONDS)))
        self.wait("document.documentElement.dataset.ready")

    def wait(self, script):
        """Until an expression in the page is true."""
        return wait_for(lambda: self.run(script), script)

    def wait_file(self, file):
        """Until a download is there, whole."""
        wait_for(lambda: file.is_file() and not list(file.parent.glob("*.crdownload")), file.name)

    def press(self, key, modifiers=0):
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = KEY_CODES.get(key, ord(key.upper()) if len(key) == 1 else 0)
        event = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", text="" if modifiers else text, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def problems(self):
        """Errors, dialogs, and what the browser logged, such as a file not found or refused by the policy."""
        self.run("0")
        names = ("Runtime.exceptionThrown", "Page.javascriptDialogOpening", "Log.entryAdded")
        return [event for event in self.events if event.get("method") in names]


@pytest.fixture(scope="session")
def chromium():
    """The program; tests that need it are skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium here (looked for {', '.join(NAMES)})")
    return found


@pytest.fixture(scope="session")
def browser(chromium, tmp_path_factory):
    """The address of a running browser with an empty profile and no network, and the tools to steer it."""
    folder = tmp_path_factory.mktemp("chromium")
    options = [
        "--headless",
        "--no-first-run",
        "--disable-gpu",
        "--disable-quic",
        "--disable-background-networking",
    ]
    options += [
        "--disable-component-update",
        "--disable-sync",
        "--disable-extensions",
        "--disable-dev-shm-usage",
    ]
    options += ["--proxy-server=127.0.0.1:9", "--remote-debugging-port=0", f"--user-data-dir={folder}"]
    if os.name == "posix" and os.geteuid() == 0:
        options.append("--no-sandbox")  # it refuses to run as root otherwise; the page is our own
    silence = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen([chromium, *options, "about:blank"], **silence)
    try:
        port_file = folder / "DevToolsActivePort"
        port, path = wait_for(lambda: _lines(port_file), "Chromium to start")
        with connect(f"ws://127.0.0.1:{port}{path}", max_size=None) as socket:
            yield f"ws://127.0.0.1:{port}", Tools(socket)
    finally:
        process.terminate()
        process.wait(SECONDS)


@pytest.fixture
def page(browser, tmp_path):
    """A tab that shares nothing with those of other tests."""
    address, tools = browser
    downloads = tmp_path / "downloads"
    downloads.mkdir()
    context = {"browserContextId": tools.call("Target.createBrowserContext")["browserContextId"]}
    tools.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads), **context)
    target = tools.call("Target.createTarget", url="about:blank", width=1280, height=800, **context)[
        "targetId"
    ]
    with connect(f"{address}/devtools/page/{target}", max_size=None) as socket:
        yield Page(socket, downloads)
    tools.call("Target.disposeBrowserContext", **context)


def _lines(file):
    """The two lines of the file by which Chromium says where it listens, once it is whole."""
    lines = file.read_text().split("\n") if file.is_file() else []
    return lines[:2] if len(lines) >= 2 else None
