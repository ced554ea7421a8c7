"""The console in a real browser, with a transaction that is really stuck: its initiator died before Commit.

Where TANDEM_SHOTS names a folder, what was seen is written there: docs/images is made of it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from selenium.common.exceptions import WebDriverException
from selenium.webdriver import Chrome
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.ui import WebDriverWait

from tests.support.browser import LOAD_S, browser, needs_chromium
from tests.support.console import SECRET, in_doubt, parked, served, undelivered
from tests.support.house import House, built

pytestmark = needs_chromium


@pytest.fixture
def house(new_database: Callable[[str], str]) -> Iterator[House]:
    with built(new_database) as house:
        yield house


def shot(driver: Chrome, folder: Path, name: str) -> Path:
    """A picture of the whole page."""
    driver.set_window_size(1280, 400)
    height = driver.execute_script("return document.documentElement.scrollHeight")
    driver.set_window_size(1280, min(int(height) + 150, 2_000))
    path = Path(os.environ.get("TANDEM_SHOTS") or folder) / f"{name}.png"
    assert driver.save_screenshot(str(path))
    return path


def sees(driver: Chrome, what: str) -> None:
    """Waits until that is on the page: a click comes back before the next page is there. Nothing personal is on it."""

    def is_there(driver: Chrome) -> bool:
        assert SECRET not in driver.page_source
        return what in driver.find_element(By.TAG_NAME, "body").text

    WebDriverWait(driver, LOAD_S, ignored_exceptions=[WebDriverException]).until(is_there, what)


def is_at(driver: Chrome, address: str) -> None:
    """Waits until the browser is there."""
    WebDriverWait(driver, LOAD_S).until(lambda driver: driver.current_url == address, address)


def ground(driver: Chrome) -> int:
    """How bright the page's ground is: 0 to 255."""
    colour = driver.execute_script("return getComputedStyle(document.body).backgroundColor")
    return max(int(part) for part in colour.strip("rgba()").split(",")[:3])


def test_a_stuck_transaction_is_found_and_delivered(house: House, tmp_path: Path) -> None:
    """From the overview to its story, by a confirmation with who and why to its delivery; no script, no complaint."""
    for age_s in (20, 90, 400):
        in_doubt(house, age_s=age_s, participants=("ledger", "other"))
    for _ in range(5):
        in_doubt(house).finish()
    parked(house)
    stuck = undelivered(house)
    house.ledger.set(stuck.id, last_error="UNAVAILABLE", attempts=4)
    with served(house) as address, browser() as driver:
        driver.get(address)
        sees(driver, "In doubt now")
        assert ground(driver) > 200
        assert shot(driver, tmp_path, "console-overview-light").stat().st_size > 10_000

        driver.find_element(By.LINK_TEXT, "Undelivered").click()
        sees(driver, "Decisions that were not acknowledged")
        driver.find_element(By.LINK_TEXT, str(stuck.key)).click()
        sees(driver, "recovery delivers it")
        shot(driver, tmp_path, "console-story-light")
        driver.find_element(By.PARTIAL_LINK_TEXT, "Retry the delivery now").click()
        sees(driver, "Retry the delivery now?")
        driver.find_element(By.CSS_SELECTOR, "main form button").click()
        assert driver.current_url.endswith("/retry"), "a browser asks for who and why by itself"
        driver.find_element(By.ID, "actor").send_keys("ada")
        driver.find_element(By.ID, "reason").send_keys("the initiator died, and the user waits")
        shot(driver, tmp_path, "console-confirm-light")
        driver.find_element(By.CSS_SELECTOR, "main form button").click()
        sees(driver, "Recorded. It is due")
        sees(driver, "ada did `retry` (ledger) by hand")
        house.recovery.run_once()
        driver.get(f"{address}/transactions/{stuck.key}")
        sees(driver, "Nothing is left to do.")
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_in_the_dark_and_by_keyboard(house: House, tmp_path: Path) -> None:
    """A dark ground for who prefers that; Tab comes to what skips the navigation first, and shows where it is."""
    in_doubt(house, age_s=200, participants=("ledger", "other"))
    waiting = undelivered(house)
    with served(house) as address, browser(dark=True) as driver:
        driver.get(address)
        assert ground(driver) < 60
        shot(driver, tmp_path, "console-overview-dark")
        driver.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
        focused = driver.switch_to.active_element
        assert focused.text == "Skip to the content"
        assert focused.value_of_css_property("outline-style") == "solid"
        focused.send_keys(Keys.ENTER)
        is_at(driver, f"{address}/#main")
        driver.find_element(By.ID, "transaction").send_keys(str(waiting.id), Keys.ENTER)
        sees(driver, str(waiting.key))
        shot(driver, tmp_path, "console-story-dark")


def test_the_token_opens_it(house: House) -> None:
    """Logged in by the form and out again; the cookie is not for scripts."""
    token = "a-token-of-the-tests"
    with served(house, token=token) as address, browser() as driver:
        driver.get(f"{address}/undelivered")
        is_at(driver, f"{address}/login")
        driver.find_element(By.ID, "token").send_keys(token, Keys.ENTER)
        sees(driver, "In doubt now")
        assert driver.execute_script("return document.cookie") == ""
        driver.find_element(By.XPATH, "//button[text()='Log out']").click()
        is_at(driver, f"{address}/login")


def test_each_page_names_what_a_screen_reader_asks_for(house: House) -> None:
    """One main landmark and one h1; each field has a label, each table a caption, each heading of it a scope."""
    tx = parked(house)
    one = f"/transactions/{tx.key}"
    with served(house) as address, browser(width=400, height=800) as driver:
        for path in ("/", "/in-doubt", "/undelivered", "/parked", one, f"{one}/retry", f"{one}/close/ledger", "/login"):
            driver.get(f"{address}{path}")
            assert (
                driver.execute_script(
                    """
                const all = (q) => [...document.querySelectorAll(q)];
                const wrong = [];
                if (all('main').length !== 1 || all('h1').length !== 1) wrong.push('landmarks');
                if (!document.documentElement.lang || !document.title) wrong.push('language or title');
                for (const e of all('input:not([type=hidden]), select'))
                  if (!e.labels.length) wrong.push('no label: ' + e.id);
                for (const e of all('table')) if (!e.caption) wrong.push('no caption');
                for (const e of all('th')) if (!e.scope) wrong.push('no scope: ' + e.textContent);
                const ids = all('[id]').map((e) => e.id);
                if (new Set(ids).size !== ids.length) wrong.push('an id twice');
                return wrong;
                """
                )
                == []
            ), path
