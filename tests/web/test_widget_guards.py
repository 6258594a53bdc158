"""What the widget keeps from its host page, and what nobody around it can do."""

import pytest
from playwright.sync_api import Browser, expect

from tests.web.browser import visit
from tests.web.host_page import OPEN_ROOTS, Place, chat_of, finished, opened, shopping

pytestmark = pytest.mark.e2e

CUSTOMER = """document.querySelector('kefu-chat').customer = async () => {
  window.asked = (window.asked ?? 0) + 1;
  return `jwt-${asked}`;
}"""


def test_the_host_page_keeps_its_own(browser: Browser, place: Place) -> None:
    place.host.head = '<script src="/own.js"></script>'
    place.host.script = ""
    with visit(browser, "about:blank", place.shop, place.kefu) as page:
        page.context.add_init_script("window.before = Object.getOwnPropertyNames(window)")
        page.goto(place.shop)
        page.wait_for_selector("kefu-chat")
        assert page.evaluate("document.querySelector('kefu-chat').shadowRoot") is None
        assert page.evaluate("Object.getOwnPropertyNames(window).filter((name) => !before.includes(name) && name !== 'before')") == []
        page.evaluate("document.querySelector('kefu-chat').open()")
        page.wait_for_timeout(500)
        assert page.context.cookies() == []
        kept = page.evaluate("[document.cookie, localStorage.length, JSON.stringify(sessionStorage)]")
        assert kept == ["", 0, '{"kefu-chat.shop":"open"}']
        assert page.evaluate("document.querySelectorAll('style, [style]').length") == 0


def test_what_the_host_page_loads_is_small(browser: Browser, place: Place) -> None:
    sizes: dict[str, int] = {}
    with visit(browser, "about:blank", place.shop, place.kefu) as page:
        page.on("response", lambda response: sizes.update({response.url: len(response.body())}) if place.kefu in response.url else None)
        page.goto(place.shop)
        page.wait_for_load_state("networkidle")
        assert len(sizes) == 2 and sum(sizes.values()) < 30_000, sizes


@pytest.mark.parametrize("what", ["not in the list", "no such site"])
def test_a_page_that_is_not_the_sites_shows_no_chat(browser: Browser, place: Place, what: str) -> None:
    with visit(browser, "about:blank", expect_quiet=False) as page:
        page.context.add_init_script(OPEN_ROOTS)
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.goto(place.stranger)
        if what == "no such site":
            page.evaluate("document.querySelector('kefu-chat').setAttribute('site', 'nowhere')")
        page.locator("kefu-chat button").click()
        page.wait_for_timeout(800)
        frame = chat_of(page)
        if what == "no such site":
            expect(frame.locator("body")).to_contain_text("Add it to kefu.toml")
        else:
            assert "embed" not in frame.url and any("frame-ancestors" in text for text in said)
        assert place.desk.admitted == []


# A frame of the allowed origin speaks to the chat, with a port to be answered on: the origin is right, the window is not its parent.
EVIL = """window.heard = [];
window.attack = (chat, kefu) => {
  const { port1, port2 } = new MessageChannel();
  port1.onmessage = ({ data }) => heard.push(data);
  port1.postMessage({ name: "customer", token: "forged" });
  const evil = document.body.appendChild(document.createElement("iframe"));
  evil.src = "/evil";
  evil.onload = () => evil.contentWindow.strike(chat, kefu, port2);
};
window.strike = (chat, kefu, port) => chat.postMessage({ kefu: "hello", isKnown: true }, kefu, [port]);"""
CHAT = "document.querySelector('kefu-chat').shadowRoot.querySelector('iframe').contentWindow"


def test_forged_messages_change_nothing(browser: Browser, place: Place) -> None:
    place.host.head, place.host.script = '<script src="/own.js"></script>', EVIL
    with shopping(browser, place) as page:
        frame = opened(page)
        page.evaluate("for (const name of ['close', 'answered', 'identify']) window.postMessage({ kefu: 'hello', name }, '*')")
        page.evaluate(f"(kefu) => {{ attack({CHAT}, kefu); {CHAT}.postMessage({{ kefu: 'hello', isKnown: true }}, kefu); }}", place.kefu)
        page.wait_for_timeout(500)
        expect(page.locator("kefu-chat #panel")).to_be_visible()
        expect(page.locator("kefu-chat #badge")).to_be_hidden()
        finished(frame)
        assert page.evaluate("heard") == []
        assert place.desk.admitted == [("shop", {})]


def test_before_it_has_met_its_page_it_takes_no_port_from_another_window(browser: Browser, place: Place) -> None:
    bare = f'<iframe id="chat" src="{place.kefu}/embed?site=shop"></iframe>'
    place.host.head, place.host.script = f'{bare}<script src="/own.js"></script>', EVIL
    with shopping(browser, place) as page:
        frame = page.locator("#chat").element_handle().content_frame()  # type: ignore[union-attr]
        assert frame
        frame.wait_for_selector(".chip")
        page.evaluate("(kefu) => attack(chat.contentWindow, kefu)", place.kefu)
        page.wait_for_timeout(500)
        assert page.evaluate("heard") == []
        page.evaluate(
            """(kefu) => {
              const { port1, port2 } = new MessageChannel();
              port1.onmessage = ({ data }) => heard.push(data);
              chat.contentWindow.postMessage({ kefu: "hello", isKnown: true }, kefu, [port2]);
            }""",
            place.kefu,
        )
        page.wait_for_timeout(500)
        frame.press("#input", "Escape")
        page.wait_for_timeout(300)
        assert {"name": "close"} in page.evaluate("heard")


def test_a_known_customer_is_vouched_for_in_a_body_and_stays_in_memory(browser: Browser, place: Place) -> None:
    place.host.head, place.host.script = '<script src="/own.js" defer></script>', CUSTOMER
    with shopping(browser, place, place.sister) as page:
        frame = opened(page)
        finished(frame)
        assert place.desk.admitted == [("shop", {"customer": "jwt-1"})]
        assert frame.evaluate("Object.keys(localStorage).filter((key) => key.includes('visitor'))") == []
        page.evaluate("document.querySelector('kefu-chat').customer = null")
        frame = chat_of(page)
        frame.wait_for_selector(".chip, .question")
        finished(frame)
        assert place.desk.admitted[1:] == [("shop", {})]


def test_who_is_not_taken_for_a_customer_goes_on_as_anybody(browser: Browser, place: Place) -> None:
    place.host.head, place.host.script = '<script src="/own.js" defer></script>', CUSTOMER
    place.desk.refusals["visitors"] = [401]
    with shopping(browser, place) as page:
        finished(opened(page))
        assert place.desk.admitted == [("shop", {})]
