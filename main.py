"""A simple client: `python main.py` talks to the leadline server that .env names, and to nothing else.

    cp .env.example .env; pip install -r requirements.txt; python main.py

DEEPSEEK is the token (a server without accounts needs none), DEEPSEEK_BASE_URL the server, on this machine by default.
Each line is a message; /help lists the commands, /bye clears the conversation and leaves.
"""

from __future__ import annotations

import os
import sys

from dotenv import load_dotenv

from leadline.client.backends import HttpBackend
from leadline.client.http import DEFAULT_URL, Client
from leadline.client.terminal import InputReader, PlainScreen, TerminalChat
from leadline.errors import LeadlineError


def main() -> int:
    load_dotenv()
    url = os.environ.get("DEEPSEEK_BASE_URL") or DEFAULT_URL
    try:
        backend = HttpBackend(Client(url, api_key=os.environ.get("DEEPSEEK")))
    except LeadlineError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(f"{backend.name}. /help lists the commands, /bye leaves. Not affiliated with DeepSeek.", file=sys.stderr)
    TerminalChat(backend, InputReader(), PlainScreen()).run()
    backend.close()
    return 0


if __name__ == "__main__":
    sys.exit(main())
