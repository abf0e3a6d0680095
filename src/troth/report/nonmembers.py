"""Which rows stood for non-members in a membership attack, and what these rows let the attack see."""

from __future__ import annotations

from troth.data.home import NONMEMBERS
from troth.results import Measurement, Record

__all__ = ["nonmembers_told"]

_SPLITS = ("test", "validation")
_HELD_OUT = ("holdout", "held out of the training rows")


def nonmembers_told(m: Measurement, record: Record) -> str:
    """Return one sentence: where the non-members of a measurement came from and what that means.

    Args:
        m: a measurement of a membership attack; its protocol says ``nonmembers_from``.
        record: the record that holds it; its resolved run file says the split where the protocol does not.
    """
    attack, data = record.config.get("attack"), record.config.get("data")
    asked = attack.get("nonmembers") if isinstance(attack, dict) else None
    source = m.protocol.get("nonmembers_from", asked)
    if isinstance(attack, dict) and attack.get("scores") is not None and "nonmembers_from" not in m.protocol:
        return (
            "whom the file of scores calls a non-member; non-members of another distribution than the members let the "
            "attack see that shift as well as what was memorised."
        )
    if source in _HELD_OUT or (isinstance(source, dict) and "holdout" in source):
        return (
            "training rows held out by chance from the model that was attacked, a twin trained on the rest, so that "
            "members and non-members are of the same distribution and the attack sees what was memorised."
        )
    if not isinstance(source, str):
        return (
            "the record does not say where they came from; rows of another distribution than the training rows let "
            "the attack see that shift as well as what was memorised."
        )
    rows = f"rows of the {source} split" if source in _SPLITS else f"rows of {source}"
    generated = isinstance(data, dict) and data.get("builtin") is not None and source in _SPLITS
    if generated and source == NONMEMBERS:
        return (
            f"{rows}, made from the templates of the training rows, so that the attack sees what was memorised; rows "
            "of another distribution, such as other templates, would let it see that shift as well."
        )
    if generated:
        return (
            f"{rows}, made from other templates than the training rows, so that the attack sees this shift as well "
            "as what was memorised and can succeed on a model that memorised nothing."
        )
    return (
        f"{rows}, never trained on; where they are of another distribution than the training rows (other templates, "
        "sources or dates) the attack sees that shift as well as what was memorised and can succeed on a model that "
        "memorised nothing."
    )
