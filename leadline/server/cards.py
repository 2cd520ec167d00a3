"""Chats and messages as the site shows them: their rows, and what running answers know better."""

from __future__ import annotations

from typing import Any

from sqlalchemy import Row

from leadline.server.answers import Answer, Answers
from leadline.server.chats import chat_card, message_card


class Cards:
    def __init__(self, answers: Answers) -> None:
        self.answers = answers

    def chat(self, row: Row[Any]) -> dict[str, Any]:
        answer = self.answers.of_chat(row.id)
        running = answer.row.number if answer is not None and answer.row is not None else None
        return chat_card(row, running, titling=self.answers.titler.working(row.id))

    def message(self, row: Row[Any]) -> dict[str, Any]:
        answer = self.answers.of_message(row.id)
        return message_card(row) if answer is None else self.answer(answer)

    def answer(self, answer: Answer) -> dict[str, Any]:
        """One that runs, or has just ended."""
        assert answer.row is not None
        return message_card(answer.row, None if answer.over else answer.live())
