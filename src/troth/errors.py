"""The exceptions troth raises. Everything a user can mend is a `TrothError` whose text is one line.

TrothError                     exit code 1: the work failed
├── InputError                 exit code 2: what the user gave cannot be used
│   ├── ConfigError            a run file or an option
│   ├── DataError              a table of text
│   ├── ModelError             a checkpoint, preset or tokenizer
│   └── MissingExtraError      an optional dependency that is not installed
├── PrivacyError               exit code 2: a guarantee would be void (fail closed)
│   ├── UnsupportedModuleError a trainable parameter that cannot be clipped per example
│   ├── BudgetError            the data set's budget does not cover the plan
│   ├── EngineStateError       the private engine was driven in an order that would void its guarantee
│   └── SelfCheckError         the private engine disagrees with plain autograd on this model
├── RunError                   exit code 1: a run folder, its index or its disk
│   ├── Interrupted            exit code 1: the user stopped it; what was done can be resumed
│   └── ResumeError            exit code 2: nothing to resume, or resumed under a changed configuration
└── GateNotMet                 exit code 3: a gate's rule does not hold
"""

from typing import ClassVar

__all__ = [
    "BudgetError",
    "ConfigError",
    "DataError",
    "EngineStateError",
    "GateNotMet",
    "InputError",
    "Interrupted",
    "MissingExtraError",
    "ModelError",
    "PrivacyError",
    "ResumeError",
    "RunError",
    "SelfCheckError",
    "TrothError",
    "UnsupportedModuleError",
]


class TrothError(Exception):
    """Base of all errors that troth raises on purpose; the text names the thing and the way out."""

    exit_code: ClassVar[int] = 1


class InputError(TrothError):
    """What the user gave cannot be used."""

    exit_code: ClassVar[int] = 2


class ConfigError(InputError):
    """A run file or an option is wrong."""


class DataError(InputError):
    """A table of text is wrong; the text names file, row and way out."""


class ModelError(InputError):
    """A checkpoint, preset or tokenizer cannot be used."""


class MissingExtraError(InputError):
    """An optional dependency is not installed; the text holds the install line."""


class PrivacyError(TrothError):
    """Going on would void a guarantee."""

    exit_code: ClassVar[int] = 2


class UnsupportedModuleError(PrivacyError):
    """A trainable parameter cannot be clipped per example."""


class BudgetError(PrivacyError):
    """The data set's privacy budget does not cover what was asked for."""


class EngineStateError(PrivacyError):
    """The private engine was driven in an order that would void its guarantee."""


class SelfCheckError(PrivacyError):
    """The private engine was tried on the model before anything was released, and is not exact on it."""


class RunError(TrothError):
    """A run folder, its index or its disk failed."""


class Interrupted(RunError):  # noqa: N818  says what happened
    """The user stopped the work; what was done can be resumed."""


class ResumeError(RunError):
    """Nothing to resume, or resumed under a changed configuration."""

    exit_code: ClassVar[int] = 2


class GateNotMet(TrothError):  # noqa: N818  the contract's word
    """A gate's rule does not hold."""

    exit_code: ClassVar[int] = 3
