"""Codes of errors: what the site translates is what the documentation lists, and each is what it says."""

from __future__ import annotations

import ast
import re
from typing import Any

import pytest

from leadline import errors
from leadline.server import errors as server_errors
from tests.server.platform.site import PASSWORD, Site
from tests.server.platform.talk import Person
from tests.source import ROOT, tree

SERVER = ROOT / "leadline" / "server"
API_ONLY = {"invalid_api_key", "budget_exceeded"}  # /v1 says these, in docs/api.md
NOT_SAID = {"internal_error", "invalid_config", "invalid_checkpoint", "invalid_tokenizer", "invalid_data", "conflict"}
NOT_SAID |= {"insufficient_resources", "training_failed", "connection_failed"}


def test_the_documentation_lists_every_code_and_no_other() -> None:
    text = (ROOT / "docs" / "site-api.md").read_text(encoding="utf-8").partition("\n## Errors\n")[2]
    cells = [line.split("|")[2] for line in text.splitlines() if "| `" in line]
    listed = set(re.findall(r"`([a-z_]+)`", " ".join(cells)))
    classes = {cls.code for cls in errors._tree(errors.LeadlineError)}
    refused = set(server_errors._HTTP_CODES.values())
    assert listed == (given_in_place() | classes | refused) - API_ONLY - NOT_SAID


def given_in_place() -> set[str]:
    """Every `code="..."` in a call of the server's."""
    calls = [node for path in SERVER.glob("*.py") for node in ast.walk(tree(path)) if isinstance(node, ast.Call)]
    words = [word.value for call in calls for word in call.keywords if word.arg == "code"]
    return {value.value for value in words if isinstance(value, ast.Constant) and isinstance(value.value, str)}


@pytest.fixture(scope="module")
def person(site: Site) -> Person:
    return Person(site)


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/vouchers/redeem", {"code": "x"}, 404, "voucher_invalid"),
        ("POST", "/tokens", {"days": 0}, 400, "value_out_of_range"),
        ("POST", "/keys", {"spend_cap": "much"}, 400, "invalid_amount"),
        ("POST", "/terms", {"version": 7}, 400, "terms_changed"),
        ("POST", "/account/password", {"old": "x", "new": "y" * 10}, 401, "wrong_password"),
        ("POST", "/account/password", {"old": PASSWORD, "new": "y"}, 400, "password_length"),
        ("POST", "/account/password", {"old": PASSWORD, "new": "password123"}, 400, "password_guessable"),
        ("POST", "/signin", {"token": "x"}, 401, "link_invalid"),
        ("POST", "/login", {"email": "nobody@example.org", "password": "y" * 10}, 401, "wrong_credentials"),
        ("POST", "/signup", {"email": "a@example.org", "password": "y" * 10}, 403, "signup_by_invitation"),
        ("GET", "/admin/users", None, 403, "operators_only"),
        ("GET", "/chats/nowhere", None, 404, "chat_not_found"),
        ("POST", "/chats", {"temperature": 3}, 400, "value_out_of_range"),
        ("DELETE", "/keys/12345", None, 404, "key_not_found"),
        ("POST", "/import", {"leadline_chats": 1, "chats": [1]}, 400, "invalid_request_error"),
        ("POST", "/import/markdown", {"markdown": "# x"}, 400, "import_invalid"),
        ("GET", "/nowhere", None, 404, "not_found"),
        ("PUT", "/chats", {}, 405, "method_not_allowed"),
    ],
)
def test_what_is_wrong_is_told_apart(person: Person, method: str, path: str, body: Any, status: int, code: str) -> None:
    answer = person.http.request(method, f"/api{path}", json=body)
    assert (answer.status_code, answer.json()["error"]["code"]) == (status, code)


def test_of_a_chat(person: Person) -> None:
    chat = person.chat()

    def refused(path: str, body: Any, status: int) -> str:
        return str(person.post(f"/chats/{chat}{path}", body, status)["error"]["code"])

    assert refused("/messages", {"content": " "}, 400) == "empty_message"
    assert refused("/messages", {"content": "x" * 20_000}, 400) == "context_length_exceeded"
    assert refused("/shares", {}, 400) == "nothing_to_share"
    assert refused("/messages/9/regenerate", {}, 404) == "message_not_found"
    answer = person.ask(chat)
    assert refused(f"/messages/{answer['id']}/continue", {}, 400) == "nothing_to_continue"


def test_of_sessions(site: Site) -> None:
    assert site.client().get("/api/account").json()["error"]["code"] == "not_signed_in"
    person = Person(site)
    person.post("/logout")
    person.http.cookies.set("leadline_session", "gone")
    assert person.http.get("/api/account").json()["error"]["code"] == "session_ended"
    foreign = Person(site).http.post("/api/logout", headers={"origin": "http://evil.example"})
    assert foreign.json()["error"]["code"] == "wrong_origin"


def test_one_of_a_call_goes_before_the_classs() -> None:
    assert errors.Conflict("why").code == "conflict"
    assert errors.Conflict("why", code="email_taken").code == "email_taken"
    assert errors.RateLimited("why", code="too_many_at_once", retry_after=3).retry_after == 3
