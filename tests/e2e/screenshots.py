"""`make screenshots`: three pages in two themes and two languages, into docs/screenshots/.

The chat, the usage page and, on a phone, the beginning of a chat. An engine without a model says what is in them,
so that they are the same for everyone; sizes are kept small by a palette of 256 colours.
"""

from __future__ import annotations

import datetime as dt
import random
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image
from playwright.sync_api import Browser, expect
from sqlalchemy import insert

from leadline.engine.types import EngineRequest
from leadline.server.db import usage
from leadline.server.store import Store
from leadline.tokenizer import Tokenizer
from tests.e2e.browser import DESK, PHONE, RICH, Visitor, aside, chromium, visitor, website
from tests.fixtures_server import small_tokenizer
from tests.server.platform.site import Site
from tests.source import ROOT

FOLDER = ROOT / "docs/screenshots"
COLOURS = 256
MODEL = "leadline-small"

CHINESE = """ **测深索**是水手用来测量水深的绳索。

## 怎样使用

1. 铅锤入水，绳索随之放出。
2. 绳上的皮条与布条标出深度。

```python
def depth(marks: list[int], wet: int) -> float:
    # 一寻等于六英尺
    return sum(marks[:wet]) * 1.8288
```

深度 $h$ 处的压强为 $p = p_0 + \\rho g h$，因此

$$h = \\frac{p - p_0}{\\rho g}$$
"""
NAMED = """() => fetch('/api/account', { method: 'PATCH', headers: { 'content-type': 'application/json' },
  body: JSON.stringify({ name: 'Ada' }) })"""
TALKS = {
    "en": (
        "Plan a week of short runs",
        "A letter to the harbour master",
        "Why is the sea salty?",
        "How does a lead line tell the depth of the water?",
    ),
    "zh-CN": ("给爸爸的生日祝福", "用 Python 读取表格", "海水为什么是咸的？", "测深索怎样测量水深？"),
}


def answers(tokenizer: Tokenizer) -> Callable[[EngineRequest, int], str]:
    def answer(request: EngineRequest, _: int) -> str:
        asked = tokenizer.decode(request.prompt_ids).rpartition("User:")[2]
        return CHINESE if "测深索" in asked else RICH if "lead line" in asked else " Aye."

    return answer


def used(site: Site, user_id: int) -> None:
    """A month of usage, as a small program would have made it."""
    draw = random.Random(4)
    today = dt.datetime.now(dt.UTC).date()

    async def write(connection: Any, store: Store) -> None:
        for ago in range(29):
            prompt, made = draw.randint(20_000, 90_000), draw.randint(8_000, 40_000)
            cached = prompt * draw.randint(30, 70) // 100
            row = {
                "request_id": f"chatcmpl-example-{user_id}-{ago}",
                "user_id": user_id,
                "day": str(today - dt.timedelta(ago)),
                "model": MODEL,
                "price_id": 1,
                "cached_tokens": cached,
                "miss_tokens": prompt - cached,
                "completion_tokens": made,
                "amount": 14 * cached + 140 * (prompt - cached) + 280 * made,
                "outcome": "finished",
                "created": store.now() - 86_400 * ago,
            }
            columns = {name: value for name, value in row.items() if name in usage.c}
            await connection.execute(insert(usage).values(columns))

    site.work(write)


def keep(visitor: Visitor, name: str) -> None:
    path = FOLDER / f"{name}.png"
    visitor.page.screenshot(path=path)
    with Image.open(path) as image:
        image.convert("RGB").quantize(COLOURS, Image.Quantize.MAXCOVERAGE, dither=Image.Dither.NONE).save(
            path, optimize=True
        )


def take(browser: Browser, site: Site, language: str, theme: str) -> None:
    user = aside(lambda: site.user(balance=5 * 10**9, email=f"ada.{language}.{theme}@example.org"))
    aside(lambda: used(site, user))
    options = {"locale": language, "color_scheme": theme, "reduced_motion": "reduce"}
    with visitor(browser, site, viewport=DESK, **options) as someone:
        someone.open("/login")
        someone.page.locator("input[type=email]").fill(f"ada.{language}.{theme}@example.org")
        someone.page.locator("input[type=password]").fill("four fathoms and a half")
        someone.page.locator("button[type=submit]").click()
        expect(someone.composer).to_be_visible()
        someone.page.evaluate(NAMED)
        for talk in TALKS[language]:
            someone.open("/")
            someone.say(talk)
            expect(someone.answers.last.locator(".cost")).to_be_attached()
        expect(someone.answers.last.locator("mfrac")).to_be_visible()
        expect(someone.page.locator(".hljs-keyword").first).to_be_visible()
        keep(someone, f"chat-{language}-{theme}")
        someone.open("/platform/usage")
        expect(someone.page.locator("canvas")).to_be_visible()
        keep(someone, f"usage-{language}-{theme}")
        someone.page.set_viewport_size(PHONE)  # type: ignore[arg-type]
        someone.open("/")
        expect(someone.page.locator(".welcome")).to_be_visible()
        keep(someone, f"phone-{language}-{theme}")


def main() -> None:
    FOLDER.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = small_tokenizer(Path(folder))
        data = Path(folder) / "site"
        data.mkdir()
        options = {"answer": answers(tokenizer), "tokens_per_second": 400.0, "model": MODEL}
        with website(tokenizer, data, **options) as site, chromium() as browser:
            for language in TALKS:
                for theme in ("light", "dark"):
                    take(browser, site, language, theme)
    print(f"wrote {len(list(FOLDER.glob('*.png')))} pictures into {FOLDER.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
