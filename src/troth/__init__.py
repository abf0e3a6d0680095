"""troth: a workbench for trustworthy NLP.

Import what you need from the packages: ``troth.data``, ``troth.tasks``, ``troth.accounting``, ``troth.dp``,
``troth.training``, ``troth.attacks``, ``troth.federated``, ``troth.fairness``, ``troth.runs``, ``troth.report``.
This module itself loads nothing heavy.
"""

__version__ = "0.1.0"

__all__ = ["__version__"]
