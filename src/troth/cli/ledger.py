"""``troth ledger``: what each data set's privacy budget is and what has been spent of it."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from troth.cli.options import AsJson, RunFile, Set
from troth.cli.output import emit, listing
from troth.errors import ConfigError

__all__ = ["app"]

app = typer.Typer(help="Budgets and what was spent of them.", no_args_is_help=True, rich_markup_mode=None)
DatasetId = Annotated[str, typer.Argument(help="the data set's declared id (data.dataset_id)")]


@app.command("show")
def show(as_json: AsJson = False) -> None:
    """Print every data set with its budget, what is spent, and the runs that spent it."""
    from troth.accounting import Ledger

    emit(listing("ledger", Ledger().show()), as_json=as_json)


@app.command("set-budget")
def set_budget(
    dataset_id: DatasetId,
    epsilon: Annotated[float, typer.Option(help="the most that all runs together may spend")],
    delta: Annotated[float, typer.Option(help="far below one over the number of rows")],
    unit: Annotated[Literal["example", "user"], typer.Option(help="whose data the budget protects")] = "example",
    as_json: AsJson = False,
) -> None:
    """Set the budget that all runs on a data set share."""
    from troth.accounting import Ledger

    ledger = Ledger()
    ledger.set_budget(dataset_id, epsilon, delta, unit)
    emit(listing("ledger", ledger.show()), as_json=as_json)


@app.command("forecast")
def forecast(dataset_id: DatasetId, run_file: RunFile, assignments: Set = None, as_json: AsJson = False) -> None:
    """Print how many more runs like this file's fit into the data set's budget."""
    from troth.config import load

    config = load(run_file, assignments or ())
    if config.privacy is None:
        raise ConfigError(f"{run_file}: no [privacy]: a plain run spends infinity")
    from troth.accounting import Ledger
    from troth.runs.planning import plan_of

    plan = plan_of(config, run_file.resolve().parent)
    emit(listing("ledger", [Ledger().forecast(dataset_id, plan)]), as_json=as_json)


@app.command("release")
def release(
    reservation: Annotated[str, typer.Argument(help="the reservation's id, from troth ledger show")],
    as_json: AsJson = False,
) -> None:
    """Give back the steps that an abandoned run never took; it cannot be resumed afterwards."""
    from troth.accounting import Ledger

    ledger = Ledger()
    ledger.release(reservation)
    emit(listing("ledger", ledger.show()), as_json=as_json)
