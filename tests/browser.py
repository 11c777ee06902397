"""A headless Chromium for tests, spoken to over two pipes (the DevTools protocol); no driver and no
network port.
"""

import base64
import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "chrome")
FLAGS = (
    "--headless=new",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--no-first-run",
    "--disable-extensions",
    "--hide-scrollbars",
    "--disable-background-networking",
    "--remote-debugging-pipe",
)


def chromium() -> str:
    """The program; '' where there is none."""
    return next((path for name in NAMES if (path := shutil.which(name))), "")


def axe_source() -> str:
    """Text of axe-core, from the package of the extra `dev` or from one that has a newer axe-core
    (and a driver that is not needed here); '' where neither is installed.
    """
    for package in ("axe_playwright_python", "axe_core_python"):
        if (spec := find_spec(package)) and spec.submodule_search_locations:
            file = Path(spec.submodule_search_locations[0]) / "axe.min.js"
            return file.read_text(encoding="utf-8")
    return ""


def why_skipped() -> str:
    """What is missing for a test of a page; '' where nothing is."""
    if not chromium():
        return "no Chromium on this machine"
    return "" if axe_source() else "axe-core (the extra `dev`) is not installed"


class Page:
    """One page of the browser: `open` a file, then `evaluate` JavaScript, take pictures."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._out, self._in = to_browser, from_browser
        self._buffer, self._last, self._session = b"", 0, ""
        target = self._call("Target.createTarget", url="about:blank")["targetId"]
        attached = self._call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = attached["sessionId"]
        self._call("Page.enable")

    def _message(self) -> dict[str, Any]:
        while b"\0" not in self._buffer:
            received = os.read(self._in, 1 << 16)
            if not received:
                raise ConnectionError("the browser has ended")
            self._buffer += received
        text, self._buffer = self._buffer.split(b"\0", 1)
        message: dict[str, Any] = json.loads(text)
        return message

    def _call(self, method: str, **parameters: Any) -> dict[str, Any]:
        self._last += 1
        message = {"id": self._last, "method": method, "params": parameters}
        sent = json.dumps(message | ({"sessionId": self._session} if self._session else {}))
        left = sent.encode() + b"\0"
        while left:
            left = left[os.write(self._out, left) :]
        while (answer := self._message()).get("id") != self._last:
            pass
        assert "error" not in answer, answer
        result: dict[str, Any] = answer["result"]
        return result

    def _navigate(self, url: str) -> None:
        self._call("Page.navigate", url=url)
        while self._message().get("method") != "Page.loadEventFired":
            pass

    def open(self, file: Path, *, width: int, dark: bool = False, media: str = "") -> None:
        """Load a file at that width in CSS pixels, in the light or the dark scheme, on a screen or
        for `media="print"`.
        """
        self._navigate("about:blank")
        # the site remembers the scheme of its reader
        self._call("Storage.clearDataForOrigin", origin="file://", storageTypes="local_storage")
        self._call(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=900,
            deviceScaleFactor=1,
            mobile=False,
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._call("Emulation.setEmulatedMedia", media=media, features=[scheme])
        self._navigate(file.resolve().as_uri())

    def evaluate(self, script: str) -> Any:
        """Value of a JavaScript expression; a promise is waited for."""
        result = self._call(
            "Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in result, result["exceptionDetails"]
        return result["result"].get("value")

    def picture(self, file: Path) -> None:
        """The whole page as PNG."""
        size = self._call("Page.getLayoutMetrics")["cssContentSize"]
        clip = {"x": 0, "y": 0, "width": size["width"], "height": size["height"], "scale": 1}
        shot = self._call("Page.captureScreenshot", clip=clip, captureBeyondViewport=True)
        file.write_bytes(base64.b64decode(shot["data"]))

    def print_to(self, file: Path) -> None:
        """The page as a PDF of A4, as it would be printed."""
        printed = self._call("Page.printToPDF", paperWidth=8.27, paperHeight=11.69)
        file.write_bytes(base64.b64decode(printed["data"]))

    def accessibility_errors(self, axe: str) -> list[str]:
        """What axe-core finds: `rule: element`, of WCAG 2 A and AA and of best practice."""
        self.evaluate(axe + "\n;0")
        script = (
            "axe.run(document, {resultTypes: ['violations']}).then(r => r.violations.flatMap(v =>"
            " v.nodes.map(n => v.id + ': ' + n.target.join(' ') + ' ' + n.html.slice(0, 120)"
            " + ' ' + (n.any[0]?.message ?? n.all[0]?.message ?? n.none[0]?.message ?? ''))))"
        )
        errors: list[str] = self.evaluate(script)
        return errors


@contextmanager
def browser_page() -> Iterator[Page]:
    """A page of a browser that ends with the block."""
    to_read, to_write = os.pipe()
    from_read, from_write = os.pipe()
    # the browser reads its file 3 and writes its file 4
    shell = f'exec "$0" "$@" 3<&{to_read} 4>&{from_write}'
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = ["bash", "-c", shell, chromium(), *FLAGS, f"--user-data-dir={folder}"]
        started = subprocess.Popen(
            [*command, "about:blank"],
            pass_fds=(to_read, from_write),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(to_read)
        os.close(from_write)
        try:
            yield Page(to_write, from_read)
        finally:
            started.terminate()
            started.wait(30)
            os.close(to_write)
            os.close(from_read)
