"""``troth doctor``: how each parameter of a model would be clipped, or why it is refused."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer

from troth.cli.options import AsJson
from troth.cli.output import emit, listing
from troth.errors import UnsupportedModuleError

if TYPE_CHECKING:
    from troth.dp import ParameterRule

__all__ = ["doctor"]


def doctor(
    model: Annotated[str, typer.Argument(help="a checkpoint folder or hub id", metavar="MODEL")],
    as_json: AsJson = False,
) -> None:
    """List each parameter of MODEL with its clipping rule; exit code 2 where one is refused."""
    from troth.dp import inspect
    from troth.tasks.architecture import open_architecture

    rules: list[ParameterRule] = []

    def made() -> list[dict[str, object]]:
        rules.extend(inspect(open_architecture(model)))
        return [asdict(rule) for rule in rules]

    emit(listing("doctor", made, name=model), as_json=as_json)
    refused = [r for r in rules if not r.supported]
    if refused:
        raise UnsupportedModuleError(
            f"{model}: {len(refused)} of {len(rules)} parameters cannot be clipped per example, "
            f"first {refused[0].name}: {refused[0].reason}"
        )
