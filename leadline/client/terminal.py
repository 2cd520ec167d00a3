"""A conversation in a terminal, or through a pipe.

`TerminalChat` knows the commands and the conversation; a `Reader` gives it what was typed and a `Screen` shows answers.
On a terminal that is prompt-toolkit (several lines, history) and rich (Markdown while it streams); in a pipe plain
lines in and plain text out. There Ctrl-C stops an answer, not the program; what was said stays in the conversation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO, Protocol

from leadline.client.backends import ChatBackend, ChatOptions
from leadline.errors import ContextLengthExceeded, LeadlineError, UserError

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings, KeyPressEvent

# What a terminal would obey rather than show: a model's words must not steer it.
_CONTROLS = dict.fromkeys([code for code in (*range(0x20), *range(0x7F, 0xA0)) if chr(code) not in "\t\n"])

HELP = """\
/help          this list
/system TEXT   what the model is told before the conversation; without TEXT: show it, "/system -" takes it away
/model NAME    who answers; without NAME: show who could
/temp NUMBER   temperature, 0 is the likeliest answer; without NUMBER: show it, "/temp -" is the model's own
/clear         forget the conversation
/save FILE     write the conversation: Markdown, or JSON when the name ends in .json
/bye           leave (Ctrl-D too)
A line that ends in \\ goes on in the next one, and so does one left with Alt-Enter. Ctrl-C stops an answer.
A message that begins with / is written with two: //"""


class Reader(Protocol):
    """`read` raises EOFError at the end of the input and KeyboardInterrupt for Ctrl-C."""

    def read(self) -> str: ...


class Screen(Protocol):
    def note(self, text: str) -> None:
        """Show a line that is not the model's."""
        ...

    def answer(self, pieces: Iterator[str]) -> None:
        """Show an answer as it comes."""
        ...


class TerminalChat:
    """`strict`: an error ends the program, for input that comes out of a pipe."""

    def __init__(
        self,
        backend: ChatBackend,
        reader: Reader,
        screen: Screen,
        *,
        system: str | None = None,
        options: ChatOptions | None = None,
        strict: bool = False,
    ) -> None:
        self.backend = backend
        self.reader = reader
        self.screen = screen
        self.system = system
        self.options = options or ChatOptions()
        self.strict = strict
        self.messages: list[dict[str, str]] = []
        self.spoken = False  # since the conversation began anew: whether there is something to forget
        self.commands: dict[str, Callable[[str], None]] = {
            "/help": lambda _: self.screen.note(HELP),
            "/system": self._system,
            "/model": self._model,
            "/temp": self._temperature,
            "/clear": self._clear,
            "/save": self._save,
        }

    def run(self) -> None:
        """Until /bye or the end of the input; leaving forgets the conversation."""
        while (line := self._read()) is not None:
            self._try(self._take, line)
        self._try(self._forget, "")

    def _try(self, action: Callable[[str], None], line: str) -> None:
        try:
            action(line)
        except LeadlineError as error:
            if self.strict:
                raise
            self.screen.note(f"error: {error.message}")
            if isinstance(error, ContextLengthExceeded):
                self.screen.note("the conversation has outgrown the model's context; /clear begins a new one")

    def _read(self) -> str | None:
        """What was typed; None when it is time to leave."""
        try:
            line = self.reader.read().strip()
        except EOFError:
            return None
        except KeyboardInterrupt:
            self.screen.note("/bye or Ctrl-D leaves")
            return ""
        return None if line.split(maxsplit=1)[:1] in (["/bye"], ["/exit"], ["/quit"]) else line

    def _take(self, line: str) -> None:
        name, _, rest = line.partition(" ")
        if line.startswith("//"):
            self._ask(line[1:])
        elif name in self.commands:
            self.commands[name](rest.strip())
        elif line.startswith("/"):
            self.screen.note(f"there is no command {name}; /help lists them, // begins a message with /")
        elif line:
            self._ask(line)

    def _ask(self, text: str) -> None:
        """One question and its answer; a question that got no answer at all is forgotten."""
        system = [{"role": "system", "content": self.system}] if self.system else []
        question = {"role": "user", "content": text}
        said: list[str] = []
        self.spoken = True
        pieces = self.backend.stream([*system, *self.messages, question], self.options)
        try:
            with contextlib.closing(pieces):
                self.screen.answer(_kept(pieces, said))
        except KeyboardInterrupt:
            if self.strict:
                raise
            self.screen.note("(stopped)")
        finally:
            if said:
                self.messages += [question, {"role": "assistant", "content": "".join(said)}]

    def _system(self, text: str) -> None:
        if text:
            self.system = None if text == "-" else text
        self.screen.note(f"system: {self.system or '(none)'}")

    def _temperature(self, text: str) -> None:
        if text:
            self.options = dataclasses.replace(self.options, temperature=_temperature(text))
        shown = self.options.temperature
        self.screen.note(f"temperature: {'the default' if shown is None else shown}")

    def _model(self, text: str) -> None:
        if text:
            self.backend.choose(text)
        self.screen.note(f"model: {self.backend.models()[0]}; there is {', '.join(sorted(self.backend.models()))}")

    def _clear(self, _: str) -> None:
        self._forget()
        self.screen.note("the conversation is forgotten")

    def _forget(self, _: str = "") -> None:
        self.messages.clear()
        if self.spoken:
            self.backend.forget()
        self.spoken = False

    def _save(self, text: str) -> None:
        if not text:
            raise UserError("/save needs the name of a file")
        path = Path(text).expanduser()
        system = [{"role": "system", "content": self.system}] if self.system else []
        save_conversation(path, [*system, *self.messages])
        self.screen.note(f"saved to {path}")


