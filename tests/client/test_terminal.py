"""The conversation in the terminal: commands, stopping, saving, and both backends behind it."""

from __future__ import annotations

import io
import json
import os
import pty
import select
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest

from leadline.client.backends import ChatOptions, EngineBackend, HttpBackend, check_choice
from leadline.client.http import Client
from leadline.client.terminal import (
    MarkdownScreen,
    PipeReader,
    PlainScreen,
    TerminalChat,
    history_file,
    save_conversation,
    split_blocks,
)
from leadline.engine.fake import ANSWER, FakeEngine
from leadline.engine.types import SamplingParams
from leadline.errors import ContextLengthExceeded, EngineError, UserError
from leadline.tokenizer import Tokenizer
from tests.fixtures_server import LiveServer, live_server, wait_until
from tests.source import ROOT

TEXT = ANSWER.removeprefix(" ")
PROMPT = "\x1b[?2004h"  # what prompt-toolkit sends when it is ready to be typed at


class Script:
    """A reader that types these lines; an exception is raised in its place."""

    def __init__(self, *lines: str | type[BaseException]) -> None:
        self.lines = list(lines)

    def read(self) -> str:
        if not self.lines:
            raise EOFError
        line = self.lines.pop(0)
        if isinstance(line, str):
            return line
        raise line


class Shown:
    def __init__(self) -> None:
        self.notes: list[str] = []
        self.answers: list[str] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def answer(self, pieces: Iterator[str]) -> None:
        self.answers.append("")
        for piece in pieces:
            self.answers[-1] += piece


class Echo:
    """A backend that says what it was asked; some questions go wrong."""

    name = "echo"

    def __init__(self) -> None:
        self.asked: list[tuple[list[Any], ChatOptions]] = []
        self.closed = False
        self.forgotten = 0

    def stream(self, messages: Sequence[Any], options: ChatOptions) -> Generator[str, None, None]:
        self.asked.append((list(messages), options))
        question = messages[-1]["content"]
        if question == "too long":
            raise ContextLengthExceeded("does not fit")
        yield "You said: "
        if question == "stop":
            raise KeyboardInterrupt
        if question == "fail":
            raise EngineError("broken")
        yield question

    def models(self) -> list[str]:
        return ["echo", "other"]

    def choose(self, model: str) -> None:
        self.name = check_choice(model, self.models())

    def forget(self) -> None:
        self.forgotten += 1

    def close(self) -> None:
        self.closed = True


def talk(*lines: str | type[BaseException], **options: Any) -> tuple[Echo, Shown, TerminalChat]:
    backend, screen = Echo(), Shown()
    chat = TerminalChat(backend, Script(*lines), screen, **options)
    chat.run()
    return backend, screen, chat


def test_the_conversation_grows() -> None:
    backend, screen, _ = talk("one", "", "  two  ")
    assert screen.answers == ["You said: one", "You said: two"]
    assert [message["content"] for message in backend.asked[1][0]] == ["one", "You said: one", "two"]


def test_bye_leaves_and_so_do_its_synonyms() -> None:
    for word in ("/bye", " /bye now", "/exit", "/quit"):
        assert talk(word, "never")[1].answers == []


def test_commands() -> None:
    backend, screen, _ = talk(
        *(
            "/system Be brief.",
            "/temp 0.5",
            "one",
            "/clear",
            "/system -",
            "/temp -",
            "two",
            "/system",
            "/temp",
            "/help",
        ),
    )
    (first, first_options), (second, second_options) = backend.asked
    assert [message["role"] for message in first] == ["system", "user"]
    assert first_options.temperature == 0.5
    assert [message["content"] for message in second] == ["two"]
    assert second_options.temperature is None
    assert "/save FILE" in screen.notes[-1]


@pytest.mark.parametrize(
    "line", ["/model gpt", "/temp hot", "/temp 3", "/temp nan", "/temp -1", "/save", "/nope", "/save /nope/x.md"]
)
def test_a_wrong_command_is_one_line_and_the_chat_goes_on(line: str) -> None:
    backend, screen, _ = talk(line, "one")
    assert len(backend.asked) == 1
    assert len(screen.notes[0].splitlines()) == 1


def test_models() -> None:
    backend, screen, _ = talk("/model", "/model other", "one")
    assert backend.name == "other"
    assert all("echo, other" in note for note in screen.notes)


def test_who_keeps_the_conversation_is_told_of_its_end() -> None:
    """Once for each conversation that was one: at /clear, and on leaving."""
    assert talk("/bye")[0].forgotten == 0
    assert talk("one", "/bye")[0].forgotten == 1
    assert talk("one", "/clear", "/clear", "/bye")[0].forgotten == 1
    assert talk("one", "/clear", "two")[0].forgotten == 2


def test_a_message_may_begin_with_a_slash() -> None:
    assert talk("//help me")[1].answers == ["You said: /help me"]


