"""Attacks: what a model leaks about its training data. Arrays in, measurements out; a higher score means 'member'."""

from troth.attacks.membership import MembershipResult, loss_attack, measure_membership, overlapping_nonmembers
from troth.attacks.roc import Auc, OperatingPoint, auc, roc_points, tpr_at_fpr

__all__ = [
    "Auc",
    "MembershipResult",
    "OperatingPoint",
    "auc",
    "loss_attack",
    "measure_membership",
    "overlapping_nonmembers",
    "roc_points",
    "tpr_at_fpr",
]
