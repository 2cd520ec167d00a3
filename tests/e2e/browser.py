"""A Chromium that is installed, and someone who uses the website in it."""

from __future__ import annotations

import concurrent.futures
import contextlib
import importlib.resources
import os
import re
import shutil
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import Any, Protocol, TypeVar

from playwright.sync_api import Browser, Locator, Page, Request, expect, sync_playwright

from leadline.engine.types import EngineRequest
from leadline.server import accounts
from leadline.server.store import Store
from leadline.tokenizer import Tokenizer
from tests.server.platform.site import PASSWORD, Site, live_site

T = TypeVar("T")

PATIENCE = 30_000.0  # milliseconds: the machine may be busy
WCAG = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
AXE = importlib.resources.files("axe_playwright_python").joinpath("axe.min.js")
CHOSEN = """(chosen) => {
  const kept = JSON.stringify({ ...JSON.parse(localStorage.getItem('leadline.settings') ?? '{}'), ...chosen })
  localStorage.setItem('leadline.settings', kept)
  dispatchEvent(new StorageEvent('storage', { key: 'leadline.settings', newValue: kept }))
}"""
SETTLED = """async () => {
  for (let frames = 0; frames < 2; frames++) await new Promise(requestAnimationFrame)
  for (let moving; (moving = document.getAnimations()).length > 0; await new Promise(requestAnimationFrame))
    await Promise.allSettled(moving.map((each) => each.finished))
}"""
DESK = {"width": 1280, "height": 800}
PHONE = {"width": 360, "height": 740}

SHORT = " Four fathoms and a half, captain. 水有多深？四寻半。"
RICH = """ A **lead line** tells the depth of the water.

## How it works

1. The *lead* sinks and the line runs out.
2. Marks of leather and cloth tell the fathoms.

```python
def depth(marks: list[int], wet: int) -> float:
    # one fathom is six feet
    return sum(marks[:wet]) * 1.8288
```

The pressure at depth $h$ is $p = p_0 + \\rho g h$, so that

$$h = \\frac{p - p_0}{\\rho g}$$

| mark | fathoms |
|------|--------:|
| two strips of leather | 2 |
| white cloth | 5 |

> By the mark, five!
"""
HOSTILE = """ <script>window.hurt = 1</script> <img src=x onerror="window.hurt = 2">

![a picture](https://elsewhere.example/pixel.png) [a link](javascript:window.hurt=3) [another](https://elsewhere.example/)

<iframe src="https://elsewhere.example/"></iframe> <b onclick="window.hurt=4">bold</b>

$\\href{javascript:window.hurt=5}{x}$

```html"><img src=x onerror=window.hurt=6>
</code><img src=x onerror=window.hurt=7>
```
"""


def executable() -> str:
    """The browser's path: $CHROMIUM, or what the system has."""
    found = os.environ.get("CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if found is None:
        raise RuntimeError("no Chromium was found: install it (Debian: apt install chromium) or set CHROMIUM")
    return found


@contextlib.contextmanager
def chromium() -> Generator[Browser, None, None]:
    expect.set_options(timeout=PATIENCE)
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=["--no-sandbox"])
        try:
            yield browser
        finally:
            browser.close()


def answers(tokenizer: Tokenizer) -> Callable[[EngineRequest, int], str]:
    """An engine without a model that does what the last question says."""

    def answer(request: EngineRequest, _: int) -> str:
        asked = tokenizer.decode(request.prompt_ids).rpartition("User:")[2]
        if "long" in asked:
            return " ".join(f"{number} fathoms," for number in range(2000))
        if "rich" in asked:
            return RICH
        return HOSTILE if "hostile" in asked else SHORT

    return answer


@contextlib.contextmanager
def website(tokenizer: Tokenizer, folder: Path, **engine: Any) -> Iterator[Site]:
    options = {"answer": answers(tokenizer), "tokens_per_second": 80.0, "context_length": 2048, **engine}
    with live_site(tokenizer, folder, **options) as site:
        yield site


