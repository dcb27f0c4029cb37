"""Headless Chromium, and the servers that it looks at."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from live_server import load_student, running_server, wait_until_ready
from selenium import webdriver
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from selenium.webdriver.support.ui import WebDriverWait
from stub_openai import StubServer

WAIT_S = 60
"""A busy machine may take its time."""


class Browser:
    """A Chromium tab, and what tests do with it."""

    def __init__(self, driver: webdriver.Chrome, screenshots: Path) -> None:
        self.driver = driver
        self._screenshots = screenshots

    def open(self, url: str, *, state: str | None = "Ready") -> None:
        self.driver.get(f"{url}/")
        if state is not None:
            self.wait_for_text("state-text", state)

    def find(self, selector: str) -> WebElement:
        return self.driver.find_element(By.CSS_SELECTOR, selector)

    def all(self, selector: str) -> list[WebElement]:
        return self.driver.find_elements(By.CSS_SELECTOR, selector)

    def text(self, selector: str) -> str:
        """What is in the page, seen or not."""
        return str(self.find(selector).get_property("textContent")).strip()

    def run(self, script: str, *arguments: Any) -> Any:
        return self.driver.execute_script(script, *arguments)

    def press(self, *keys: str) -> None:
        """Keys to whatever has the focus."""
        self.driver.switch_to.active_element.send_keys(*keys)

    def focused(self) -> str:
        return str(self.driver.switch_to.active_element.get_attribute("id"))

    def wait(self, condition: Any, message: str) -> Any:
        return WebDriverWait(self.driver, WAIT_S, poll_frequency=0.03).until(lambda _: condition(), message)

    def wait_for_text(self, element_id: str, text: str) -> None:
        self.wait(lambda: text in self.text(f"#{element_id}"), f"#{element_id} does not say {text!r}")

    def ask(self, question: str) -> None:
        self.find("#message").send_keys(question, Keys.ENTER)

    def wait_for_answer(self) -> str:
        """The last answer's text, once it has ended."""
        self.wait(
            lambda: self.all(".turn.model") and not self.all(".turn.model[aria-busy=true]"), "no end of it"
        )
        return str(self.all(".turn.model .answer")[-1].get_property("textContent"))

    def figures(self) -> str:
        return str(self.all(".turn.model .figures")[-1].get_property("textContent"))

    def emulate(self, *, width: int, height: int, dark: bool = False, phone: bool = False) -> None:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 2 if phone else 1, "mobile": phone}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})

    def screenshot(self, name: str) -> Path:
        path = self._screenshots / f"{name}.png"
        assert self.driver.save_screenshot(str(path))
        return path

    def complaints(self) -> list[str]:
        """What the browser says about the page, since the last call: errors of scripts, refused loads."""
        return [entry["message"] for entry in self.driver.get_log("browser")]  # type: ignore[no-untyped-call]

    def requested_urls(self) -> list[str]:
        """What the page has asked for, since the last call."""
        entries = self.driver.get_log("performance")  # type: ignore[no-untyped-call]
        messages = [json.loads(entry["message"])["message"] for entry in entries]
        return [
            message["params"]["request"]["url"]
            for message in messages
            if message["method"] == "Network.requestWillBeSent"
        ]

    def other_hosts(self, url: str) -> list[str]:
        """Requests that went elsewhere than to this server."""
        return [asked for asked in self.requested_urls() if urlsplit(asked).netloc != urlsplit(url).netloc]


@pytest.fixture(scope="session")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[webdriver.Chrome]:
    options = webdriver.ChromeOptions()
    options.binary_location = _program("chromium")
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--no-first-run",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
        # As on a device without a network: no name leads anywhere.
        "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE 127.0.0.1",
    ):
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    chrome = webdriver.Chrome(options, Service(_program("chromedriver")))
    yield chrome
    chrome.quit()


def _program(name: str) -> str:
    found = shutil.which(name)
    assert found, f"{name} is not installed: apt install chromium chromium-driver"
    return found


@pytest.fixture
def browser(driver: webdriver.Chrome, tmp_path: Path) -> Iterator[Browser]:
    """A browser that knows nothing of the test before. EDGEKIT_SCREENSHOTS names where its pictures stay."""
    kept = os.environ.get("EDGEKIT_SCREENSHOTS")
    screenshots = Path(kept) if kept else tmp_path
    screenshots.mkdir(parents=True, exist_ok=True)
    driver.switch_to.new_window("tab")
    page = Browser(driver, screenshots)
    page.emulate(width=1280, height=800)
    page.complaints()
    page.requested_urls()
    yield page
    driver.close()
    driver.switch_to.window(driver.window_handles[0])


@pytest.fixture(scope="session")
def live_url(student: Path) -> Iterator[str]:
    """The real server with the real student."""
    with running_server(lambda: load_student(student)) as url:
        wait_until_ready(url)
        yield url


@pytest.fixture
def stub() -> Iterator[StubServer]:
    """A server that says what a test wants it to, over OpenAI's protocol."""
    with StubServer() as server:
        yield server
