"""Epsilon and delta: plans, calibration, the curve of a run, and the privacy ledger.

Importing this package loads neither torch nor dp-accounting.
"""

from troth.accounting.calibrate import calibrate_noise_multiplier
from troth.accounting.curve import epsilon_after, epsilon_curve
from troth.accounting.home import key_folder, troth_home
from troth.accounting.ledger import Ledger, SpendRequest
from troth.accounting.mechanism import Mechanism
from troth.accounting.plan import PrivacyPlan, check_plan, make_plan, plan_for
from troth.accounting.pld import composed_epsilon, privacy_profile
from troth.accounting.reservation import Reservation

__all__ = [
    "Ledger",
    "Mechanism",
    "PrivacyPlan",
    "Reservation",
    "SpendRequest",
    "calibrate_noise_multiplier",
    "check_plan",
    "composed_epsilon",
    "epsilon_after",
    "epsilon_curve",
    "key_folder",
    "make_plan",
    "plan_for",
    "privacy_profile",
    "troth_home",
]