def test_ctrl_c_stops_the_answer_and_keeps_what_was_said() -> None:
    backend, screen, _ = talk("stop", "one")
    assert "(stopped)" in screen.notes
    assert [message["content"] for message in backend.asked[1][0]] == ["stop", "You said: ", "one"]


def test_ctrl_c_at_the_prompt_says_how_to_leave() -> None:
    _, screen, _ = talk(KeyboardInterrupt, "one")
    assert "/bye" in screen.notes[0]
    assert screen.answers == ["You said: one"]


def test_an_error_is_shown_and_the_question_without_answer_forgotten() -> None:
    backend, screen, _ = talk("too long", "fail", "one")
    assert "error: does not fit" in screen.notes
    assert any("/clear" in note for note in screen.notes)
    assert [message["content"] for message in backend.asked[2][0]] == ["fail", "You said: ", "one"]


def test_from_a_pipe_an_error_ends_it() -> None:
    with pytest.raises(ContextLengthExceeded):
        talk("too long", "one", strict=True)
    with pytest.raises(KeyboardInterrupt):
        talk("stop", strict=True)


def test_save(tmp_path: Path) -> None:
    talk("/system Be brief.", "one", f"/save {tmp_path}/a.json", f"/save {tmp_path}/a.md")
    messages = json.loads((tmp_path / "a.json").read_text())["messages"]
    assert [message["role"] for message in messages] == ["system", "user", "assistant"]
    assert (tmp_path / "a.md").read_text().startswith("## system\n\nBe brief.")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json", "a.md"]


def test_saving_leaves_the_old_file_when_it_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.md"
    path.write_text("old")
    path.with_name("a.md.partial").mkdir()
    with pytest.raises(UserError, match="cannot write"):
        save_conversation(path, [{"role": "user", "content": "x"}])
    assert path.read_text() == "old"


def test_pipes_are_utf8() -> None:
    reader = PipeReader(io.BytesIO("水\n\nlast".encode() + b"\n\xff\n"))
    assert [reader.read(), reader.read(), reader.read()] == ["水\n", "\n", "last\n"]
    with pytest.raises(UserError, match="line 4"):
        reader.read()
    with pytest.raises(EOFError):
        reader.read()


def test_plain_screen(capsys: pytest.CaptureFixture[str]) -> None:
    screen = PlainScreen()
    screen.note("note")
    screen.answer(iter(["a", "b"]))
    assert capsys.readouterr() == ("ab\n", "note\n")


def test_markdown_screen_shows_everything_once_and_obeys_no_escape(capsys: pytest.CaptureFixture[str]) -> None:
    screen = MarkdownScreen()
    screen.note("[bold]a note[/]")
    screen.answer(iter(["# Ti", "tle\n\nSome **te", "xt**.\n\n```\nco", "de\n\nmore\n```\n\nThe\x1b]52;c;x\x07 end"]))
    shown = capsys.readouterr().out
    for text in ("Title", "Some text.", "code", "more", "[bold]a note[/]"):
        assert shown.count(text) == 1, shown
    assert "\x1b" not in shown
    assert "\x07" not in shown


def test_blocks_end_at_empty_lines_outside_code() -> None:
    assert split_blocks("one") == ("", "one")
    assert split_blocks("one\n\ntwo") == ("one", "two")
    assert split_blocks("```\na\n\nb") == ("", "```\na\n\nb")
    assert split_blocks("x\n\n```\na\n\nb\n```\n\ny") == ("x\n\n```\na\n\nb\n```", "y")


def test_history_is_its_owners(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    path = history_file()
    assert path is not None
    assert path.stat().st_mode & 0o777 == 0o600
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "file"))
    assert history_file() is None


def test_a_server_answers(server: LiveServer) -> None:
    backend = HttpBackend(Client(server.url))
    screen = Shown()
    TerminalChat(backend, Script("Hello", "/temp 0", "And now?"), screen, system="Be brief.").run()
    assert screen.answers == [TEXT, TEXT]
    assert backend.name.startswith("fake at http://127.0.0.1")
    assert server.engine.requests[-1].params.temperature == 0
    backend.close()


