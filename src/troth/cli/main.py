"""The command line: parses, calls, prints. Everything heavy is imported inside the commands."""

from __future__ import annotations

import os
import sys
import traceback

import typer

from troth import __version__
from troth.cli import attack, demo, doctor, fairness, federate, ledger, ls, plan, report, run, runs, train, validate
from troth.cli.output import say
from troth.errors import TrothError

__all__ = ["app", "main"]

app = typer.Typer(
    name="troth",
    help="Train text models privately, measure what they leak, treat groups alike, learn where the data lives.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _version(value: bool) -> None:
    if value:
        print(f"troth {__version__}")  # noqa: T201
        raise typer.Exit


@app.callback()
def _root(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    """Train text models privately, measure what they leak, treat groups alike, learn where the data lives."""


app.command("demo")(demo.demo)
app.command("plan")(plan.plan)
app.command("run")(run.run)
app.command("train")(train.train)
app.command("federate")(federate.federate)
app.command("attack")(attack.attack)
app.command("fairness")(fairness.fairness)
app.command("report")(report.report)
app.add_typer(runs.app, name="runs")
app.add_typer(ledger.app, name="ledger")
app.command("doctor")(doctor.doctor)
app.command("validate")(validate.validate)
app.command("ls")(ls.ls)


def main() -> None:
    """Run the command line; every expected error is one line and the exit code of its kind."""
    try:
        app()
    except TrothError as error:
        _fail(str(error), error.exit_code)
    except OSError as error:
        _fail(f"{error.filename or 'system'}: {error.strerror or error}", 1, error)
    except MemoryError as error:
        _fail("out of memory: lower train.physical_batch_size or model.max_length", 1, error)
    except Exception as error:  # a bug: one line for the user, the traceback on request
        _fail(f"unexpected {type(error).__name__}; set TROTH_DEBUG=1 to see where, and report it", 1, error)


def _fail(text: str, code: int, error: BaseException | None = None) -> None:
    if error is not None and os.environ.get("TROTH_DEBUG"):
        traceback.print_exception(error)
    say("error: " + " ".join(text.split()))
    sys.exit(code)
