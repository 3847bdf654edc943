# SPDX-License-Identifier: Apache-2.0
"""The page in a real browser: drawn, readable and quiet, at two widths, in light and in dark.

Pictures of every part are in pytest's folder of temporary files, for eyes.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver

from framework import browser
from framework.made_results import HOST, all_results
from tmem_host.report.page import ORDER, write_report
from tmem_host.report.plots import plots_for

pytestmark = pytest.mark.slow

CHECKS = (Path(__file__).parent / "report_checks.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_report(all_results(), tmp_path_factory.mktemp("report"))


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    profile = tmp_path_factory.mktemp("profile")
    with browser.chromium(profile) as running:
        yield running
    assert browser.processes(profile) == []


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_missing_clipped_or_hard_to_read(
    driver: WebDriver, page: Path, tmp_path: Path, width: int, scheme: str
) -> None:
    browser.look(driver, page.as_uri(), width, scheme)
    assert driver.execute_script("return document.documentElement.dataset.ready") == "yes"
    for part in ("verdict", *ORDER):
        browser.screenshots(driver, f"#{part}", tmp_path)
    assert driver.execute_script(CHECKS) == []
    messages, asked = browser.logged(driver)
    assert messages == []
    assert [url for url in asked if not url.startswith(("data:", "blob:"))] == [page.as_uri()]
    dark = driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 26)"
    assert dark == (scheme == "dark")


SPOILT = """
const svg = [...document.querySelectorAll("#exit-ladder svg")].find(s => s.getClientRects().length && s.role);
const [one, two, three, four] = svg.querySelectorAll("text");
two.setAttribute("y", one.getAttribute("y")); two.setAttribute("x", one.getAttribute("x"));
two.setAttribute("text-anchor", "start");
three.setAttribute("x", "-50");
four.style.fontSize = "9px";
document.querySelector("#exit-work .caption").textContent = "";
document.querySelector("#exit-batch .wide").remove();
document.querySelector("#exit .machine").style.width = "2000px";
document.querySelector("#exit .question").style.color = "rgb(250, 240, 240)";
"""


def test_what_is_wrong_with_a_page_is_found(driver: WebDriver, page: Path) -> None:
    browser.look(driver, page.as_uri(), 1280, "light")
    driver.execute_script(SPOILT)
    found = "\n".join(driver.execute_script(CHECKS))
    for complaint in (
        "lies on",
        "is not within the drawing",
        "is 9.0 pixels",
        "exit-work: no caption",
        "exit-batch: 0 drawings to be seen",
        "pixels wide, of 1280",
        "rgb(250, 240, 240) on rgb(251, 251, 249) has a contrast of 1",
    ):
        assert complaint in found


def test_the_verdict_comes_first_and_every_plot_says_where_it_is_from(driver: WebDriver, page: Path) -> None:
    browser.look(driver, page.as_uri(), 1280, "light")
    parts = driver.execute_script("return [...document.querySelectorAll('main > section')].map(s => s.id)")
    assert parts == ["verdict", *ORDER]
    claims = driver.execute_script("return [...document.querySelectorAll('#verdict [id]')].map(e => e.id)")
    assert sorted(claims, key=lambda one: int(one[1:])) == [f"H{n}" for n in range(1, 21)]
    said = driver.execute_script(
        "return [...document.querySelectorAll('figure')].map(f => [f.closest('section').id,"
        " f.querySelector('figcaption').innerText, f.querySelector('pre').innerText])"
    )
    assert len(said) == sum(len(plots_for(results)) for results in all_results())
    for part, origin, command in said:
        assert str(HOST["cpu"]) in origin
        assert f"KVM: {HOST['kvm_flavour']}" in origin
        assert command.strip() == f"tmem bench {part} --quick --seed 1"


def test_no_browser_is_left_when_its_driver_dies(tmp_path: Path) -> None:
    with browser.chromium(tmp_path) as running:
        assert browser.processes(tmp_path) != []
        running.service.process.kill()
    assert browser.processes(tmp_path) == []


def test_the_raw_samples_can_be_downloaded(driver: WebDriver, page: Path) -> None:
    browser.look(driver, page.as_uri(), 1280, "light")
    links = driver.execute_script("return [...document.querySelectorAll('a[download]')].map(a => [a.download, a.href])")
    assert [name for name, _ in links] == [f"results-{bench}.json" for bench in ORDER]
    for (_, link), bench in zip(links, ORDER, strict=True):
        assert link.startswith("blob:")
        text = driver.execute_async_script(
            "const done = arguments[1]; fetch(arguments[0]).then(r => r.text()).then(done, e => done(String(e)))", link
        )
        original = next(results for results in all_results() if results.bench == bench)
        assert json.loads(text) == original.model_dump(mode="json", by_alias=True)
