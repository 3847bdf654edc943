# SPDX-License-Identifier: Apache-2.0
"""The agent's page in a real browser: VMs appear and vanish, runs move, settings change, and nothing is complained of.

Pictures at two widths and in two colour schemes are in pytest's folder of temporary files, for eyes.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from selenium.webdriver.chrome.webdriver import WebDriver
from selenium.webdriver.common.by import By
from selenium.webdriver.remote.webelement import WebElement

from framework import browser
from framework.agents import AgentFactory
from framework.pages import page
from tmem_host.agent_process import AgentProcess
from tmem_host.channel.abi import FEATURES_ALL, POOL_PERSISTENT, VERSION, Header, Op, Reply, Status
from tmem_host.core import TmemClient
from tmem_host.models import RunCreate, VmCreate, VmUpdate
from tmem_host.tokens import Scope, Tokens

pytestmark = pytest.mark.slow

MIB = 1 << 20
DEADLINE = 60.0
#: A store bench of a second or two.
TINY: dict[str, str | int | float] = {
    "pages": 512,
    "contents": "synthetic",
    "sizes_mib": 8,
    "resident": 30000,
    "recovery_pages": 20000,
}


@pytest.fixture(scope="module")
def driver(tmp_path_factory: pytest.TempPathFactory) -> Iterator[WebDriver]:
    profile = tmp_path_factory.mktemp("profile")
    with browser.chromium(profile) as running:
        yield running
    assert browser.processes(profile) == []


@pytest.fixture
def agent(make_agent: AgentFactory) -> AgentProcess:
    """A running agent that listens on TCP, too."""
    made = make_agent("--listen", "127.0.0.1:0")
    made.start()
    return made


def address(agent: AgentProcess, scope: Scope | None = "operate") -> str:
    found = re.findall(r"API on \S+ and (https?://\S+)", (agent.state / "agent.log").read_text())
    token = "" if scope is None else f"#token={Tokens(agent.state).add(scope, scope)}"
    return f"{found[-1]}/{token}"


def until(condition: Callable[[], Any], what: str) -> Any:
    """What the condition gives when it gives something; the page may draw itself anew while it is looked at."""
    from selenium.common.exceptions import NoSuchElementException, StaleElementReferenceException

    end = time.monotonic() + DEADLINE
    while True:
        try:
            if found := condition():
                return found
        except (NoSuchElementException, StaleElementReferenceException):
            pass
        assert time.monotonic() < end, what
        time.sleep(0.05)


def card(driver: WebDriver, name: str) -> WebElement:
    return driver.find_element(By.CSS_SELECTOR, f'[data-vm="{name}"]')


def said(driver: WebDriver, name: str, label: str) -> str:
    """A fact of a VM's card."""
    facts = card(driver, name).find_elements(By.CSS_SELECTOR, "dl > div")
    found = {fact.find_element(By.TAG_NAME, "dt").text: fact.find_element(By.TAG_NAME, "dd").text for fact in facts}
    return found[label]


def press(place: WebDriver | WebElement, words: str) -> None:
    for button in place.find_elements(By.TAG_NAME, "button"):
        if button.text == words and button.is_displayed():
            button.click()
            return
    pytest.fail(f"there is no button {words!r}")


def swap(agent: AgentProcess, name: str, pages: int) -> TmemClient:
    """A guest that puts pages, and gets each again."""
    client = TmemClient(next(one.socket for one in agent.client.get_vm(name).channels if one.kind == "tmem"))
    client.request(Header(Op.HELLO, index=VERSION, argument=FEATURES_ALL).encode())
    made = Reply.decode(client.request(Header(Op.NEW_POOL, argument=POOL_PERSISTENT).encode()))
    assert made is not None
    for number in range(pages):
        header = Header(Op.PUT, pool=made.value, index=number, count=1)
        put = Reply.decode(client.request(header.encode(data=page(number))))
        assert put is not None
        assert put.status == Status.OK
        client.request(Header(Op.GET, pool=made.value, index=number, count=1).encode())
    return client


