import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hf_reinforce.randomness import (
    PARTNER_BLOCK,
    hash_uniform,
    params_generator,
    partner_positions,
    select_slots,
    shuffled_rows,
)

SEEDS = st.integers(0, 2**64 - 1)

# For seed 7, drawn with numpy 2.4; the hashes also with a splitmix64 on Python integers.
GOLDEN_DRAWS = [0.2920048027060036, 0.622314137713965, 0.06896823159465316, 10, 729010]
GOLDEN_PARTNERS = [7, 6, 5, 3, 8, 2, 1, 0, 4]
GOLDEN_ROWS = [1, 9, 4, 2, 6, 7, 5, 0, 8, 3]
GOLDEN_HASHES = [13309476754707697221, 4414019431610648415]
GOLDEN_CYCLE = [22, 16, 32, 44, 35, 31]
GOLDEN_RANDOM = [22, 46, 11, 36, 46, 29]


@given(SEEDS, st.integers(0, 2**40), st.integers(0, 10_000), st.integers(1, 4 * PARTNER_BLOCK))
def test_partners_are_reciprocal_and_only_an_odd_row_is_its_own(seed, block, slot, size):
    partners = partner_positions(seed, block, slot, size)
    positions = np.arange(size)
    assert partners.shape == (size,) and partners.dtype == np.int64
    np.testing.assert_array_equal(partners[partners], positions)
    assert (partners == positions).sum() == size % 2


def test_keys_and_streams_differ():
    keys = [(0, 0, 0), (1, 0, 0), (0, 1, 0), (0, 0, 1)]
    assert len({tuple(partner_positions(*key, PARTNER_BLOCK)) for key in keys}) == len(keys)
    order = params_generator(0, 0, 0).permutation(64)
    partners = np.arange(64)
    partners[order[:32]], partners[order[32:]] = order[32:], order[:32]
    assert (partners != partner_positions(0, 0, 0, 64)).any(), "parameters and partners use different streams"


def test_every_pair_of_a_block_is_drawn_about_equally_often():
    size, slots = 8, 4200
    counts = np.zeros((size, size))
    for slot in range(slots):
        counts[np.arange(size), partner_positions(3, 0, slot, size)] += 1
    off_diagonal = counts[~np.eye(size, dtype=bool)]
    assert counts.trace() == 0
    np.testing.assert_allclose(off_diagonal, slots / (size - 1), rtol=0.15)  # about four standard deviations


def test_shuffled_rows_is_a_permutation_keyed_by_the_seed():
    first, other = shuffled_rows(1, 1000), shuffled_rows(2, 1000)
    np.testing.assert_array_equal(np.sort(first), np.arange(1000))
    np.testing.assert_array_equal(first, shuffled_rows(1, 1000))
    assert (first != other).mean() > 0.9 and (first != np.arange(1000)).mean() > 0.9


def test_params_generator_does_not_depend_on_the_order_of_calls():
    keys = [(seed, row, slot) for seed in (0, 5) for row in (0, 1, 2**33) for slot in (0, 1, 399)]
    forwards = {key: params_generator(*key).random(4).tolist() for key in keys}
    generators = {key: params_generator(*key) for key in reversed(keys)}
    interleaved = {key: [] for key in keys}
    for _ in range(4):
        for key, generator in generators.items():
            interleaved[key].append(generator.random())
    assert interleaved == forwards
    assert len({tuple(values) for values in forwards.values()}) == len(keys)


def test_neighbouring_keys_give_independent_uniform_numbers():
    draws = np.array([[params_generator(0, row, slot).random() for slot in range(40)] for row in range(40)])
    assert abs(draws.mean() - 0.5) < 0.03
    assert abs(draws.std() - 12**-0.5) < 0.02
    assert abs(np.corrcoef(draws[:, :-1].ravel(), draws[:, 1:].ravel())[0, 1]) < 0.1
    assert abs(np.corrcoef(draws[:-1].ravel(), draws[1:].ravel())[0, 1]) < 0.1


@given(SEEDS, st.integers(1, 60), st.integers(0, 10_000), st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_cycle_uses_every_reinforcement_once_per_n_epochs(seed, num_samples, first_epoch, groups):
    groups = np.array(groups)
    epochs = range(first_epoch, first_epoch + num_samples)
    used = np.stack([select_slots("cycle", seed, np.array([epoch]), groups, num_samples) for epoch in epochs])
    np.testing.assert_array_equal(np.sort(used, axis=0), np.tile(np.arange(num_samples)[:, None], len(groups)))


@pytest.mark.parametrize(
    ("selection", "epochs", "groups"),
    [("cycle", [3], range(20_000)), ("random", [3], range(20_000)), ("random", range(20_000), [5])],
)
def test_slots_are_uniform_over_rows_and_random_ones_over_epochs(selection, epochs, groups):
    slots = select_slots(selection, 0, np.array(epochs), np.array(groups), 10)
    assert slots.dtype == np.int64
    np.testing.assert_allclose(np.bincount(slots, minlength=10), 2000, rtol=0.1)  # about four standard deviations
    if len(epochs) > 1:
        np.testing.assert_allclose(np.bincount(np.diff(slots) % 10, minlength=10), 2000, rtol=0.1)


@pytest.mark.parametrize("selection", ["cycle", "random"])
def test_slots_do_not_depend_on_the_batch_and_differ_between_seeds(selection):
    epoch, groups = np.array([2]), np.array([7, 7, 9, 100, 9])
    together = select_slots(selection, 1, epoch, groups, 50)
    alone = [int(select_slots(selection, 1, epoch, np.array([group]), 50)[0]) for group in groups]
    assert together.tolist() == alone
    assert together[0] == together[1] and together[2] == together[4]
    rows = np.arange(1000)
    same = select_slots(selection, 1, epoch, rows, 50) == select_slots(selection, 2, epoch, rows, 50)
    assert same.mean() < 0.1


def test_unknown_selection_raises():
    with pytest.raises(ValueError, match="'cycle' or 'random', not 'Cycle'"):
        select_slots("Cycle", 0, np.array([0]), np.array([0]), 3)


def test_hash_uniform_broadcasts_and_depends_on_the_order_of_keys():
    rows, epochs = np.arange(3), np.arange(4)
    table = hash_uniform(0, epochs[:, None], rows)
    assert table.shape == (4, 3) and table.dtype == np.uint64
    assert table[2, 1] == hash_uniform(0, 2, 1)[0]
    assert hash_uniform(0, 2, 1)[0] != hash_uniform(0, 1, 2)[0]
    assert len(np.unique(table)) == table.size


def test_golden_values():
    """A library upgrade that changes a stream would silently change what a seed stands for."""
    rng = params_generator(seed=7, row=123, slot=4)
    drawn = [rng.random(), rng.uniform(0.08, 1.0), rng.beta(1.0, 1.0), int(rng.integers(14)), int(rng.integers(10**6))]
    assert drawn == GOLDEN_DRAWS
    assert partner_positions(7, 3, 2, 9).tolist() == GOLDEN_PARTNERS
    assert shuffled_rows(7, 10).tolist() == GOLDEN_ROWS
    assert [int(value) for value in hash_uniform(7, np.arange(2))] == GOLDEN_HASHES
    assert select_slots("cycle", 7, np.array([1]), np.arange(6), 50).tolist() == GOLDEN_CYCLE
    assert select_slots("random", 7, np.array([1]), np.arange(6), 50).tolist() == GOLDEN_RANDOM