def aside(action: Callable[[], T]) -> T:
    """`action` in a thread of its own: Playwright's loop runs in this one."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(action).result()


def sign_in_link(site: Site, user_id: int) -> str:
    async def make(connection: Any, store: Store) -> str:
        return await accounts.make_link(connection, store.secrets, "signin", now=store.now(), user_id=user_id)

    return f"{site.url}/signin#{aside(lambda: site.work(make))}"


class Served(Protocol):
    """All that a visitor knows of a server."""

    @property
    def url(self) -> str: ...


class Visitor:
    """Someone in a browser of their own. What breaks a promise of the site is collected on the way."""

    def __init__(self, browser: Browser, site: Served, **options: Any) -> None:
        self.site = site
        self.context = browser.new_context(**{"locale": "en-US", "color_scheme": "light", **options})
        self.context.grant_permissions(["clipboard-read", "clipboard-write"], origin=site.url)
        self.context.set_default_timeout(PATIENCE)
        self.faults: list[str] = []
        self.context.add_init_script(
            "document.addEventListener('securitypolicyviolation', (event) => "
            "console.error('policy: ' + event.violatedDirective + ' ' + event.blockedURI))"
        )
        self.page: Page = self.context.new_page()
        self.page.on("console", lambda line: self._note(line.text) if line.type == "error" else None)
        self.page.on("pageerror", lambda error: self._note(str(error)))
        self.page.on("request", self._check)

    def _note(self, text: str) -> None:
        if not text.startswith("Failed to load resource"):  # a status that is not 2xx; the tests look at those
            self.faults.append(text)

    def _check(self, request: Request) -> None:
        if not request.url.startswith((self.site.url, "data:", "blob:")):
            self.faults.append(f"a request left the host: {request.url}")

    def close(self) -> None:
        self.context.close()
        assert self.faults == []

    # ---- getting about ---------------------------------------------------------------------------------------

    def open(self, path: str = "/") -> None:
        self.page.goto(self.site.url + path)

    def sign_in(self, email: str, password: str = PASSWORD) -> None:
        self.open("/login")
        self.page.get_by_label("Email").fill(email)
        self.page.get_by_label("Password").fill(password)
        self.page.get_by_role("button", name="Sign in").click()
        expect(self.composer).to_be_visible()

    def enter(self, email: str, password: str = PASSWORD) -> None:
        """Signed in, without the form."""
        data = {"email": email, "password": password}
        answer = self.context.request.post(f"{self.site.url}/api/login", data=data, headers={"origin": self.site.url})
        assert answer.ok, answer.text()
        self.open("/")
        expect(self.composer).to_be_visible()

    def button(self, name: str | re.Pattern[str], **options: Any) -> Locator:
        return self.page.get_by_role("button", name=name, **options)

    def menu(self, button: str | re.Pattern[str], item: str) -> None:
        self.button(button).first.click()
        self.page.get_by_role("menuitem", name=item).click()

    # ---- chatting --------------------------------------------------------------------------------------------

    @property
    def composer(self) -> Locator:
        return self.page.locator(".composer textarea")

    @property
    def answers(self) -> Locator:
        return self.page.locator("article.assistant")

    @property
    def questions(self) -> Locator:
        return self.page.locator("article.user")

    @property
    def history(self) -> Locator:
        return self.page.get_by_role("navigation", name="Your chats").get_by_role("link")

    def say(self, text: str) -> None:
        """Its answer has begun, and perhaps ended."""
        before = self.answers.count()
        self.composer.fill(text)
        self.composer.press("Enter")
        expect(self.answers).to_have_count(before + 1)

    def ask(self, text: str) -> Locator:
        """The answer, when it has ended."""
        self.say(text)
        self.ended()
        return self.answers.last

    def edit_last(self, text: str) -> None:
        """A branch beside the last question, when it has its answer."""
        self.composer.press("ArrowUp")
        edit = self.page.get_by_label("Edit your message")
        edit.fill(text)
        edit.press("Control+Enter")
        expect(self.questions.last).to_contain_text("2 / 2")
        self.ended()

    def ended(self) -> None:
        expect(self.answers.last.locator(".cost")).to_be_attached()
        expect(self.button("Stop")).to_have_count(0)

    # ---- looking ---------------------------------------------------------------------------------------------

    def look(self, language: str, theme: str) -> None:
        """As if another window of the same browser had chosen them: this page follows."""
        self.page.evaluate(CHOSEN, {"language": language, "theme": theme})
        self.page.evaluate(SETTLED)

    def overflow(self) -> int:
        return int(self.page.evaluate("document.documentElement.scrollWidth - innerWidth"))

    def serious(self) -> list[str]:
        """What axe calls serious or critical."""
        if not self.page.evaluate("'axe' in window"):
            self.page.evaluate(AXE.read_text(encoding="utf-8"))
        found = self.page.evaluate("(tags) => axe.run(document, { runOnly: tags, resultTypes: ['violations'] })", WCAG)
        return [
            f"{fault['id']}: {fault['nodes'][0]['html'][:200]} {fault['nodes'][0]['failureSummary'][:200]}"
            for fault in found["violations"]
            if fault["impact"] in ("serious", "critical")
        ]


@contextlib.contextmanager
def visitor(browser: Browser, site: Served, **options: Any) -> Generator[Visitor, None, None]:
    someone = Visitor(browser, site, **options)
    try:
        yield someone
    except BaseException:
        someone.context.close()
        raise
    someone.close()
