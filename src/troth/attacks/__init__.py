"""Attacks: what a model leaks about its training data. Arrays in, measurements out; a higher score means 'member'."""

from troth.attacks.audit import Claim, EpsilonBound, audit_one_run, audit_rates
from troth.attacks.epsilon_bounds import dp_sgd_curve, gaussian_curve, joint_beta_interval
from troth.attacks.membership import MembershipResult, loss_attack, measure_membership, overlapping_nonmembers
from troth.attacks.roc import Auc, OperatingPoint, auc, roc_points, tpr_at_fpr
from troth.attacks.scores import (
    calibrated_scores,
    confidence,
    lira_scores,
    modified_entropy_scores,
    rmia_scores,
    student_t_scores,
)

__all__ = [
    "Auc",
    "Claim",
    "EpsilonBound",
    "MembershipResult",
    "OperatingPoint",
    "auc",
    "audit_one_run",
    "audit_rates",
    "calibrated_scores",
    "confidence",
    "dp_sgd_curve",
    "gaussian_curve",
    "joint_beta_interval",
    "lira_scores",
    "loss_attack",
    "measure_membership",
    "modified_entropy_scores",
    "overlapping_nonmembers",
    "rmia_scores",
    "roc_points",
    "student_t_scores",
    "tpr_at_fpr",
]
