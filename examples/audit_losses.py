"""Audit a model that was trained anywhere: two arrays of losses are enough."""

import numpy as np

from troth.attacks import loss_attack
from troth.seeds import PublicSeeds


def main() -> None:
    rng = np.random.default_rng(1)
    members = rng.exponential(0.20, 5_000)  # losses of rows the model was trained on
    non_members = rng.exponential(0.25, 5_000)  # losses of rows it never saw
    result = loss_attack(members, non_members, seeds=PublicSeeds(1))
    for m in result.measurements:
        print(f"{m.name:45s} {m.value:.3f} [{m.low:.3f}, {m.high:.3f}] n = {m.n}")


if __name__ == "__main__":
    main()
