"""The drift page in a real browser: nothing is fetched, every cell opens, and it is readable everywhere."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest
from drift_reports import BROKEN, HOSTILE, NEW, cell, hostile, realistic, report
from selenium.webdriver import ActionChains, Keys
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from kiln.drift import page
from kiln.drift.records import Verdict

if TYPE_CHECKING:
    from collections.abc import Callable

    from selenium.webdriver import Chrome
    from selenium.webdriver.remote.webelement import WebElement

KEY = f"{BROKEN}@{NEW}"
CONTRAST = """
const canvas = document.createElement("canvas").getContext("2d", {willReadFrequently: true});
const rgba = colour => {
  canvas.clearRect(0, 0, 1, 1); canvas.fillStyle = colour; canvas.fillRect(0, 0, 1, 1);
  return [...canvas.getImageData(0, 0, 1, 1).data];
};
const light = ([r, g, b]) => [r, g, b].map(v => (v /= 255) <= .04045 ? v / 12.92 : ((v + .055) / 1.055) ** 2.4)
  .reduce((sum, v, i) => sum + v * [.2126, .7152, .0722][i], 0);
const under = element => {
  for (let at = element; at; at = at.parentElement) {
    const colour = rgba(getComputedStyle(at).backgroundColor);
    if (colour[3] === 255) return colour;
  }
  return [255, 255, 255, 255];
};
const own = element => [...element.childNodes].some(node => node.nodeType === 3 && node.data.trim());
const shown = element => own(element) && element.getClientRects().length;
const seen = [...document.querySelectorAll(arguments[0])].filter(shown);
return seen.map(element => {
  const [a, b] = [light(rgba(getComputedStyle(element).color)), light(under(element))].sort((x, y) => y - x);
  return [(a + .05) / (b + .05), element.className, element.textContent.slice(0, 40)];
});
"""


@pytest.fixture(scope="session")
def real() -> str:
    return page.render(realistic())


@pytest.fixture
def shown(browser: Chrome, written: Callable[[str], str], real: str) -> Chrome:
    """Return the browser with the realistic page open."""
    browser.get(written(real))
    return browser


def drawer(browser: Chrome) -> WebElement:
    """Return the open detail."""
    return WebDriverWait(browser, 5).until(lambda it: it.find_element(By.CSS_SELECTOR, "dialog[open]"))


def find(browser: Chrome, key: str) -> WebElement:
    return browser.find_element(By.CSS_SELECTOR, f'.matrix a[href="#{key}"]')


def focused(browser: Chrome) -> str:
    return str(browser.switch_to.active_element.get_attribute("href"))


def closed(browser: Chrome) -> bool:
    return not browser.find_elements(By.CSS_SELECTOR, "dialog[open]")


def narrow(browser: Chrome) -> None:
    size = {"width": 390, "height": 844, "deviceScaleFactor": 2, "mobile": True}
    browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)


def requested(entries: list[dict[str, Any]]) -> set[str]:
    """Return every address that the page has asked for, without its fragment."""
    events = [json.loads(entry["message"])["message"] for entry in entries]
    sent = [event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"]
    return {url.partition("#")[0] for url in sent}


def test_it_asks_for_nothing_but_itself_and_the_console_is_empty(
    browser: Chrome, written: Callable[[str], str], real: str, logged: Callable[[str], list[dict[str, Any]]]
) -> None:
    address = written(real)
    browser.get(address)
    find(browser, KEY).click()
    drawer(browser)
    assert requested(logged("performance")) == {address}
    assert logged("browser") == []


def test_a_click_opens_the_detail_with_the_diff(shown: Chrome) -> None:
    find(shown, KEY).click()
    text = drawer(shown).text
    for part in (
        BROKEN,
        f"on {NEW}",
        "cannot be merged",
        "hunk 2",
        "Expected",
        f"./inv patch.port {BROKEN} --to {NEW}",
    ):
        assert part in text
    assert "diff --git a/vllm/" in text
    assert shown.current_url.endswith(f"#{KEY}")
    added = drawer(shown).find_element(By.CSS_SELECTOR, ".diff .a")
    assert added.text.startswith("+")
    drawer(shown).find_element(By.ID, "shut").click()
    assert closed(shown)
    assert "#" not in shown.current_url


def test_the_keyboard_reaches_every_cell(shown: Chrome) -> None:
    shown.execute_script("arguments[0].focus()", find(shown, KEY))
    keys = ActionChains(shown)
    keys.send_keys(Keys.ARROW_LEFT, Keys.ARROW_DOWN, Keys.ENTER).perform()
    assert "blockfp8-moe-gfx942" in drawer(shown).text
    assert shown.current_url.endswith("#blockfp8-moe-gfx942@0.33.0")
    ActionChains(shown).send_keys(Keys.ESCAPE).perform()
    assert closed(shown)
    assert focused(shown).endswith("#blockfp8-moe-gfx942@0.33.0")
    ActionChains(shown).send_keys(Keys.HOME).perform()
    assert focused(shown).endswith("#blockfp8-moe-gfx942@0.24.0")
    reachable = shown.execute_script(
        "return [...document.querySelectorAll('.matrix .c')].filter(c => c.tabIndex === 0).length"
    )
    assert reachable == 1


def test_a_deep_link_opens_its_cell_and_its_neighbours_are_a_step_away(
    browser: Chrome, written: Callable[[str], str], real: str
) -> None:
    browser.get(f"{written(real)}#{KEY}")
    assert f"on {NEW}" in drawer(browser).text
    assert not browser.find_element(By.ID, "forth").is_displayed()
    browser.find_element(By.ID, "back").click()
    WebDriverWait(browser, 5).until(lambda it: "on 0.33.0" in drawer(it).text)
    assert len(drawer(browser).find_elements(By.CSS_SELECTOR, ".strip .c")) == 13


def test_a_link_to_nothing_opens_nothing(
    browser: Chrome, written: Callable[[str], str], real: str, logged: Callable[[str], list[dict[str, Any]]]
) -> None:
    for wrong in ("no@such", "%E0%A4%A", "only"):
        browser.get(f"{written(real)}#{wrong}")
        assert closed(browser)
    assert logged("browser") == []


def test_the_filter_leaves_what_needs_attention(shown: Chrome) -> None:
    rows = shown.find_elements(By.CSS_SELECTOR, ".matrix tbody tr")
    assert sum(row.is_displayed() for row in rows) == 14
    shown.find_element(By.ID, "only").click()
    left = [row.find_element(By.CSS_SELECTOR, "th b").text for row in rows if row.is_displayed()]
    assert left == [
        BROKEN,
        "blockfp8-moe-gfx942",
        "gfx942-index-topk-pin",
        "m3-stream-first-delta",
        "m3-reasoning-prompt-marker",
    ]


def test_a_filter_that_leaves_nothing_says_so(browser: Chrome, written: Callable[[str], str]) -> None:
    browser.get(written(page.render(report(cell()))))
    nothing = browser.find_element(By.CLASS_NAME, "nothing")
    assert not nothing.is_displayed()
    browser.find_element(By.ID, "only").click()
    assert nothing.text == "No patch needs attention."


def test_a_command_is_copied(shown: Chrome) -> None:
    shown.execute_cdp_cmd(
        "Browser.grantPermissions", {"permissions": ["clipboardReadWrite", "clipboardSanitizedWrite"]}
    )
    button = shown.find_element(By.CSS_SELECTOR, ".ask .copy")
    button.click()
    WebDriverWait(shown, 5).until(lambda _: button.text == "Copied")
    said = shown.execute_async_script("navigator.clipboard.readText().then(arguments[0], e => arguments[0](String(e)))")
    assert said == f"./inv patch.port {BROKEN} --to {NEW}"


@pytest.mark.parametrize("name", ["light", "dark"])
def test_every_text_has_contrast(
    browser: Chrome, written: Callable[[str], str], colours: Callable[[str], None], name: str
) -> None:
    colours(name)
    every = [cell(f"{v}-{known}", verdict=v, known=known) for v in Verdict for known in (True, False)]
    for text in (page.render(report(*every)), page.render(realistic())):
        browser.get(written(text))
        back = browser.execute_script("return getComputedStyle(document.body).backgroundColor")
        assert (back == "rgb(23, 21, 19)") == (name == "dark")
        measured = browser.execute_script(CONTRAST, "main *, header *, footer *")
        assert len(measured) > 50
        assert [row for row in measured if row[0] < 4.5] == []
    browser.get(f"{browser.current_url}#{KEY}")
    measured = browser.execute_script(CONTRAST, "dialog *")
    assert any(row[1] == "a" for row in measured)
    assert [row for row in measured if row[0] < 4.5] == []


def test_contrast_that_is_too_low_is_seen(shown: Chrome) -> None:
    shown.execute_script("document.querySelectorAll('.matrix .w').forEach(e => e.style.color = '#ccc')")
    assert min(row[0] for row in shown.execute_script(CONTRAST, ".matrix .w")) < 4.5


def test_the_button_changes_the_colours_and_a_reload_keeps_them(shown: Chrome) -> None:
    button = shown.find_element(By.ID, "theme")
    assert button.text == "Dark"
    button.click()
    back = "return getComputedStyle(document.body).backgroundColor"
    assert shown.execute_script(back) == "rgb(23, 21, 19)"
    shown.refresh()
    assert shown.execute_script(back) == "rgb(23, 21, 19)"
    assert shown.find_element(By.ID, "theme").text == "Light"
    shown.execute_script("localStorage.clear()")


@pytest.mark.parametrize("text", ["real", "hostile"])
def test_a_phone_scrolls_down_only(browser: Chrome, written: Callable[[str], str], real: str, text: str) -> None:
    narrow(browser)
    browser.get(written(real if text == "real" else page.render(hostile())))
    wide = "return [document.documentElement.scrollWidth, innerWidth]"
    scroll, inner = browser.execute_script(wide)
    assert inner == 390
    assert scroll <= inner
    first = browser.find_element(By.CSS_SELECTOR, ".matrix .c")
    assert first.size["height"] >= 44
    assert first.find_element(By.CLASS_NAME, "r").is_displayed()
    browser.execute_script("arguments[0].click()", first)
    panel = drawer(browser)
    assert browser.execute_script("return [arguments[0].scrollWidth, arguments[0].clientWidth]", panel)[0] <= 390


def test_the_first_column_and_the_heads_stay_in_sight(browser: Chrome, written: Callable[[str], str]) -> None:
    names = [f"0.{n}.0" for n in range(24, 60)]
    many = report(*(cell(f"patch-{n}", name) for n in range(40) for name in names))
    browser.get(written(page.render(many)))
    browser.execute_script("const box = document.querySelector('.box'); box.scrollTo(900, 900)")
    places: Any = browser.execute_script("""
      const at = s => document.querySelector(s).getBoundingClientRect(), box = at(".box");
      return [at(".matrix tbody th").left - box.left, at(".matrix thead th:last-child").top - box.top,
              document.documentElement.scrollWidth - innerWidth, document.querySelector(".box").scrollLeft];
    """)
    assert places[0] == pytest.approx(1, abs=1)
    assert places[1] == pytest.approx(1, abs=1)
    assert places[2] <= 0
    assert places[3] > 0


def test_hostile_text_is_shown_and_runs_nothing(
    browser: Chrome, written: Callable[[str], str], logged: Callable[[str], list[dict[str, Any]]]
) -> None:
    address = written(page.render(hostile()))
    browser.get(f"{address}#evil@0.31.0")
    panel = drawer(browser)
    assert HOSTILE.partition("\n")[0] in panel.text
    assert "<script>window.hit=2</script>⟦U+000D⟧" in panel.text
    assert "⟦U+202E⟧" in panel.text
    assert browser.execute_script("return window.hit") is None
    assert browser.find_elements(By.TAG_NAME, "img") == []
    assert requested(logged("performance")) == {address}
    assert logged("browser") == []


def test_the_policy_stops_a_script_that_got_in(
    browser: Chrome, written: Callable[[str], str], real: str, logged: Callable[[str], list[dict[str, Any]]]
) -> None:
    """Were an escape missing, this is what would still hold."""
    browser.get(
        written(real.replace("</main>", '<script>window.hit=1</script><img src="x" onerror="window.hit=1"></main>'))
    )
    assert browser.execute_script("return window.hit") is None
    assert sum("Content Security Policy" in entry["message"] for entry in logged("browser")) >= 2
    find(browser, KEY).click()
    assert BROKEN in drawer(browser).text


def test_without_javascript_it_is_a_table_with_details(
    browser: Chrome, written: Callable[[str], str], real: str
) -> None:
    browser.execute_cdp_cmd("Emulation.setScriptExecutionDisabled", {"value": True})
    browser.get(f"{written(real)}#{KEY}")
    assert browser.find_element(By.CSS_SELECTOR, ".matrix").is_displayed()
    assert len(browser.find_elements(By.CSS_SELECTOR, ".matrix tbody td .c")) == 14 * 13
    detail = browser.find_element(By.ID, KEY)
    assert detail.is_displayed()
    assert "cannot be merged" in detail.text
    assert not browser.find_element(By.ID, "theme").is_displayed()
    assert not detail.find_element(By.CLASS_NAME, "copy").is_displayed()
    link = detail.find_element(By.CLASS_NAME, "to-diff")
    link.click()
    diff = browser.find_element(By.ID, str(link.get_attribute("href")).partition("#")[2])
    diff.find_element(By.TAG_NAME, "summary").click()
    assert "diff --git a/vllm/" in diff.text
