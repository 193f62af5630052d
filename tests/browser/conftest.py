"""A headless Chromium of its own for each test, and pages in files."""

from __future__ import annotations

import os
import shutil
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from pathlib import Path

    from selenium.webdriver import Chrome

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
)
MISSING = [name for name in ("chromium", "chromedriver") if not shutil.which(name)]


@pytest.fixture(scope="session")
def chromium(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chrome]:
    """Return one browser with an empty profile; skipped, with the reason, where there is none."""
    if MISSING:
        pytest.skip(f"{' and '.join(MISSING)} missing: apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    home = tmp_path_factory.mktemp("home")  # its crash reporter writes there, whatever the profile is
    for flag in (*FLAGS, f"--user-data-dir={home / 'profile'}"):
        options.add_argument(flag)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    service = webdriver.ChromeService(
        executable_path=shutil.which("chromedriver"),
        env=os.environ | {"HOME": str(home), "XDG_CONFIG_HOME": str(home), "XDG_CACHE_HOME": str(home)},
    )
    driver = webdriver.Chrome(options=options, service=service)
    driver.set_page_load_timeout(30)
    try:
        yield driver
    finally:
        driver.quit()


@pytest.fixture
def browser(chromium: Chrome) -> Iterator[Chrome]:
    """Return the browser as it starts: a wide window, light, JavaScript on, nothing kept from the test before."""
    reset(chromium)
    yield chromium
    reset(chromium)


def reset(driver: Chrome) -> None:
    driver.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": False})
    driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})
    scheme(driver, "light")
    driver.set_window_size(1440, 1000)
    driver.get("about:blank")
    for name in ("browser", "performance"):
        log(driver, name)


def scheme(driver: Chrome, name: str) -> None:
    """Choose light or dark; nothing moves, or a text would be looked for while it fades in."""
    chosen = {"prefers-color-scheme": name, "prefers-reduced-motion": "reduce"}
    features = [{"name": feature, "value": value} for feature, value in chosen.items()]
    driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": features})


def log(driver: Chrome, name: str) -> list[dict[str, Any]]:
    """Return the lines of one of the browser's logs that are new."""
    return list(driver.get_log(name))  # type: ignore[no-untyped-call]


@pytest.fixture
def colours(browser: Chrome) -> Callable[[str], None]:
    return lambda name: scheme(browser, name)


@pytest.fixture
def logged(browser: Chrome) -> Callable[[str], list[dict[str, Any]]]:
    return lambda name: log(browser, name)


@pytest.fixture
def written(tmp_path: Path) -> Callable[[str], str]:
    """Return written(page), which puts a page into a file and returns its address."""

    def written(page: str) -> str:
        path = tmp_path / "index.html"
        path.write_text(page, encoding="utf-8")
        return path.as_uri()

    return written