def save_conversation(path: Path, messages: list[dict[str, str]]) -> None:
    """All of it or nothing: the file is replaced only once the new one is written."""
    if path.suffix == ".json":
        text = json.dumps({"messages": messages}, ensure_ascii=False, indent=2) + "\n"
    else:
        text = "".join(f"## {message['role']}\n\n{message['content']}\n\n" for message in messages)
    partial = path.with_name(path.name + ".partial")
    try:
        partial.write_text(text, encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            partial.unlink()
        raise UserError(f"cannot write {path}: {error.strerror or error}") from None


class PipeReader:
    """A message a line, UTF-8. Empty lines are passed over by the chat."""

    def __init__(self, stream: BinaryIO) -> None:
        self.stream = stream
        self.lines = 0

    def read(self) -> str:
        line = self.stream.readline()
        if not line:
            raise EOFError
        self.lines += 1
        try:
            return line.decode("utf-8")
        except UnicodeDecodeError:
            raise UserError(f"line {self.lines} of the standard input is not valid UTF-8") from None


class InputReader:
    """Python's own line input: no history file, no packages."""

    def read(self) -> str:
        text = input("> ")
        while text.endswith("\\"):
            text = text[:-1] + "\n" + input("... ")
        return text


class PromptReader:
    """prompt-toolkit: several lines, history across runs, editing as in a shell."""

    def __init__(self, history: Path | None) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.history import FileHistory, History, InMemoryHistory

        past: History = InMemoryHistory() if history is None else FileHistory(str(history))
        self.session: PromptSession[str] = PromptSession(
            "> ", history=past, multiline=True, key_bindings=_key_bindings(), prompt_continuation="... "
        )

    def read(self) -> str:
        return self.session.prompt()


class PlainScreen:
    """Text as it comes; notes go to standard error, so that a pipe gets answers alone."""

    def note(self, text: str) -> None:
        print(text, file=sys.stderr, flush=True)

    def answer(self, pieces: Iterator[str]) -> None:
        for piece in pieces:
            print(piece, end="", flush=True)
        print(flush=True)


class MarkdownScreen:
    """rich: finished blocks are printed for good, the one being written is drawn anew with each piece."""

    def __init__(self) -> None:
        from rich.console import Console

        self.console = Console()

    def note(self, text: str) -> None:
        self.console.print(text, style="dim", markup=False, highlight=False)

    def answer(self, pieces: Iterator[str]) -> None:
        from rich.live import Live
        from rich.markdown import Markdown

        text = ""
        with Live(console=self.console, refresh_per_second=12, vertical_overflow="ellipsis", transient=True) as live:
            try:
                for piece in pieces:
                    done, text = split_blocks(text + piece.translate(_CONTROLS))
                    if done:
                        live.update("")
                        self.console.print(Markdown(done), "")
                    live.update(Markdown(text))
            finally:
                live.update("")
                self.console.print(Markdown(text), "")


def split_blocks(text: str) -> tuple[str, str]:
    """Markdown cut after its last finished block: at an empty line that stands in no fenced code."""
    cut = len(text)
    while (cut := text.rfind("\n\n", 0, cut)) > 0:
        fences = sum(line.lstrip().startswith(("```", "~~~")) for line in text[:cut].splitlines())
        if fences % 2 == 0:
            return text[:cut], text[cut:].lstrip("\n")
    return "", text


def history_file() -> Path | None:
    """Where what was typed is kept, readable by its owner alone; None where nothing can be written."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state") / "leadline"
    path = state / "history"
    try:
        state.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError:
        return None
    return path


def _kept(pieces: Generator[str, None, None], said: list[str]) -> Iterator[str]:
    for piece in pieces:
        said.append(piece)
        yield piece


def _temperature(text: str) -> float | None:
    if text == "-":
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 2.0:
        raise UserError(f"the temperature is a number from 0 to 2, not {text!r}")
    return value


def _key_bindings() -> KeyBindings:
    """Enter sends, unless the line ends in a backslash; Alt-Enter begins another line."""
    from prompt_toolkit.key_binding import KeyBindings

    bindings = KeyBindings()

    @bindings.add("enter")
    def _(event: KeyPressEvent) -> None:
        buffer = event.current_buffer
        if buffer.document.text_before_cursor.endswith("\\"):
            buffer.delete_before_cursor()
            buffer.insert_text("\n")
        else:
            buffer.validate_and_handle()

    @bindings.add("escape", "enter")
    def _(event: KeyPressEvent) -> None:
        event.current_buffer.insert_text("\n")

    return bindings