def test_an_engine_in_this_process_answers(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(tokenizer)
    backend = EngineBackend(engine, tokenizer, SamplingParams(temperature=0.3))
    screen = Shown()
    TerminalChat(backend, Script("Hello", "/temp 0", "Hello"), screen).run()
    assert screen.answers == [TEXT, TEXT]
    assert [request.params.temperature for request in engine.requests] == [0.3, 0]
    assert "fake, float32 on cpu" in backend.name
    backend.close()
    backend.close()


def test_leaving_an_answer_of_an_engine_frees_it(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(tokenizer)
    backend = EngineBackend(engine, tokenizer, SamplingParams())
    stream = backend.stream([{"role": "user", "content": "Hello"}], ChatOptions())
    next(stream)
    stream.close()
    assert not engine.running
    backend.close()


def test_ctrl_c_while_an_engine_works(tokenizer: Tokenizer) -> None:
    engine = FakeEngine(tokenizer, first_token_seconds=30)
    backend = EngineBackend(engine, tokenizer, SamplingParams())
    screen = Shown()

    def interrupt() -> None:
        wait_until(lambda: bool(engine.running))
        os.kill(os.getpid(), signal.SIGINT)

    thread = threading.Thread(target=interrupt)
    thread.start()
    TerminalChat(backend, Script("Hello", "/bye"), screen).run()
    thread.join()
    assert screen.notes == ["(stopped)"]
    assert not engine.running
    backend.close()


def test_an_engine_that_fails(tokenizer: Tokenizer) -> None:
    backend = EngineBackend(FakeEngine(tokenizer, error_after=1), tokenizer, SamplingParams())
    screen = Shown()
    TerminalChat(backend, Script("Hello"), screen).run()
    assert "not finite" in screen.notes[0]
    backend.close()


def run_main(server: LiveServer, typed: str, **environment: str) -> subprocess.CompletedProcess[str]:
    env = {**os.environ, "DEEPSEEK_BASE_URL": server.url, **environment}
    command = [sys.executable, str(ROOT / "main.py")]
    return subprocess.run(command, input=typed, env=env, capture_output=True, text=True, timeout=30, check=False)


def test_main_py(server: LiveServer) -> None:
    done = run_main(server, "Hello\n/bye\n")
    assert done.returncode == 0, done.stderr
    assert TEXT in done.stdout
    assert run_main(server, "Hello\n").returncode == 0  # the end of the input leaves too
    gone = run_main(server, "", DEEPSEEK_BASE_URL="http://127.0.0.1:9")
    assert gone.returncode == 1
    assert len(gone.stderr.splitlines()) == 1
    assert run_main(server, "", DEEPSEEK="sk-…").returncode == 2


def test_main_py_needs_two_packages() -> None:
    blocked = "torch numpy tokenizers jinja2 rich prompt_toolkit cyclopts fastapi pydantic transformers safetensors"
    program = (
        f"import sys; sys.modules.update(dict.fromkeys({blocked.split()}))\n"
        f"sys.path.insert(0, {str(ROOT)!r})\nimport main\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True)
    assert {line.split(">")[0] for line in (ROOT / "requirements.txt").read_text().splitlines() if line[0] != "#"} == {
        "httpx2",
        "python-dotenv",
    }


class Terminal:
    """A program on a terminal of its own."""

    def __init__(self, *command: str) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            os.execve(command[0], command, {**os.environ, "TERM": "xterm", "COLUMNS": "100", "LINES": "40"})
        self.seen = ""
        self.start = 0

    def type(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def wait_for(self, text: str, seconds: float = 20.0) -> None:
        """Until the program shows `text` anew."""
        deadline = time.monotonic() + seconds
        while (place := self.seen.find(text, self.start)) < 0:
            assert time.monotonic() < deadline, self.seen
            received = self._read()
            assert received, self.seen
            self.seen += received
            if "\x1b[6n" in received:
                self.type("\x1b[1;1R")  # where the cursor is
        self.start = place + len(text)

    def leave(self) -> int:
        while received := self._read():
            self.seen += received
        _, status = os.waitpid(self.pid, 0)
        os.close(self.fd)
        return os.waitstatus_to_exitcode(status)

    def _read(self) -> str:
        ready, _, _ = select.select([self.fd], [], [], 20)
        assert ready, self.seen
        try:
            return os.read(self.fd, 65536).decode(errors="replace")
        except OSError:  # the program has left
            return ""


def test_on_a_real_terminal(tokenizer: Tokenizer) -> None:
    """Several lines, a stop with Ctrl-C, and leaving with Ctrl-D."""
    answer = " It is **deep**." + " deep" * 200
    with live_server(tokenizer, answer=answer, tokens_per_second=40) as server:
        terminal = Terminal(sys.executable, "-m", "leadline", "chat", "--url", server.url)
        terminal.wait_for("/help lists the commands")
        terminal.wait_for(PROMPT)
        terminal.type("first line\\\rsecond line\r")
        terminal.wait_for("It is")
        terminal.type("\x03")
        terminal.wait_for("(stopped)")
        wait_until(lambda: not server.engine.running)
        terminal.wait_for(PROMPT)
        terminal.type("\x03")
        terminal.wait_for("leaves")
        terminal.wait_for(PROMPT)
        terminal.type("\x04")
        assert terminal.leave() == 0
        text = tokenizer.decode(server.engine.requests[0].prompt_ids)
    assert "first line\nsecond line" in text
    assert "Traceback" not in terminal.seen
