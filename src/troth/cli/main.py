"""The command line: parses, calls, prints. Everything heavy is imported inside the commands."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from troth import __version__
from troth.cli.attack import attack
from troth.cli.demo import demo
from troth.cli.doctor import doctor
from troth.cli.fairness import fairness
from troth.cli.federate import federate
from troth.cli.ledger import app as ledger_app
from troth.cli.ls import ls
from troth.cli.models import app as models_app
from troth.cli.options import help_without_command
from troth.cli.output import say
from troth.cli.plan import plan
from troth.cli.report import report
from troth.cli.run import run
from troth.cli.runs import app as runs_app
from troth.cli.train import train
from troth.cli.validate import validate
from troth.errors import TrothError

__all__ = ["app", "main"]

app = typer.Typer(
    name="troth",
    help="Train text models privately, measure what they leak, treat groups alike, learn where the data lives.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        print(f"troth {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _root(
    context: typer.Context,
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Train text models privately, measure what they leak, treat groups alike, learn where the data lives."""
    help_without_command(context)


app.command("demo")(demo)
app.command("plan")(plan)
app.command("run")(run)
app.command("train")(train)
app.command("federate")(federate)
app.command("attack")(attack)
app.command("fairness")(fairness)
app.command("report")(report)
app.add_typer(runs_app, name="runs")
app.add_typer(ledger_app, name="ledger")
app.command("doctor")(doctor)
app.command("validate")(validate)
app.add_typer(models_app, name="models")
app.command("ls")(ls)


def main() -> None:
    """Run the command line; every expected error is one line and the exit code of its kind."""
    try:
        code = app(standalone_mode=False)
        sys.stdout.flush()
    except typer.TyperException as error:
        _fail(_usage(error.format_message()), error.exit_code)
    except TrothError as error:
        _fail(str(error), error.exit_code)
    except BrokenPipeError:  # whoever read the output has gone: nothing to tell, and nothing more to write
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 1, error)
    except MemoryError as error:
        _fail("out of memory: lower train.physical_batch_size or model.max_length", 1, error)
    except Exception as error:  # a bug: one line for the user, the traceback on request
        _fail(f"unexpected {type(error).__name__}; set TROTH_DEBUG=1 to see where, and report it", 1, error)
    else:
        sys.exit(code if isinstance(code, int) else 0)


def _usage(text: str) -> str:
    """Return an error of usage with the way out: what was meant, or whose help to read."""
    text = text.replace("Value error, ", "").removesuffix(".")
    if text.endswith("?"):
        return text
    verbs = [str(c.name) for c in app.registered_commands] + [str(g.name) for g in app.registered_groups]
    asked = next((word for word in sys.argv[1:] if not word.startswith("-")), "")
    return f"{text}; see troth {asked} --help" if asked in verbs else f"{text}; see troth --help"


def _fail(text: str, code: int, error: BaseException | None = None) -> None:
    if error is not None and os.environ.get("TROTH_DEBUG"):
        traceback.print_exception(error)
    say("error: " + " ".join(text.split()))
    sys.exit(code)
