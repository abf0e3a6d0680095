"""Public streams repeat, private ones do not, and torch's generator carries the whole key."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from troth.seeds import PrivateRandomness, PublicSeeds


@given(root=st.integers(0, 2**63 - 1), purpose=st.text(max_size=20), index=st.integers(0, 2**40))
def test_same_purpose_gives_the_same_stream(root: int, purpose: str, index: int) -> None:
    a = PublicSeeds(root).generator(purpose, index).integers(2**32, size=4)
    b = PublicSeeds(root).generator(purpose, index).integers(2**32, size=4)
    assert (a == b).all()


def test_purposes_are_independent_and_not_confused_by_their_spelling() -> None:
    seeds = PublicSeeds(7)
    purposes = [("a", "b"), ("ab",), ("a", 1), ("a", "1"), ("b", "a"), ("a",), ("a", "b", 0)]
    draws = {tuple(seeds.generator(*p).integers(2**32, size=4).tolist()) for p in purposes}
    assert len(draws) == len(purposes)


def test_known_stream_is_the_same_on_every_machine() -> None:
    assert PublicSeeds(1).integer("a") == 8065396799387320534


def test_private_keys_differ_and_never_show() -> None:
    a, b = PrivateRandomness.create(), PrivateRandomness.create()
    assert a.key != b.key
    assert a.key.hex() not in repr(a) and repr(a) == "PrivateRandomness(insecure=False)"


def test_insecure_seed_repeats_and_says_so() -> None:
    a, b = PrivateRandomness.create(3), PrivateRandomness.create(3)
    assert a.insecure and a.key == b.key
    assert torch.equal(
        torch.randn(5, generator=a.torch_generator("n")), torch.randn(5, generator=b.torch_generator("n"))
    )


def test_ratchet_moves_on_and_purposes_part() -> None:
    first = PrivateRandomness.create(3)
    keys = [first.key]
    step = first
    for _ in range(50):
        step = step.advance()
        keys.append(step.key)
    assert len(set(keys)) == 51
    assert first.derive("x").key != first.derive("y").key


def test_torch_generator_is_filled_with_all_624_words() -> None:
    """The stream is NumPy's Mersenne Twister started from the same 624 words: no 32-bit seed in between."""
    generator = PrivateRandomness.create(5).torch_generator("noise")
    state = generator.get_state().numpy()
    words = state[24 : 24 + 8 * 624].view(np.uint64).astype(np.uint32)
    assert len(set(words.tolist())) > 600
    oracle = np.random.MT19937()
    full = oracle.state
    full["state"]["key"], full["state"]["pos"] = words, 624
    oracle.state = full
    drawn = torch.empty(1000, dtype=torch.int32).random_(generator=generator)
    assert drawn.tolist() == [int(v) & 0x7FFFFFFF for v in oracle.random_raw(1000)]


def test_normal_draws_have_the_right_law() -> None:
    draws = torch.randn(200_000, generator=PrivateRandomness.create(11).torch_generator("noise"))
    assert abs(float(draws.mean())) < 4 / 200_000**0.5
    assert abs(float(draws.var()) - 1) < 4 * (2 / 200_000) ** 0.5
