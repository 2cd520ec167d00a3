"""The command line: `leadline VERB [options]`.

One module a verb. `VERBS` below names them without importing them, so that `leadline --help` starts at once and a verb
imports only what it needs. The convention, for whoever adds a verb:

* `leadline/cli/NAME.py` defines either a function `NAME`, or for a verb with subcommands a `cyclopts.App` called `app`.
* The function's signature is the command: parameters before `/` are positional, those after `*` are options
  (`max_tokens: int | None = None` is `--max-tokens`, a `bool` is `--flag` and `--no-flag`, a tuple repeats, a `Literal`
  lists choices). The docstring's first line is the help and its `Args:` section explains each option.
* It returns None or an exit code. What a user did wrong is raised as a `leadline.errors.UserError`: one line, exit 2.
* torch, the engine and the trainer are imported inside the function.
"""

from __future__ import annotations

import io
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, NoReturn

from leadline import __version__
from leadline.config import did_you_mean
from leadline.errors import DISK_FULL, AuthenticationError, LeadlineError, ResourceError, UserError

if TYPE_CHECKING:
    from cyclopts import App

EXIT_INTERRUPTED = 130  # 128 + SIGINT, as a shell reports it
EXIT_BROKEN_PIPE = 1  # what Python and rich use

# name -> (where it lives, help). The order is the order of `leadline --help`.
VERBS = {
    "chat": ("leadline.cli.chat:chat", "Chat in the terminal, with a local model or any OpenAI-compatible server."),
    "generate": ("leadline.cli.generate:generate", "Complete a prompt, or a file of prompts."),
    "serve": ("leadline.cli.serve:app", "Serve a model: the website, the platform and the OpenAI API."),
    "train": ("leadline.cli.train:app", "Train a model from a TOML recipe."),
    "eval": ("leadline.cli.eval:evaluate", "Score a model on the paper's benchmarks, beside the published scores."),
    "tokenizer": ("leadline.cli.tokenizer:app", "Encode, decode and train tokenizers."),
    "plan": ("leadline.cli.plan:plan", "What a model needs and what fits here, before anything is loaded."),
    "verify": ("leadline.cli.verify:verify", "Check a model folder against the golden numbers."),
    "pull": ("leadline.cli.pull:pull", "Bring a model from a hub, in as many bits as it has or in fewer."),
    "quantize": ("leadline.cli.quantize:quantize", "A model in 8 or 4 bits, measured against the original."),
    "cache": ("leadline.cli.cache:app", "Pages of context that are kept on the disk: list, clear, pin, unpin."),
    "bench": ("leadline.cli.bench:app", "Measure how fast a model runs here: decode, prefill, batch."),
    "admin": ("leadline.cli.admin:app", "Users, credit, prices, vouchers and invitations, on the database itself."),
    "doctor": ("leadline.cli.doctor:doctor", "What this machine can do, and why something is missing."),
}

_ROOT_FLAGS = ("--help", "-h", "--version")

# A module that is missing -> the extra that brings it.
_EXTRAS = {
    "math_verify": "eval",
    "pyarrow": "eval",
    "torch": "engine",
    "numpy": "engine",
    "safetensors": "engine",
    "huggingface_hub": "engine",
    "fastapi": "server",
    "uvicorn": "server",
    "prometheus_client": "server",
    "matplotlib": "plot",
    "sqlalchemy": "server",
    "alembic": "server",
    "argon2": "server",
    "jwt": "server",
}


def build_app() -> App:
    """The command tree; no verb is imported before it is called."""
    from cyclopts import App, Parameter

    app = App(
        name="leadline",
        help="An independent implementation of DeepSeek-V2. Not affiliated with DeepSeek.",
        version=f"leadline {__version__}",
        help_format="plaintext",
        default_parameter=Parameter(negative_iterable=()),
        result_action="return_value",
        suppress_keyboard_interrupt=False,
    )
    for order, (name, (target, summary)) in enumerate(VERBS.items()):
        app.command(target, name=name, help=summary, sort_key=order)
    return app


def main(argv: Sequence[str] | None = None) -> NoReturn:
    """The console script: runs a verb and leaves with its exit code. A character that the terminal's encoding lacks
    becomes a question mark: an answer may hold any."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    sys.exit(run(sys.argv[1:] if argv is None else argv))


def run(argv: Sequence[str]) -> int:
    """Run one command line; every failure a user can cause is one line on standard error."""
    try:
        code = _call(argv)
        sys.stdout.flush()
    except AuthenticationError as error:
        option = "--engine-key" if argv[0] == "serve" else "--api-key or LEADLINE_API_KEY"
        return _fail(error, f"; {option} gives the key")
    except LeadlineError as error:
        return _fail(error)
    except ImportError as error:
        return _fail(_missing_extra(error))
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except BrokenPipeError:
        _drop_output()
        return EXIT_BROKEN_PIPE
    except OSError as error:
        return _fail(_no_room(error))
    return code


def _call(argv: Sequence[str]) -> int:
    from cyclopts import CycloptsError, MissingArgumentError, UnusedCliTokensError

    if argv and argv[0] not in {*VERBS, *_ROOT_FLAGS}:
        raise UserError(f"unknown command {argv[0]!r}{did_you_mean(argv[0], VERBS)}; leadline --help lists them")
    try:
        result = build_app()(list(argv), exit_on_error=False, print_error=False)
    except UnusedCliTokensError as error:
        surplus = (error.unused_tokens or [""])[0]
        raise UserError(f"unexpected argument {surplus!r}; a text of several words goes into quotes") from None
    except MissingArgumentError as error:
        raise UserError(f"{error} leadline {' '.join(error.command_chain or ())} --help has them all") from None
    except CycloptsError as error:
        raise UserError(str(error)) from None
    return result if isinstance(result, int) else 0


def _fail(error: LeadlineError, advice: str = "") -> int:
    print(f"leadline: {' '.join(error.message.split())}{advice}", file=sys.stderr)
    return error.exit_code


def _missing_extra(error: ImportError) -> LeadlineError:
    """What to install for a module that an optional part needs; any other failed import is a fault of ours."""
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error  # cyclopts wraps a verb's own
    module = (cause.name or "").partition(".")[0]
    if module not in _EXTRAS:
        raise error
    return UserError(f"this needs {module}, which is not installed: pip install 'leadline[{_EXTRAS[module]}]'")


def _no_room(error: OSError) -> LeadlineError:
    """A disk that is full, wherever the output goes; anything else is a fault of ours."""
    if error.errno not in DISK_FULL:
        raise error
    try:
        sys.stdout.flush()
    except OSError:
        _drop_output()
    return ResourceError(f"cannot write {error.filename or 'the output'}: {error.strerror}")


def _drop_output() -> None:
    """Nobody takes it, as after `| head`; keep the interpreter's own flush at exit from complaining."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
