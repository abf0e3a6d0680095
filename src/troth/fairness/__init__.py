"""Fairness: who a model serves how well. Arrays in, measurements with groups out."""

from troth.fairness.groups import MINIMUM_GROUP_SIZE, accuracy_by_group

__all__ = ["MINIMUM_GROUP_SIZE", "accuracy_by_group"]
