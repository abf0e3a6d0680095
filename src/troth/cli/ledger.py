"""``troth ledger``: what each data set's privacy budget is and what has been spent of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from troth.cli.options import AsJson, RunFile, Set, help_without_command, read_run_file
from troth.cli.output import emit, listing, number, table
from troth.errors import ConfigError, RunError

if TYPE_CHECKING:
    from troth.accounting import Ledger
    from troth.results import Record

__all__ = ["app"]

app = typer.Typer(
    help="Budgets and what was spent of them.",
    callback=help_without_command,
    invoke_without_command=True,
    rich_markup_mode=None,
)
DatasetId = Annotated[str, typer.Argument(help="the data set's declared id (data.dataset_id)", metavar="DATASET_ID")]


def _ledger() -> Ledger:
    """Return the ledger; a place that cannot be used is bad input, a damaged ledger is not."""
    from troth.accounting import Ledger
    from troth.runs.preflight import check_home

    try:
        return Ledger()
    except RunError:
        check_home()
        raise


def _print(record: Record, *, as_json: bool) -> None:
    """Print accounts: for people a table of data sets, then one of each data set's runs."""
    if as_json:
        emit(record, as_json=True)
        return
    accounts = record.items or ()
    for line in table([_account(a) for a in accounts]):
        print(line)  # noqa: T201
    for account in accounts:
        print(f"\nruns on {account['dataset_id']}")  # noqa: T201
        for line in table([_run(r) for r in _rows(account["runs"])]):
            print(f"  {line}")  # noqa: T201


def _rows(value: object) -> Sequence[Mapping[str, Any]]:
    return value if isinstance(value, list) else ()


def _account(account: Mapping[str, Any]) -> dict[str, Any]:
    """Return a data set's account as one row for people; what is infinite says so."""
    budget, share = account["budget_epsilon"], account["remaining_share"]
    return {
        "data set": account["dataset_id"],
        "unit": account["unit"],
        "neighbours": account["neighboring_relation"],
        "rows": account["rows"],
        "budget": None if budget is None else f"epsilon {number(budget)} at delta {number(account['budget_delta'])}",
        "spent epsilon": _epsilon(account["spent_epsilon"]),
        "at delta": account["spent_delta"],
        "left": None if share is None else f"{share:.0%}",
        "guarantee": account["guarantee"],
        "by": account["spent_method"],
    }


def _run(run: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run": run["name"],
        "kind": run["kind"],
        "epsilon": _epsilon(run["epsilon"]),
        "steps": f"{run['steps_spent']} of {run['steps_reserved']}",
        "state": run["state"],
        "created": run["created"],
        "reservation": run["id"],
        "plan": run["plan"],
    }


def _epsilon(value: float | None) -> str:
    return "infinity" if value is None else number(value)


@app.command("show")
def show(as_json: AsJson = False) -> None:
    """Print every data set with its budget, what is spent, and the runs that spent it."""
    _print(listing("ledger", lambda: _ledger().show()), as_json=as_json)


@app.command("set-budget")
def set_budget(
    dataset_id: DatasetId,
    epsilon: Annotated[float, typer.Option(help="the most that all runs together may spend")],
    delta: Annotated[float, typer.Option(help="far below one over the number of rows")],
    unit: Annotated[Literal["example", "user"], typer.Option(help="whose data the budget protects")] = "example",
    as_json: AsJson = False,
) -> None:
    """Set the budget that all runs on a data set share."""
    from troth.runs.preflight import check_home

    def made() -> list[dict[str, Any]]:
        check_home()
        ledger = _ledger()
        ledger.set_budget(dataset_id, epsilon, delta, unit)
        return ledger.show()

    _print(listing("ledger", made), as_json=as_json)


@app.command("forecast")
def forecast(dataset_id: DatasetId, run_file: RunFile, assignments: Set = None, as_json: AsJson = False) -> None:
    """Print how many more runs like this file's fit into the data set's budget."""
    config = read_run_file(run_file, assignments)
    if config.privacy is None:
        raise ConfigError(f"{run_file}: no [privacy]: a plain run spends infinity")
    from troth.runs.planning import plan_of

    plan = plan_of(config, run_file.resolve().parent)
    emit(listing("ledger", lambda: [_ledger().forecast(dataset_id, plan)]), as_json=as_json)


@app.command("release")
def release(
    reservation: Annotated[
        str, typer.Argument(help="the reservation's id, from troth ledger show", metavar="RESERVATION")
    ],
    as_json: AsJson = False,
) -> None:
    """Give back the steps that an abandoned run never took; it cannot be resumed afterwards."""
    from troth.runs.preflight import check_home

    def made() -> list[dict[str, Any]]:
        check_home()
        ledger = _ledger()
        ledger.release(reservation)
        return ledger.show()

    _print(listing("ledger", made), as_json=as_json)
