"""A real Chromium, driven as a person would use it: needs Debian's chromium and chromium-driver."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service

from tests.support.required import needs

CHROMIUM, DRIVER = shutil.which("chromium"), shutil.which("chromedriver")
needs_chromium = needs(
    "chromium", CHROMIUM is not None and DRIVER is not None, "chromium and chromedriver are not installed"
)
LOAD_S = 30


@contextmanager
def browser(*, dark: bool = False, width: int = 1280, height: int = 1000) -> Iterator[Chrome]:
    """Without a window, with a profile of its own; dark: as a person who prefers that has set it."""
    with tempfile.TemporaryDirectory(prefix="tandem-chromium-", ignore_cleanup_errors=True) as profile:
        options = ChromeOptions()
        options.binary_location = CHROMIUM or ""
        for argument in (
            "--headless=new",
            "--no-sandbox",  # root has none
            "--disable-dev-shm-usage",
            "--disable-gpu",
            "--hide-scrollbars",
            "--no-proxy-server",
            "--force-prefers-reduced-motion",
            f"--user-data-dir={profile}",
            f"--window-size={width},{height}",
        ):
            options.add_argument(argument)
        driver = Chrome(options=options, service=Service(executable_path=DRIVER))
        try:
            driver.set_page_load_timeout(LOAD_S)
            scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
            driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
            yield driver
        finally:
            driver.quit()
