"""Attacks: what a model leaks about its training data. Arrays in, measurements out; a higher score means 'member'.

What stands here works on arrays and loads no model library. Models are trained for attacks in `troth.attacks.twins`,
`shadows` and `head_shadows`; canaries are planted and looked for in `canaries`, `canary_insertion` and `extraction`.
"""

from troth.attacks.audit import Claim, EpsilonBound, audit_one_run, audit_rates
from troth.attacks.blind import blind_scores, shift_warning
from troth.attacks.epsilon_bounds import dp_sgd_curve, gaussian_curve, joint_beta_interval
from troth.attacks.membership import MembershipResult, loss_attack, measure_membership, overlapping_nonmembers
from troth.attacks.quantile import quantile_scores
from troth.attacks.roc import Auc, OperatingPoint, auc, roc_points, tpr_at_fpr
from troth.attacks.score_files import ScoreFile, read_scores
from troth.attacks.scores import (
    calibrated_scores,
    confidence,
    lira_scores,
    modified_entropy_scores,
    rmia_scores,
    student_t_scores,
)
from troth.attacks.shokri import shokri_scores
from troth.attacks.signals import Signals, available, signal_scores, signals_of
from troth.attacks.slices import activity_slices, auc_by_slice, quantile_slices
from troth.attacks.token_attacks import margin_scores, min_k_plus_plus_scores, min_k_scores, zlib_scores

__all__ = [
    "Auc",
    "Claim",
    "EpsilonBound",
    "MembershipResult",
    "OperatingPoint",
    "ScoreFile",
    "Signals",
    "activity_slices",
    "auc",
    "auc_by_slice",
    "audit_one_run",
    "audit_rates",
    "available",
    "blind_scores",
    "calibrated_scores",
    "confidence",
    "dp_sgd_curve",
    "gaussian_curve",
    "joint_beta_interval",
    "lira_scores",
    "loss_attack",
    "margin_scores",
    "measure_membership",
    "min_k_plus_plus_scores",
    "min_k_scores",
    "modified_entropy_scores",
    "overlapping_nonmembers",
    "quantile_scores",
    "quantile_slices",
    "read_scores",
    "rmia_scores",
    "roc_points",
    "shift_warning",
    "shokri_scores",
    "signal_scores",
    "signals_of",
    "student_t_scores",
    "tpr_at_fpr",
    "zlib_scores",
]
