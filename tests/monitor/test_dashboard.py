"""The live page in a real browser: headless Chromium, controlled by selenium."""

from __future__ import annotations

import gc
import re
import shutil
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest

from tao.client.client import ClientConn
from tao.monitor.monitor import monitor_on
from tao.server.server import Server
from tao.session.sessions import Sessions
from tao.wire.message import Registry
from tests.ends import Number, Text
from tests.support import PATIENCE, recv_exactly, wait_until

webdriver = pytest.importorskip(
    "selenium.webdriver", reason="selenium is not installed: pip install 'tao-tcp[browser]'"
)
from selenium.webdriver.common.keys import Keys  # noqa: E402

BROWSER = shutil.which("chromium") or shutil.which("google-chrome")
DRIVER = shutil.which("chromedriver")

pytestmark = pytest.mark.skipif(
    not (BROWSER and DRIVER),
    reason="no browser to be driven: on Debian, apt-get install chromium chromium-driver",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium, for all tests of this file; each opens a new page."""
    options = webdriver.ChromeOptions()
    options.binary_location = BROWSER
    for argument in ("headless=new", "no-sandbox", "disable-dev-shm-usage", "disable-gpu"):
        options.add_argument(f"--{argument}")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    service = webdriver.ChromeService(DRIVER)
    # A persistent connection would count as a leak of the test.
    driver = webdriver.Chrome(options=options, service=service, keep_alive=False)
    yield driver
    driver.quit()


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """A server with an echo handler and a failing handler, and three clients."""
    monkeypatch.setattr("tao.connection.reports.statistics._all", {})
    with Server(registry=Registry()) as made:

        @made.handler(Text)
        def echo(ctx: Any, conn: Any) -> None:
            if ctx.message.text == "fail":
                raise ValueError("a secret")
            conn.write(ctx.message)

        made.start(("127.0.0.1", 0))
        yield made


@pytest.fixture
def clients(server: Server) -> Iterator[list[ClientConn]]:
    made = []
    for name in ("apple", "banana", "cherry"):
        made.append(ClientConn(server.address, registry=Registry()))
        made[-1].handler(Text)(lambda ctx, conn: None)
        made[-1].start()
        wait_until(lambda: server.connection_count == len(made))
        server.connections[-1].name = name
    yield made
    for client in made:
        client.close()


class Page:
    """The live page in the browser."""

    def __init__(self, browser: Any, url: str) -> None:
        self.browser = browser
        self.look("light", 1280)
        browser.get_log("browser")  # discards entries of earlier tests
        browser.get(url)

    def look(self, scheme: str, width: int) -> None:
        """Show the page with this colour scheme and width."""
        media = {"features": [{"name": "prefers-color-scheme", "value": scheme}]}
        self.browser.execute_cdp_cmd("Emulation.setEmulatedMedia", media)
        size = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        self.browser.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", size)

    def run(self, script: str, *arguments: Any) -> Any:
        return self.browser.execute_script(script, *arguments)

    def text(self, selector: str) -> str:
        """Return the text of all elements that match the selector."""
        found: str = self.run(
            "return [...document.querySelectorAll(arguments[0])]"
            ".map((each) => each.innerText).join('\\n')",
            selector,
        )
        return found

    def type(self, *keys: str) -> None:
        """Press keys, as a user without a mouse does."""
        webdriver.ActionChains(self.browser).send_keys(*keys).perform()

    def focused(self) -> str:
        """Return the element that has the keyboard focus."""
        found: str = self.run(
            "const it = document.activeElement;"
            "return it.id || it.innerText || it.getAttribute('aria-label') || it.tagName"
        )
        return found

    def tab_to(self, name: str) -> None:
        for _ in range(60):
            if self.focused().startswith(name):
                return
            self.type(Keys.TAB)
        raise AssertionError(f"the keyboard does not get to {name}")

    def names(self) -> list[str]:
        """Return the names of the server's connections, from top to bottom."""
        return self.text("#connections tbody td:nth-child(3)").split()

    def wait_for(self, selector: str, text: str) -> None:
        wait_until(lambda: text in self.text(selector))

    def complaints(self) -> list[Any]:
        return [each for each in self.browser.get_log("browser") if each["level"] != "INFO"]


@pytest.fixture
def page(browser: Any, clients: list[ClientConn]) -> Iterator[Page]:
    """The live page; at the end, the browser's console must be empty."""
    with monitor_on(0) as monitor:
        page = Page(browser, monitor.url)
        page.monitor = monitor  # type: ignore[attr-defined]
        page.wait_for("#link", "live")
        wait_until(lambda: len(page.names()) == 3)
        yield page
        complaints = page.complaints()
        browser.get("about:blank")
    gc.collect()  # selenium leaves connections to the browser to the garbage collector
    assert complaints == []


def test_the_overview(page: Page, server: Server) -> None:
    """The page shows servers, clients and connections, and that there are no problems."""
    assert page.text("#concerns") == "Nothing needs attention."
    options = page.text("#scope option").split("\n")
    host, port = server.address
    assert options[:2] == ["everything", f"{server.snapshot().name} \u00b7 {host}:{port}"]
    assert len(options) == 5
    assert page.names() == ["apple", "banana", "cherry"]
    assert "Connections\n6\n6 so far" in page.text("#figures div")
    assert page.text("#handlers .none") == "No message was handled yet."


def test_rates_change(page: Page, clients: list[ClientConn]) -> None:
    """New messages appear within a moment, also in the charts and in the table of handlers."""
    assert page.text("#figures div:first-child .value") == "0 /s"
    written = 0

    def rate_is_seen() -> bool:
        nonlocal written
        clients[0].write(Text("hello"), timeout=PATIENCE)
        written += 1
        return page.text("#figures div:first-child .value") not in ("0 /s", "")

    wait_until(rate_is_seen)
    page.wait_for("#handlers tbody tr", "1")
    lines = page.run("return document.querySelectorAll('#charts svg path.one[d*=L]').length")
    assert lines == 4
    label = page.run("return document.querySelector('#charts svg').getAttribute('aria-label')")
    assert label.startswith("Messages per second, five minutes; now in ")


def test_sorting_by_keyboard(page: Page, server: Server, clients: list[ClientConn]) -> None:
    """A column header is a button: ascending, descending, and unsorted on the third press."""
    clients[1].write(Text("hello"))
    wait_until(lambda: server.snapshot().handled == 1)
    page.tab_to("Name")
    page.type(Keys.ENTER)
    page.type(Keys.SPACE)
    wait_until(lambda: page.names() == ["cherry", "banana", "apple"])
    order = "return document.querySelector('th[data-key=name]').getAttribute('aria-sort')"
    assert page.run(order) == "descending"
    page.type(Keys.ENTER)
    wait_until(lambda: page.names() == ["apple", "banana", "cherry"])
    assert page.run(order) is None
    page.run("document.getElementById('scope').selectedIndex = 1;")
    page.tab_to("In")
    page.type(Keys.ENTER)
    wait_until(lambda: page.names()[0] == "banana")


def test_filtering_by_keyboard(page: Page) -> None:
    """The list is filtered while the user types."""
    page.tab_to("filter")
    page.type("AN")
    wait_until(lambda: page.names() == ["banana"])
    page.type("x")
    page.wait_for("#connections .none", "None that contains this.")
    page.type(Keys.BACKSPACE, Keys.BACKSPACE, Keys.BACKSPACE)
    wait_until(lambda: len(page.names()) == 3)
    assert page.focused() == "filter"


def test_pages_by_keyboard(page: Page, server: Server) -> None:
    """If there are more connections than fit, buttons switch between pages."""
    assert page.text("#range") == "6"
    assert not page.browser.find_element("id", "on").is_displayed()
    socks = [socket.create_connection(server.address, PATIENCE) for _ in range(50)]
    page.wait_for("#range", "1\u201350 of 56")
    page.tab_to("on")
    page.type(Keys.ENTER)
    page.wait_for("#range", "51\u201356 of 56")
    assert len(page.text("#connections tbody td:first-child").split()) == 6
    assert not page.browser.find_element("id", "on").is_enabled()
    for sock in socks:
        sock.close()
    page.wait_for("#range", "6")


def test_selecting_one_server(page: Page, server: Server) -> None:
    """The whole page then shows only that server."""
    page.tab_to("scope")
    page.type(Keys.ARROW_DOWN)
    wait_until(lambda: page.run("return document.getElementById('scope').selectedIndex") == 1)
    page.wait_for("#figures div", "Connections\n3\n3 so far")
    page.wait_for("#range", "3")


def test_problems_stand_out(page: Page, server: Server, clients: list[ClientConn]) -> None:
    """Problems are described at the top and counted in the title; errors are listed."""
    clients[2].write(Text("fail"))
    page.wait_for("#concerns li", "1 error in the last minute, most often ValueError")
    assert "Warning" in page.text("#concerns .level")
    assert page.browser.title == "(1) tao"
    assert page.text("#announce") == "1 thing needs attention"
    page.wait_for("#errors li", "ValueError: handling message 1: at test_dashboard.py:")
    assert "a secret" not in page.browser.page_source


def test_running_handlers_are_shown(page: Page, server: Server, clients: list[ClientConn]) -> None:
    """The number of the message is shown, and after a while the run time."""
    go_on = threading.Event()

    @server.handler(Number)
    def wait_for_it(ctx: Any, conn: Any) -> None:
        go_on.wait(PATIENCE)

    clients[0].write(Number(1))
    wait_until(
        lambda: re.search(
            r"^2(, [\d.]+ m?s)?$", page.text("#connections td:last-child"), re.MULTILINE
        )
    )
    assert "2, 0" not in page.text("#connections td:last-child").split("\n")
    go_on.set()


def test_requests_are_shown(page: Page, server: Server, clients: list[ClientConn]) -> None:
    """How many wait for a reply, and for how long the oldest has."""
    assert "Requests" not in page.text("#figures dt")
    server.handler(Number)(lambda ctx, conn: ctx.defer())
    future = clients[0].request_async(Number(1), timeout=None)
    page.wait_for("#figures div", "Requests\n1\n0 replies, 0 late")
    wait_until(lambda: re.search(r"^1, [\d.]+ m?s$", page.text("#connections td"), re.MULTILINE))
    assert future.cancel()


def test_sessions_are_shown(page: Page, server: Server) -> None:
    """How many there are, of which how many linger, and what became of the others."""
    assert "Sessions" not in page.text("#figures dt")
    with Server(registry=Registry(), sessions=Sessions()) as other:
        address = other.start(("127.0.0.1", 0))
        with ClientConn(address, registry=Registry(), session=True, reconnect=True):
            page.wait_for("#figures div", "0 lingering, 0 resumes, 0 lost")
            wait_until(lambda: re.search(r"0 resumed, 0 B / 0 B", page.text("#connections td")))


def test_names_are_text(page: Page, server: Server) -> None:
    """A name chosen by a peer is not interpreted as HTML."""
    name = "<img src=x onerror=document.title='taken'>"
    server.connections[0].name = name
    page.wait_for("#connections td", name)
    assert page.run("return document.querySelectorAll('img').length") == 0
    assert page.browser.title == "tao"


def test_a_lost_event_stream(browser: Any, clients: list[ClientConn]) -> None:
    """The page reports the loss, retries, and continues when the monitor is back."""
    with monitor_on(0) as monitor:
        page = Page(browser, monitor.url)
        page.wait_for("#link", "live")
    page.wait_for("#link", "no updates since")
    assert page.run("return document.body.classList.contains('lost-news')")
    with monitor_on(monitor.address[1]):
        page.wait_for("#link", "live")
        assert not page.run("return document.body.classList.contains('lost-news')")
        browser.get("about:blank")


def test_too_many_pages(browser: Any, server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """A page above the limit gives the reason, and works when another one is closed."""
    monkeypatch.setattr("tao.monitor.monitor._STREAMS", 1)
    with monitor_on(0) as monitor:
        with socket.create_connection(monitor.address, PATIENCE) as other:
            other.sendall(b"GET /events HTTP/1.1\r\nHost: localhost\r\n\r\n")
            assert recv_exactly(other, 12) == b"HTTP/1.0 200"
            page = Page(browser, monitor.url)
            page.wait_for("#link", "no updates: too many live pages are open, retrying")
        wait_until(lambda: page.text("#link") == "live")
        browser.get("about:blank")


#: The contrast of all text with its background, by the formula of WCAG 2.
CONTRAST = """
function light(color) {
  const parts = color.match(/[\\d.]+/g).slice(0, 3).map((each) => each / 255)
    .map((each) => each <= 0.04045 ? each / 12.92 : ((each + 0.055) / 1.055) ** 2.4);
  return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2];
}
function behind(element) {
  for (let each = element; each; each = each.parentElement) {
    const color = getComputedStyle(each).backgroundColor;
    if (!color.endsWith(", 0)")) return color;
  }
}
const found = [];
for (const element of document.querySelectorAll("body *")) {
  const own = [...element.childNodes].some((each) => each.nodeType === 3 && each.data.trim());
  if (!own || !element.getClientRects().length || element.disabled) continue;
  const style = getComputedStyle(element);
  const color = element instanceof SVGElement ? style.fill : style.color;
  const pair = [light(color), light(behind(element))].sort((a, b) => b - a);
  const ratio = (pair[0] + 0.05) / (pair[1] + 0.05);
  if (ratio < 4.5) found.push([element.tagName, element.textContent.trim().slice(0, 40), ratio]);
}
return found;
"""


@pytest.mark.parametrize("width", [1280, 360])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_light_and_dark_wide_and_narrow(
    page: Page, scheme: str, width: int, clients: list[ClientConn]
) -> None:
    """The page follows the system's colour scheme, has enough contrast, and fits its width."""
    clients[0].write(Text("fail"))
    page.wait_for("#errors li", "ValueError")
    page.look(scheme, width)
    dark = page.run("return getComputedStyle(document.body).backgroundColor") == "rgb(17, 20, 23)"
    assert dark is (scheme == "dark")
    assert page.run("return document.documentElement.scrollWidth") <= width
    assert page.run(CONTRAST) == []
    assert len(page.browser.get_screenshot_as_png()) > 10_000


def test_all_elements_have_accessible_names(page: Page) -> None:
    """Screen readers find a name for every element."""
    nameless = page.run("""
        const parts = "button, input, select, a, svg, ol, [role=region], section";
        const named = (each) => each.getAttribute("aria-label") || each.labels?.length
          || each.getAttribute("aria-labelledby") || each.innerText;
        return [...document.querySelectorAll(parts)].filter((each) => !named(each))
          .map((each) => each.outerHTML.slice(0, 80));
    """)
    assert nameless == []
    assert page.run("return document.documentElement.lang") == "en"
