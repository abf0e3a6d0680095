"""Private training: exact per-example clipping in one backward pass, Poisson sampling, Gaussian noise."""

from troth.dp.engine import PrivateEngine
from troth.dp.inspect import ParameterRule, inspect
from troth.dp.noise import write_noise
from troth.dp.observation import EngineCounters, Observer
from troth.dp.sampling import poisson_sample

__all__ = ["EngineCounters", "Observer", "ParameterRule", "PrivateEngine", "inspect", "poisson_sample", "write_noise"]
