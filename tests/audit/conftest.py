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


class Page:
    """A tab, by the protocol that the browser's own developer tools speak."""

    def __init__(self, address, downloads):
        self.socket = connect(address, max_size=None)
        self.numbers = itertools.count(1)
        self.events = []
        for domain in ("Page", "Runtime"):
            self.call(f"{domain}.enable")
        self.call("Browser.setDownloadBehavior", behavior="allow", downloadPath=str(downloads))

    def call(self, method, **parameters):
        number = next(self.numbers)
        self.socket.send(json.dumps({"id": number, "method": method, "params": parameters}))
        while True:
            answer = json.loads(self.socket.recv(timeout=SECONDS))
            if answer.get("id") == number:
                assert "error" not in answer, (method, answer)
                return answer["result"]
            self.events.append(answer)

    def run(self, script):
        """The value of an expression in the page."""
        result = self.call("Runtime.evaluate", expression=script, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def open(self, file):
        self.call("Page.navigate", url=Path(file).resolve().as_uri())
        self.wait("location.protocol === 'file:' && document.documentElement?.dataset.ready")

    def reload(self):
        self.run("delete document.documentElement?.dataset.ready")
        self.call("Page.reload")
        self.wait("document.documentElement?.dataset.ready")

    def wait(self, script):
        """Until an expression in the page is true."""
        return wait_for(lambda: self.run(script), script)

    def press(self, key, modifiers=0):
        text = {"Enter": "\r"}.get(key, key if len(key) == 1 else "")
        code = KEY_CODES.get(key, ord(key.upper()) if len(key) == 1 else 0)
        event = {"key": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", text="" if modifiers else text, **event)
        self.call("Input.dispatchKeyEvent", type="keyUp", **event)

    def type(self, text):
        self.call("Input.insertText", text=text)

    def problems(self):
        """Errors, dialogs and requests refused that the page has caused, by name."""
        self.run("0")
        names = ("Runtime.exceptionThrown", "Page.javascriptDialogOpening")
        seen = [event for event in self.events if event.get("method") in names]
        is_error = lambda event: event["params"].get("type") == "error"  # noqa: E731
        calls = [event for event in self.events if event.get("method") == "Runtime.consoleAPICalled"]
        return seen + [event for event in calls if is_error(event)]


@pytest.fixture(scope="session")
def chromium():
    """The program; tests that need it are skipped where there is none."""
    found = next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        pytest.skip(f"no Chromium here (looked for {', '.join(NAMES)})")
    return found


@pytest.fixture
def page(chromium, tmp_path):
    """A tab of a browser of its own, with an empty profile and no network; `downloads` is its folder."""
    profile, downloads = tmp_path / "profile", tmp_path / "downloads"
    downloads.mkdir()
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
    options += ["--proxy-server=127.0.0.1:9", "--remote-debugging-port=0", f"--user-data-dir={profile}"]
    if os.name == "posix" and os.geteuid() == 0:
        options.append("--no-sandbox")  # it refuses to run as root otherwise; the page is our own
    errors = (tmp_path / "chromium.log").open("wb")
    process = subprocess.Popen(
        [chromium, *options, "about:blank"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=errors,
    )
    try:
        port_file = profile / "DevToolsActivePort"
        port = wait_for(
            lambda: port_file.is_file() and port_file.read_text().split("\n")[0], "Chromium to start"
        )
        tab = Page(_address_of_tab(port, port_file), downloads)
        tab.downloads = downloads
        yield tab
        tab.socket.close()
    finally:
        process.terminate()
        process.wait(SECONDS)
        errors.close()


def _address_of_tab(port, port_file):
    """The address of the one tab, asked of the browser itself."""
    path = port_file.read_text().split("\n")[1]
    with connect(f"ws://127.0.0.1:{port}{path}") as browser:
        browser.send(json.dumps({"id": 1, "method": "Target.getTargets"}))
        targets = json.loads(browser.recv(timeout=SECONDS))["result"]["targetInfos"]
    tab = next(target for target in targets if target["type"] == "page")
    return f"ws://127.0.0.1:{port}/devtools/page/{tab['targetId']}"
