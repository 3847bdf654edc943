# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium from the distribution, and questions to a page in it. No process of it outlives `chromium()`."""

from __future__ import annotations

import base64
import json
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from selenium import webdriver
from selenium.common.exceptions import WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.chrome.webdriver import WebDriver
from urllib3.exceptions import HTTPError

PROGRAMS = ("chromium", "chromedriver")


@contextmanager
def chromium(profile: Path) -> Iterator[WebDriver]:
    """A browser with an empty `profile`, a folder of its own that also tells its processes from others'."""
    found = {name: shutil.which(name) for name in PROGRAMS}
    if missing := [name for name, path in found.items() if path is None]:
        pytest.fail(f"{' and '.join(missing)} not found: run scripts/install-deps")
    options = webdriver.ChromeOptions()
    options.binary_location = str(found["chromium"])
    for argument in (
        "--headless=new",
        "--no-sandbox",  # as root there is none; the page is our own
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--disable-background-networking",
        "--no-first-run",
        "--hide-scrollbars",
        "--force-color-profile=srgb",
        f"--user-data-dir={profile}",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    try:
        driver = webdriver.Chrome(options, Service(str(found["chromedriver"])))
        try:
            yield driver
        finally:
            # A driver that died cannot be asked; what it leaves is ended below.
            with suppress(WebDriverException, HTTPError, OSError):
                driver.quit()
    finally:
        end(profile)


def processes(profile: Path) -> list[int]:
    """Processes of the browser with this profile."""
    found = []
    for folder in Path("/proc").iterdir():
        if folder.name.isdecimal():
            with suppress(OSError):
                if f"--user-data-dir={profile}".encode() in (folder / "cmdline").read_bytes().split(b"\0"):
                    found.append(int(folder.name))
    return found


def end(profile: Path, patience: float = 10.0) -> None:
    """Ends what is left of the browser: a driver that died, or was killed, leaves its browser behind."""
    deadline = time.monotonic() + patience
    while left := processes(profile):
        for pid in left:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        assert time.monotonic() < deadline, f"browser processes {left} do not end"
        time.sleep(0.05)


def look(driver: WebDriver, address: str, width: int, scheme: str) -> None:
    """Opens a page as a window of `width` pixels and a colour scheme show it."""
    # From an empty page on, so that nothing of the last look is left, in the logs neither.
    driver.get("about:blank")
    logged(driver)
    features = [{"name": "prefers-color-scheme", "value": scheme}]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})
    size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)
    driver.get(address)


def logged(driver: WebDriver) -> tuple[list[str], list[str]]:
    """(console messages that are warnings or worse, addresses asked for) since this was last asked."""
    entries: list[dict[str, Any]] = driver.get_log("browser")  # type: ignore[no-untyped-call]
    events: list[dict[str, Any]] = driver.get_log("performance")  # type: ignore[no-untyped-call]
    messages = [json.loads(e["message"])["message"] for e in events]
    asked = [m["params"]["request"]["url"] for m in messages if m["method"] == "Network.requestWillBeSent"]
    return [e["message"] for e in entries if e["level"] in ("SEVERE", "WARNING")], asked


def screenshots(driver: WebDriver, selector: str, folder: Path, tall: int = 5000) -> None:
    """Pictures of one element over the whole width of the page, `tall` pixels at most each."""
    top, height, width = driver.execute_script(
        "const b = document.querySelector(arguments[0]).getBoundingClientRect();"
        "return [b.y + scrollY, b.height, innerWidth];",
        selector,
    )
    for number, at in enumerate(range(0, int(height), tall), 1):
        clip = {"x": 0, "y": top + at, "width": width, "height": min(tall, height - at), "scale": 1}
        taken = driver.execute_cdp_cmd("Page.captureScreenshot", {"clip": clip, "captureBeyondViewport": True})
        (folder / f"{selector.strip('#')}-{number}.png").write_bytes(base64.b64decode(taken["data"]))
