"""What every section of a run file is made of: the strict base class and the ranges of its values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, FiniteFloat

__all__ = ["Count", "Fraction", "Name", "NonNegative", "Positive", "Section", "Share", "refuse_unused"]

Positive = Annotated[FiniteFloat, Field(gt=0)]
NonNegative = Annotated[FiniteFloat, Field(ge=0)]
Fraction = Annotated[FiniteFloat, Field(gt=0, lt=1)]
Share = Annotated[FiniteFloat, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=1)]
Name = Annotated[str, Field(min_length=1, max_length=100, pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]


class Section(BaseModel):
    """A frozen table of the run file that refuses keys it does not know."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, protected_namespaces=())


def refuse_unused(section: Section, choice: str, uses: Mapping[str, tuple[str, ...]]) -> None:
    """Refuse a key that has another value than its default and that the key `choice` leaves without effect.

    A resolved run file writes every default out, so that a default says nothing.

    Args:
        section: the section, validated.
        choice: the key whose value decides which others count.
        uses: key -> the values of `choice` that use it.

    Raises:
        ValueError: names the key and the values it goes with.
    """
    value = getattr(section, choice)
    for key, users in uses.items():
        given, default = getattr(section, key), type(section).model_fields[key].default
        if given != default and value not in users:
            raise ValueError(f"{key} goes with {choice} = {' or '.join(map(repr, users))}, not with {value!r}")
