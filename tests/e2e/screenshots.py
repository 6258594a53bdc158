"""`python -m tests.e2e.screenshots`: draw the pictures of the documentation again, from the real server and model."""

import sys
import tempfile
from pathlib import Path

from playwright.sync_api import expect

from tests.conftest import MINI
from tests.e2e.house import kefu
from tests.web.browser import PHONE, chromium, finished, last_answer, visit

DOCS = Path(__file__).parents[2] / "docs"
MAX_BYTES = 150_000


def main(model_path: str) -> None:
    DOCS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, kefu(Path(folder), model_path) as server, chromium() as browser:
        for name, options in (("chat-1280", {"viewport": {"width": 1280, "height": 800}}), ("chat-390", {**PHONE, "color_scheme": "dark"})):
            with visit(browser, server.url, **options) as page:
                finished(page, "How long do I have to return something?")
                finished(page, "How much is express shipping?")
                last_answer(page).locator("[data-part=up]").click()
                expect(last_answer(page).locator(".note")).to_have_text("Saved, thank you")
                page.locator(".reasons [data-part=cancel]").click()
                if name == "chat-1280":
                    page.locator(".citation").last.click()
                page.wait_for_timeout(400)
                path = DOCS / f"{name}.png"
                page.screenshot(path=path)
                assert path.stat().st_size < MAX_BYTES, f"{path} is too large to commit"


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else str(MINI))
