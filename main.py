"""A simple client: `python main.py` talks to the leadline server that .env names, and to nothing else.

    cp .env.example .env; pip install -r requirements.txt; python main.py

DEEPSEEK is a key (sk-...) or the token of an account; a server without accounts needs neither. DEEPSEEK_BASE_URL is the
server, on this machine by default. Each line is a message; /help lists the commands, /bye clears the conversation and
leaves.
"""

from __future__ import annotations

import os
import sys
import time

from dotenv import load_dotenv

from leadline.client.backends import ChatBackend, HttpBackend
from leadline.client.http import DEFAULT_URL, Client
from leadline.client.legacy import LegacyBackend, check_token
from leadline.client.terminal import InputReader, PlainScreen, TerminalChat
from leadline.errors import AuthenticationError, LeadlineError, NotFound


def main() -> int:
    load_dotenv()
    url = os.environ.get("DEEPSEEK_BASE_URL") or DEFAULT_URL
    try:
        backend = connect(url, os.environ.get("DEEPSEEK", "").strip())
    except AuthenticationError as error:
        print(f"{error.message}. Sign in at {url} and copy a new one from its keys page into .env.", file=sys.stderr)
        return error.exit_code
    except LeadlineError as error:
        print(error.message, file=sys.stderr)
        return error.exit_code
    except KeyboardInterrupt:
        return 130
    print(f"{backend.name}. /help lists the commands, /bye leaves. Not affiliated with DeepSeek.", file=sys.stderr)
    TerminalChat(backend, InputReader(), PlainScreen()).run()
    backend.close()
    return 0


def connect(url: str, secret: str) -> ChatBackend:
    """By a key or nothing: the API. By a token: the chat protocol, where the server has accounts."""
    if secret and not secret.startswith("sk-"):
        check_token(secret, time.time())
        try:
            return LegacyBackend(url, secret)
        except NotFound:
            print("this server has no accounts; the token is not needed", file=sys.stderr)
    return HttpBackend(Client(url, api_key=secret or None))


if __name__ == "__main__":
    sys.exit(main())
