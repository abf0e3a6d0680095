"""Training: the plain and the private loop behind one function, checkpoints, progress, export."""

from troth.training.checkpoints import Checkpoint, latest_checkpoint, load_checkpoint, save_checkpoint
from troth.training.device import choose_device
from troth.training.export import export
from troth.training.fit import fit
from troth.training.outcome import TrainInputs, TrainOutcome
from troth.training.probe import Probe, probe
from troth.training.progress import BarProgress, LineProgress, Progress, SilentProgress

__all__ = [
    "BarProgress",
    "Checkpoint",
    "LineProgress",
    "Probe",
    "Progress",
    "SilentProgress",
    "TrainInputs",
    "TrainOutcome",
    "choose_device",
    "export",
    "fit",
    "latest_checkpoint",
    "load_checkpoint",
    "probe",
    "save_checkpoint",
]
