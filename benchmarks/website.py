"""What a long answer costs the browser: the time its one thread works while the answer streams, and the longest stall.

    python benchmarks/website.py                       # 4,000 tokens at 100 a second, three kinds of text
    python benchmarks/website.py --tokens 1000 --rate 400

A real Chromium at the website of a real server, whose engine has no model and says a text of the kind at the rate. The
work is Chromium's own count of tasks, scripts, layouts and styles from the sending to the end of the answer (DevTools,
Performance.getMetrics), in processor time; a long task is one of more than 50 ms on the clock, in which the page does
not answer its user: on a machine that does other things as well it says little.
"""

from __future__ import annotations

import argparse
import itertools
import json
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from playwright.sync_api import Browser

from tests.e2e.browser import DESK, aside, chromium, visitor, website
from tests.fixtures_server import small_tokenizer
from tests.server.platform.site import Site

RESULTS = Path(__file__).parent / "results"
PROSE = (
    "The *lead* sinks and the line runs out, and the **marks** tell the fathoms.\n\n"
    "1. Two strips of leather are two.\n2. A white cloth is `five`.\n\n## Depth\n\n"
    "The pressure is $p = p_0 + \\rho g h$, so that\n\n$$h = \\frac{p - p_0}{\\rho g}$$\n\n"
    "| mark | fathoms |\n|---|---:|\n| leather | 2 |\n\n"
)
LINE = "    total_{0} = sum(marks[:{0}]) * 1.8288  # one fathom is six feet\n"
KINDS: dict[str, Callable[[], Iterator[str]]] = {
    "prose, tables, formulas": lambda: itertools.repeat(PROSE),
    "one code block": lambda: itertools.chain(["```python\n"], (LINE.format(at) for at in itertools.count())),
    "one paragraph": lambda: itertools.repeat("By the mark, five! And a half, four. "),
}
COUNTS = {
    "TaskDuration": "tasks_s",
    "ScriptDuration": "scripts_s",
    "LayoutDuration": "layouts_s",
    "RecalcStyleDuration": "styles_s",
}
WATCH = """() => { window.long = []; new PerformanceObserver((list) => {
  for (const entry of list.getEntries()) window.long.push(entry.duration) }).observe({ type: 'longtask' }) }"""


def text(kind: str, characters: int) -> str:
    pieces, size = [], 0
    for piece in KINDS[kind]():
        pieces.append(piece)
        size += len(piece)
        if size > characters:
            return "".join(pieces)[:characters]
    raise AssertionError("a kind of text has no end")


def measure(browser: Browser, site: Site, kind: str) -> dict[str, Any]:
    user = aside(lambda: site.user(balance=10**9))
    with visitor(browser, site, viewport=DESK) as someone:
        someone.sign_in(aside(lambda: site.email(user)))
        devtools = someone.context.new_cdp_session(someone.page)
        devtools.send("Performance.enable", {"timeDomain": "threadTicks"})
        someone.page.evaluate(WATCH)
        before = metrics(devtools)
        someone.context.set_default_timeout(600_000)
        someone.composer.fill(kind)
        someone.composer.press("Enter")
        someone.page.locator("article.assistant .cost").wait_for()
        after = metrics(devtools)
        longest = someone.page.evaluate("window.long")
        shown = len(someone.answers.last.inner_text())
    return {
        "kind": kind,
        "characters": shown,
        **{name: round(after[name] - before[name], 3) for name in COUNTS.values()},
        "long_tasks": len(longest),
        "longest_ms": round(max(longest, default=0)),
    }


def metrics(devtools: Any) -> dict[str, float]:
    found = devtools.send("Performance.getMetrics")["metrics"]
    return {COUNTS[each["name"]]: each["value"] for each in found if each["name"] in COUNTS}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--tokens", type=int, default=4000)
    parser.add_argument("--rate", type=float, default=100.0, help="tokens a second")
    parser.add_argument("--characters", type=int, default=4, help="of a token")
    parser.add_argument("--out", type=Path, default=RESULTS / "website.json")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        tokenizer = small_tokenizer(Path(folder))
        size = args.tokens * args.characters
        texts = {kind: text(kind, size) for kind in KINDS}

        def answer(request: Any, _: int) -> str:
            asked = tokenizer.decode(request.prompt_ids).rpartition("User:")[2]
            return next(said for kind, said in texts.items() if kind in asked)

        made = {kind: len(tokenizer.encode(said)) for kind, said in texts.items()}
        data = Path(folder) / "site"
        data.mkdir()
        seconds = args.tokens / args.rate
        rate = max(made.values()) / seconds  # the fake tokenizer's tokens are shorter
        options: dict[str, Any] = {"answer": answer, "tokens_per_second": rate, "context_length": 1 << 17}
        with website(tokenizer, data, **options) as site, chromium() as browser:
            rows = [measure(browser, site, kind) for kind in KINDS]
    for row in rows:
        print(json.dumps(row))
    args.out.write_text(json.dumps({"tokens": args.tokens, "seconds": seconds, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
