"""A headless Chromium, driven through chromedriver's HTTP interface (the W3C's WebDriver)."""

import base64
import shutil
import socket
import subprocess
import time
from pathlib import Path
from typing import Any

import httpx

BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")
ABSENT = "no chromium and chromedriver on this machine; apt-get install chromium chromium-driver"
ELEMENT = "element-6066-11e4-a52e-4f735466cecf"
"""Key of an element's id, by the standard."""


def free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]


class Browser:
    """One window; use it as a context manager."""

    def __init__(self, folder: Path, width: int = 1200, height: int = 900):
        port = free_port()
        self.driver = subprocess.Popen([DRIVER, f"--port={port}"], stdout=subprocess.DEVNULL)
        self.client = httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60, trust_env=False)
        wait_for(lambda: self.client.get("/status").json()["value"]["ready"])
        arguments = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        arguments += [f"--user-data-dir={folder / 'profile'}", f"--window-size={width},{height}"]
        chrome = {"binary": BROWSER, "args": arguments}
        asked = {"capabilities": {"alwaysMatch": {"goog:chromeOptions": chrome}}}
        self.session = f"/session/{self.client.post('/session', json=asked).json()['value']['sessionId']}"
        if width < 600:  # a window of Chromium is no narrower
            metrics = {"width": width, "height": height, "deviceScaleFactor": 2, "mobile": True}
            self.call("goog/cdp/execute", cmd="Emulation.setDeviceMetricsOverride", params=metrics)

    def call(self, what: str, **body: Any) -> Any:
        answer = self.client.post(f"{self.session}/{what}", json=body)
        assert answer.status_code == 200, answer.text
        return answer.json()["value"]

    def open(self, address: str) -> None:
        self.call("url", url=address)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.call("execute/sync", script=script, args=list(arguments))

    def find(self, selector: str) -> str:
        """Id of the first element, once it is there."""
        return wait_for(lambda: self.run("return document.querySelector(arguments[0])", selector))[ELEMENT]

    def click(self, selector: str) -> None:
        self.call(f"element/{self.find(selector)}/click")

    def type(self, selector: str, text: str) -> None:
        """Text into a field; a path into a file's."""
        self.call(f"element/{self.find(selector)}/value", text=text)

    def screenshot(self, path: Path) -> None:
        path.write_bytes(base64.b64decode(self.client.get(f"{self.session}/screenshot").json()["value"]))

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_: object) -> None:
        self.client.delete(self.session)
        self.driver.terminate()
        self.driver.wait(20)


def wait_for(ask: Any, seconds: float = 40) -> Any:
    """The first true answer; an AssertionError where there is none in time."""
    end, answer = time.monotonic() + seconds, None
    while True:
        try:
            if answer := ask():
                return answer
        except httpx.TransportError:
            pass
        assert time.monotonic() < end, f"still {answer!r} after {seconds} s"
        time.sleep(0.1)