def test_a_day_of_the_operator(agent: AgentProcess, driver: WebDriver) -> None:
    browser.look(driver, address(agent), 1280, "light")
    until(lambda: driver.find_element(By.ID, "link").text == "live", "the page reaches the agent")
    assert driver.find_element(By.ID, "vms-empty").is_displayed()
    assert "token" not in driver.current_url

    agent.client.create_vm(VmCreate(name="web", channels=("tmem",)))
    until(lambda: card(driver, "web").is_displayed(), "the VM appears")
    guest = swap(agent, "web", 2000)
    until(lambda: said(driver, "web", "pages") == "2000", "its pages are counted")
    until(lambda: card(driver, "web").find_element(By.CSS_SELECTOR, ".c-out .line").get_attribute("d"), "a plot")
    assert "connected" in card(driver, "web").text

    press(card(driver, "web"), "settings")
    field = driver.find_element(By.CSS_SELECTOR, "#settings [name=cap]")
    assert field.get_attribute("value") == ""
    field.send_keys("48M")
    press(driver.find_element(By.ID, "settings"), "save")
    until(lambda: agent.client.get_vm("web").cap == 48 * MIB, "the cap is changed")
    until(lambda: said(driver, "web", "cap") == "48.0 MiB", "the page shows it")

    press(card(driver, "web"), "freeze")
    until(lambda: agent.client.get_vm("web").frozen, "it is frozen")
    until(lambda: "frozen" in card(driver, "web").text, "the page shows that")

    run = agent.client.create_run(RunCreate(bench="store", rounds=2, settings=TINY))
    bar = f'[data-run="{run.id}"] .done'
    widths = {until(lambda: driver.find_element(By.CSS_SELECTOR, bar).get_attribute("style"), "the run has a bar")}

    def moved() -> bool:
        widths.add(driver.find_element(By.CSS_SELECTOR, bar).get_attribute("style") or "")
        return len(widths) > 3

    until(moved, "the run's bar moves")
    until(lambda: "done" in driver.find_element(By.CSS_SELECTOR, f'[data-run="{run.id}"]').text, "the run ends")
    press(driver.find_element(By.CSS_SELECTOR, f'[data-run="{run.id}"]'), "log")
    until(lambda: driver.find_element(By.CSS_SELECTOR, "#log pre").text, "its log is shown")
    press(driver.find_element(By.ID, "log"), "close")

    driver.find_element(By.CSS_SELECTOR, "#run-form select").send_keys("store")
    press(driver.find_element(By.ID, "run-form"), "start")
    started = until(lambda: [one for one in agent.client.list_runs() if one.id != run.id], "a run was started")[0]
    assert started.options.bench == "store"
    until(lambda: driver.find_element(By.CSS_SELECTOR, f'[data-run="{started.id}"]').is_displayed(), "it is shown")
    press(driver.find_element(By.CSS_SELECTOR, f'[data-run="{started.id}"]'), "cancel")
    until(lambda: agent.client.get_run(started.id).state == "cancelled", "it is cancelled")
    until(
        lambda: "cancelled" in driver.find_element(By.CSS_SELECTOR, f'[data-run="{started.id}"]').text,
        "the page shows that",
    )

    guest.close()
    agent.client.remove_vm("web")
    until(lambda: not driver.find_elements(By.CSS_SELECTOR, '[data-vm="web"]'), "the VM vanishes")
    messages, asked = browser.logged(driver)
    assert messages == []
    assert {url.split("/")[2] for url in asked} == {driver.current_url.split("/")[2]}


