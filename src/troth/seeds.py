"""Randomness: one root seed for public choices, operating-system entropy for private ones.

`PublicSeeds` drives initialisation, public shuffles and plots. `PrivateRandomness` drives noise, private sampling,
micro-batch membership, cohorts under differential privacy and canary bits. The two never share state: knowing the
run's seed tells nothing about the noise.
"""

from __future__ import annotations

import hashlib
import secrets
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["PrivateRandomness", "PublicSeeds"]

_KEY_BYTES = 32
_MT19937_WORDS = 624
_MT19937_STATE_OFFSET = 24  # bytes before state[624] in torch's serialised CPU generator
_MT19937_LEFT_OFFSET = 8


@dataclass(frozen=True)
class PublicSeeds:
    """A tree of independent, named generators grown from one root seed.

    The same root and the same purpose give the same stream on every machine; different purposes are independent
    (`numpy.random.SeedSequence` spawn keys made from a digest of the purpose).

    >>> a = PublicSeeds(1).generator("shuffle", 0).integers(1000)
    >>> a == PublicSeeds(1).generator("shuffle", 0).integers(1000)
    np.True_
    """

    root: int

    def sequence(self, *purpose: str | int) -> np.random.SeedSequence:
        """Return the seed sequence of a purpose, such as ``("epoch", 3)``."""
        digest = hashlib.sha256("\x1f".join(f"{type(p).__name__}:{p}" for p in purpose).encode()).digest()
        words = np.frombuffer(digest[:16], dtype=np.uint32)
        return np.random.SeedSequence(self.root, spawn_key=tuple(int(w) for w in words))

    def generator(self, *purpose: str | int) -> np.random.Generator:
        """Return a NumPy generator for a purpose."""
        return np.random.default_rng(self.sequence(*purpose))

    def integer(self, *purpose: str | int) -> int:
        """Return a 63-bit integer for a purpose, for libraries that want a plain seed."""
        return int(self.sequence(*purpose).generate_state(1, np.uint64)[0] >> np.uint64(1))

    def torch_generator(self, *purpose: str | int) -> torch.Generator:
        """Return a CPU torch generator for a purpose."""
        import torch

        generator = torch.Generator()
        generator.manual_seed(self.integer(*purpose))
        return generator


def _expand(key: bytes, *purpose: str | int, length: int) -> bytes:
    """Return `length` bytes from SHAKE-256 of key and purpose (a keyed extendable-output function)."""
    text = "\x1f".join(f"{type(p).__name__}:{p}" for p in purpose).encode()
    return hashlib.shake_256(len(key).to_bytes(4, "big") + key + text).digest(length)


@dataclass(frozen=True, repr=False)
class PrivateRandomness:
    """A ratcheting key from which every private draw of a run comes.

    The key is 256 bits of operating-system entropy unless `insecure_seed` is given. `advance` replaces the key by a
    one-way function of itself, so that a key stored with a checkpoint tells nothing about steps before it.

    Guarantees:
    - two `PrivateRandomness()` never share a key;
    - the text form never shows the key;
    - the torch CPU generator's whole state (19,937 bits) is filled from the key: `manual_seed` would keep 32 bits.
    """

    key: bytes = field(default_factory=lambda: secrets.token_bytes(_KEY_BYTES))
    insecure: bool = False

    @classmethod
    def create(cls, insecure_seed: int | None = None) -> PrivateRandomness:
        """Return fresh randomness from the operating system, or a reproducible one that voids the guarantee."""
        if insecure_seed is None:
            return cls()
        key = hashlib.sha256(f"troth insecure seed {insecure_seed}".encode()).digest()
        return cls(key=key, insecure=True)

    def __repr__(self) -> str:
        return f"PrivateRandomness(insecure={self.insecure})"

    def advance(self) -> PrivateRandomness:
        """Return the randomness of the next step; the present one cannot be computed from it."""
        return PrivateRandomness(_expand(self.key, "ratchet", length=_KEY_BYTES), self.insecure)

    def derive(self, *purpose: str | int) -> PrivateRandomness:
        """Return an independent randomness for a purpose."""
        return PrivateRandomness(_expand(self.key, "derive", *purpose, length=_KEY_BYTES), self.insecure)

    def generator(self, *purpose: str | int) -> np.random.Generator:
        """Return a NumPy generator (PCG64 DXSM, 256 bits of seed) for a purpose."""
        words = np.frombuffer(_expand(self.key, "numpy", *purpose, length=_KEY_BYTES), dtype=np.uint32)
        return np.random.Generator(np.random.PCG64DXSM(np.random.SeedSequence([int(w) for w in words])))

    def torch_generator(self, *purpose: str | int, device: str = "cpu") -> torch.Generator:
        """Return a torch generator on a device for a purpose; on CUDA the library allows 64 bits of seed only."""
        import torch

        generator = torch.Generator(device=device)
        if generator.device.type != "cpu":
            generator.manual_seed(int.from_bytes(_expand(self.key, "torch", *purpose, length=8), "big") >> 1)
            return generator
        generator.manual_seed(0)
        state = generator.get_state().numpy().copy()
        words = np.frombuffer(_expand(self.key, "torch", *purpose, length=4 * _MT19937_WORDS), dtype=np.uint32)
        end = _MT19937_STATE_OFFSET + 8 * _MT19937_WORDS
        state[_MT19937_STATE_OFFSET:end] = words.astype(np.uint64).view(np.uint8)
        state[_MT19937_LEFT_OFFSET : _MT19937_LEFT_OFFSET + 4] = np.array([1], dtype=np.int32).view(np.uint8)
        generator.set_state(torch.from_numpy(state))
        return generator