def test_a_report_opens(agent: AgentProcess, driver: WebDriver) -> None:
    browser.look(driver, address(agent), 1280, "light")
    run = agent.client.create_run(RunCreate(bench="store", rounds=2, settings=TINY))
    shown = f'[data-run="{run.id}"]'
    until(lambda: "done" in driver.find_element(By.CSS_SELECTOR, shown).text, "the run ends")
    first = driver.current_window_handle
    press(driver.find_element(By.CSS_SELECTOR, shown), "report")
    until(lambda: len(driver.window_handles) == 2, "a window opens")
    driver.switch_to.window(next(one for one in driver.window_handles if one != first))
    until(lambda: driver.execute_script("return document.documentElement.dataset.ready") == "yes", "it is drawn")
    assert driver.execute_script("return document.querySelectorAll('svg').length") > 3
    assert driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(251, 251, 249)"
    assert browser.logged(driver)[0] == []
    driver.close()
    driver.switch_to.window(first)


def test_what_somebody_else_changed_stays(agent: AgentProcess, driver: WebDriver) -> None:
    agent.client.create_vm(VmCreate(name="web", channels=("tmem",)))
    browser.look(driver, address(agent), 1280, "light")
    until(lambda: card(driver, "web").is_displayed(), "the VM appears")
    press(card(driver, "web"), "settings")
    agent.client.update_vm("web", VmUpdate(weight=7))
    driver.find_element(By.CSS_SELECTOR, "#settings [name=cap]").send_keys("48M")
    press(driver.find_element(By.ID, "settings"), "save")
    problem = driver.find_element(By.CSS_SELECTOR, "#settings .problem")
    until(lambda: "Somebody else" in problem.text, "the page says so")
    found = agent.client.get_vm("web")
    assert (found.weight, found.cap) == (7, None)


def test_who_may_only_read_is_told_so(agent: AgentProcess, driver: WebDriver) -> None:
    agent.client.create_vm(VmCreate(name="web", channels=("tmem",)))
    browser.look(driver, address(agent, "read"), 1280, "light")
    until(lambda: card(driver, "web").is_displayed(), "the VM appears")
    press(card(driver, "web"), "freeze")
    until(lambda: "operate" in driver.find_element(By.ID, "link").text, "the page says what it takes")
    assert not agent.client.get_vm("web").frozen


def test_a_token_is_asked_for(agent: AgentProcess, driver: WebDriver) -> None:
    agent.client.create_vm(VmCreate(name="web", channels=("tmem",)))
    value = Tokens(agent.state).add("reader", "read")
    browser.look(driver, address(agent, None), 1280, "light")
    driver.execute_script("sessionStorage.clear()")
    driver.refresh()
    field = until(lambda: driver.find_element(By.CSS_SELECTOR, "#token [name=token]"), "the dialog")
    until(field.is_displayed, "it opens")
    field.send_keys(value)
    press(driver.find_element(By.ID, "token"), "go on")
    until(lambda: card(driver, "web").is_displayed(), "the VM appears")


@pytest.mark.parametrize("width", [1280, 400])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_nothing_is_clipped(agent: AgentProcess, driver: WebDriver, tmp_path: Path, width: int, scheme: str) -> None:
    # A name is text, whatever it holds; this one is as long as names are.
    long = "a" * 40
    for name in ("web", "db", long):
        agent.client.create_vm(VmCreate(name=name, size_bytes=4 * MIB, channels=("blk", "tmem"), cap=24 * MIB))
    guests = [swap(agent, name, 300) for name in ("web", "db")]
    browser.look(driver, address(agent), width, scheme)
    until(lambda: card(driver, long).is_displayed(), "the VMs appear")
    until(lambda: said(driver, "web", "pages") == "300", "pages are counted")
    driver.find_element(By.CSS_SELECTOR, "details summary").click()
    browser.screenshots(driver, "body", tmp_path)
    assert driver.execute_script("return document.documentElement.scrollWidth <= innerWidth")
    dark = driver.execute_script("return getComputedStyle(document.body).backgroundColor") == "rgb(17, 20, 23)"
    assert dark == (scheme == "dark")
    messages, _asked = browser.logged(driver)
    assert messages == []
    for guest in guests:
        guest.close()
