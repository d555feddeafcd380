import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from tiny import densify
from torch.nn import functional as F

from hf_reinforce.targets.class_distribution import (
    CODEBOOK_EXPONENT,
    CODEBOOK_LEVELS,
    KL_BOUND,
    Targets,
    encode,
    one_hot,
    rounding_kl,
    sparse_kl,
    top_k_targets,
)

CODEBOOK = [CODEBOOK_EXPONENT * math.log(level / CODEBOOK_LEVELS) for level in range(1, CODEBOOK_LEVELS + 1)]


def random_log_probs(seed, batch, num_classes, spread):
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(batch, num_classes)) * spread)
    return logits.log_softmax(-1)


@st.composite
def distributions(draw, max_classes=40):
    """One distribution as float64 log-probabilities [1, C], from flat to certain, with ties and impossible classes."""
    kind = draw(st.sampled_from(["gaussian", "few levels", "values", "one-hot", "uniform", "impossible"]))
    num_classes = draw(st.integers(1, max_classes) | st.sampled_from([100, 1000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    if kind == "gaussian":
        logits = rng.normal(size=num_classes) * draw(st.sampled_from([1e-6, 1e-3, 0.02, 0.3, 1.0, 5.0, 50.0]))
    elif kind == "few levels":
        logits = rng.integers(0, 3, num_classes) * draw(st.floats(0, 10))
    elif kind == "values":
        logits = np.array(draw(st.lists(st.floats(-30, 30, width=32), min_size=1, max_size=max_classes)))
    else:
        logits = np.zeros(num_classes)
        if kind == "one-hot":
            logits[rng.integers(num_classes)] = draw(st.floats(5, 1000))
        elif kind == "impossible":
            logits[1:] = np.where(rng.random(num_classes - 1) < 0.5, -np.inf, rng.normal(size=num_classes - 1))
    return torch.from_numpy(logits).log_softmax(-1).unsqueeze(0)


@st.composite
def distributions_and_k(draw, max_k=None):
    log_probs = draw(distributions())
    num_classes = log_probs.shape[-1]
    top_k = draw(
        st.integers(1, min(num_classes, max_k or num_classes)) | st.just(min(num_classes, max_k or num_classes))
    )
    return log_probs, top_k


def renormalised(masses):
    return masses / masses.sum()


def reference_kl(log_probs, stored):
    """KL(full-precision top-k and tail || stored), computed apart from the package, for a batch of one."""
    probs = log_probs[0].exp().numpy()
    inside = np.isin(np.arange(len(probs)), stored.label[0].numpy())
    exact = renormalised(np.append(probs[stored.label[0].numpy()], probs[~inside].sum()))
    found = renormalised(np.exp(np.append(stored.value[0].double().numpy(), float(stored.tail[0]))))
    positive = exact > 0
    return float((exact[positive] * np.log(exact[positive] / found[positive])).sum())


@given(distributions_and_k())
def test_rounding_stays_within_the_bound(case):
    log_probs, top_k = case
    stored = encode(top_k_targets(log_probs, top_k))
    assert stored.value.dtype == stored.tail.dtype == torch.float32
    assert reference_kl(log_probs, stored) <= KL_BOUND + 2e-6  # float32 values


@given(distributions_and_k())
def test_encode_is_idempotent(case):
    once = encode(top_k_targets(*case))
    twice = encode(once)
    assert torch.equal(once.label, twice.label)
    assert torch.equal(once.value, twice.value)
    assert torch.equal(once.tail, twice.tail)


@given(distributions_and_k(max_k=10))
def test_up_to_ten_classes_are_always_stored_in_the_codebook(case):
    stored = encode(top_k_targets(*case))
    levels = torch.tensor(CODEBOOK, dtype=torch.float32)
    tail = stored.tail[~stored.tail.isneginf()]
    for values in (stored.value.flatten(), tail):
        distances = (values.unsqueeze(-1) - levels).abs().amin(-1)
        assert (distances <= 1e-6 * values.abs().clamp_min(1)).all()


def test_many_records_share_at_most_255_values():
    stored = encode(top_k_targets(random_log_probs(0, 4000, 100, 2.0), 10))
    values = torch.cat([stored.value.flatten(), stored.tail]).unique()
    assert 100 < len(values) <= CODEBOOK_LEVELS


def near_ties(num_masses):
    """Log-probabilities [1, C] that are nearly equal and lie just above and below the middle between two levels."""
    level = round(CODEBOOK_LEVELS * num_masses ** (-1 / CODEBOOK_EXPONENT)) - 0.5
    middle = (level / CODEBOOK_LEVELS) ** CODEBOOK_EXPONENT
    masses = middle * (1 + 1e-4 * torch.tensor([1.0, -1.0]).double().repeat(num_masses)[: num_masses - 1])
    return torch.cat([masses, 1 - masses.sum(0, keepdim=True)]).log().unsqueeze(0)


def test_worst_near_ties_of_ten_classes_are_within_the_bound():
    log_probs = near_ties(11)
    exact = top_k_targets(log_probs, 10)
    stored = encode(exact)
    assert len(stored.value.unique()) < len(exact.value[0])
    assert KL_BOUND / 3 < reference_kl(log_probs, stored) <= KL_BOUND


def test_records_beyond_the_bound_keep_full_precision():
    crowded, ordinary = near_ties(21), random_log_probs(0, 1, 21, 1.0)
    targets = top_k_targets(torch.cat([crowded, ordinary]), 20)
    stored = encode(targets)
    assert torch.equal(stored.value[0], targets.value[0]) and torch.equal(stored.tail[0], targets.tail[0])
    assert not torch.equal(stored.value[1], targets.value[1])


@given(distributions_and_k())
def test_values_are_sorted_and_labels_distinct(case):
    log_probs, top_k = case
    exact = top_k_targets(log_probs, top_k)
    for targets in (exact, encode(exact)):
        assert targets.label.shape == targets.value.shape == (1, top_k) and targets.tail.shape == (1,)
        assert (targets.value[:, 1:] <= targets.value[:, :-1]).all()
        assert len(targets.label.unique()) == top_k
    assert torch.equal(encode(exact).label, exact.label)


@given(distributions_and_k())
def test_top_k_and_tail_hold_all_of_the_mass(case):
    log_probs, top_k = case
    targets = top_k_targets(log_probs, top_k)
    expected = log_probs[0].sort(descending=True).values[:top_k].float()
    torch.testing.assert_close(targets.value[0], expected)
    torch.testing.assert_close(targets.value[0], log_probs[0].float()[targets.label[0]])
    total = targets.value.exp().sum() + targets.tail.exp().sum()
    torch.testing.assert_close(total, torch.tensor(1.0), atol=1e-5, rtol=0)
    assert targets.tail.isneginf().all() or top_k < log_probs.shape[-1]


def test_ties_are_broken_by_the_lower_class():
    log_probs = torch.tensor([[0.1, 0.3, 0.1, 0.3, 0.1, 0.1]]).log()
    assert top_k_targets(log_probs, 4).label.tolist() == [[1, 3, 0, 2]]
    uniform = torch.zeros(1, 1000).log_softmax(-1)
    assert top_k_targets(uniform, 50).label.tolist() == [list(range(50))]


def test_a_teacher_without_an_answer_raises():
    """NaN must not become a target that looks like any other."""
    log_probs = random_log_probs(0, 3, 8, 1.0)
    log_probs[1, 2] = torch.nan
    with pytest.raises(ValueError, match="(?i)nan|finite"):
        encode(top_k_targets(log_probs, 4))


def test_a_record_does_not_depend_on_its_batch():
    log_probs = random_log_probs(4, 32, 50, 1.0)
    together = encode(top_k_targets(log_probs, 20))
    for row in range(32):
        alone = encode(top_k_targets(log_probs[row : row + 1], 20))
        assert torch.equal(alone.value[0], together.value[row])
        assert torch.equal(alone.tail[0], together.tail[row])


@pytest.mark.parametrize("top_k", [0, -1, 6])
def test_top_k_out_of_range_raises(top_k):
    with pytest.raises(ValueError, match=rf"between 1 and the number of classes, 5, not {top_k}"):
        top_k_targets(torch.zeros(2, 5).log_softmax(-1), top_k)


@given(distributions_and_k())
def test_rounding_kl_equals_the_formula(case):
    exact = top_k_targets(*case)
    stored = encode(exact)
    found = float(rounding_kl(exact, stored)[0])
    assert found <= KL_BOUND
    assert found == pytest.approx(reference_kl(case[0], stored), abs=2e-6)
    assert float(rounding_kl(exact, exact)[0]) == 0.0


def test_rounding_kl_sees_a_wrong_target():
    exact = top_k_targets(torch.tensor([[0.5, 0.25, 0.25]]).log(), 1)
    wrong = Targets(exact.label, torch.tensor([[0.25]]).log(), torch.tensor([0.75]).log())
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert float(rounding_kl(exact, wrong)[0]) == pytest.approx(expected, rel=1e-5)


@given(distributions_and_k())
def test_densify_spreads_the_tail_evenly(case):
    log_probs, top_k = case
    num_classes = log_probs.shape[-1]
    stored = encode(top_k_targets(log_probs, top_k))
    dense = densify(stored, num_classes).exp()[0].double()
    assert dense.shape == (num_classes,)
    assert float(dense.sum()) == pytest.approx(1.0, abs=1e-5)
    masses = torch.cat([stored.value[0], stored.tail]).double().exp()
    masses /= masses.sum()
    torch.testing.assert_close(dense[stored.label[0]], masses[:-1], atol=1e-6, rtol=1e-4)
    others = torch.ones(num_classes, dtype=torch.bool).scatter(0, stored.label[0], False)
    if others.any():
        expected = (masses[-1] / others.sum()).expand(int(others.sum()))
        torch.testing.assert_close(dense[others], expected, atol=1e-6, rtol=1e-4)


def dense_kl(logits, target_log_probs, temperature):
    """KL(teacher || student) x T^2 on dense float64 distributions."""
    teacher = (target_log_probs.double() / temperature).log_softmax(-1)
    student = (logits / temperature).log_softmax(-1)
    return F.kl_div(student, teacher, reduction="none", log_target=True).sum(-1) * temperature**2


def assert_same_loss_and_gradient(logits, targets, target_log_probs, temperature, atol=1e-5):
    sparse_logits = logits.detach().clone().float().requires_grad_()
    dense_logits = logits.detach().clone().double().requires_grad_()
    found = sparse_kl(sparse_logits, targets, temperature)
    expected = dense_kl(dense_logits, target_log_probs, temperature)
    assert found.dtype == torch.float32 and found.shape == logits.shape[:1]
    assert (found >= -atol).all()
    torch.testing.assert_close(found.double(), expected, atol=atol, rtol=1e-4)
    weights = torch.linspace(0.5, 2.0, len(logits))
    (found * weights).sum().backward()
    (expected * weights).sum().backward()
    assert dense_logits.grad.abs().max() > 1e-4
    torch.testing.assert_close(sparse_logits.grad.double(), dense_logits.grad, atol=atol, rtol=1e-3)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
@pytest.mark.parametrize(("num_classes", "top_k"), [(2, 1), (10, 1), (10, 9), (100, 10), (1000, 10)])
@pytest.mark.parametrize("spread", [0.1, 2.0, 8.0])
def test_sparse_kl_equals_dense_kl_on_the_densified_target(temperature, num_classes, top_k, spread):
    targets = encode(top_k_targets(random_log_probs(0, 8, num_classes, spread), top_k))
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(8, num_classes)) * 3)
    assert_same_loss_and_gradient(logits, targets, densify(targets, num_classes), temperature, atol=5e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_all_classes_give_torch_kl_div_with_the_teacher_itself(temperature):
    log_probs = random_log_probs(2, 8, 12, 2.0)
    logits = torch.from_numpy(np.random.default_rng(3).normal(size=(8, 12)) * 3)
    assert_same_loss_and_gradient(logits, top_k_targets(log_probs, 12), log_probs, temperature)


def test_sparse_kl_is_the_kl_of_the_teacher_when_its_tail_is_flat():
    """Where the tail is spread evenly already, the stored target loses nothing."""
    probs = torch.tensor([[0.5, 0.05, 0.2, 0.05, 0.05, 0.1, 0.05]])
    logits = torch.tensor([[1.0, -2.0, 0.5, 3.0, 0.0, 0.25, -1.0]])
    for temperature in (1.0, 2.0):
        assert_same_loss_and_gradient(logits, top_k_targets(probs.log(), 3), probs.log(), temperature)


def test_sparse_kl_is_zero_with_zero_gradient_at_the_target():
    targets = encode(top_k_targets(random_log_probs(5, 6, 50, 3.0), 10))
    for temperature in (1.0, 3.0):
        logits = densify(targets, 50).requires_grad_()
        loss = sparse_kl(logits, targets, temperature)
        loss.sum().backward()
        torch.testing.assert_close(loss, torch.zeros(6), atol=1e-5, rtol=0)
        torch.testing.assert_close(logits.grad, torch.zeros(6, 50), atol=1e-5, rtol=0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sparse_kl_computes_half_precision_logits_in_float32(dtype):
    targets = encode(top_k_targets(random_log_probs(5, 6, 50, 3.0), 10))
    logits = torch.from_numpy(np.random.default_rng(6).normal(size=(6, 50))).to(dtype)
    found = sparse_kl(logits, targets)
    assert found.dtype == torch.float32
    assert torch.equal(found, sparse_kl(logits.float(), targets))


@pytest.mark.parametrize("top_k", [1, 3, 9, 10])
@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_one_hot_targets_give_cross_entropy(top_k, temperature):
    labels = torch.tensor([0, 9, 4, 8])
    targets = one_hot(labels, top_k, 10)
    assert targets.label[:, 0].tolist() == labels.tolist()
    assert all(len(row.unique()) == top_k for row in targets.label)
    logits = torch.from_numpy(np.random.default_rng(0).normal(size=(4, 10)) * 3).float()
    sparse_logits, dense_logits = logits.clone().requires_grad_(), logits.clone().requires_grad_()
    found = sparse_kl(sparse_logits, targets, temperature)
    expected = F.cross_entropy(dense_logits / temperature, labels, reduction="none") * temperature**2
    torch.testing.assert_close(found, expected)
    found.sum().backward()
    expected.sum().backward()
    torch.testing.assert_close(sparse_logits.grad, dense_logits.grad)


def test_certain_teachers_with_impossible_classes_give_finite_losses():
    log_probs = torch.tensor([[1.0, 0.0, 0.0, 0.0], [0.5, 0.5, 0.0, 0.0]]).log()
    logits = torch.tensor([[1.0, 0.0, 2.0, -1.0], [0.0, 1.0, 2.0, 3.0]])
    expected = -(log_probs.exp() * (logits.log_softmax(-1) - log_probs.clamp_min(-1e4))).sum(-1)
    for top_k in (1, 2, 3, 4):
        targets = top_k_targets(log_probs, top_k)
        for temperature in (1.0, 2.0):
            student = logits.clone().requires_grad_()
            loss = sparse_kl(student, targets, temperature)
            loss.sum().backward()
            assert loss.isfinite().all() and student.grad.isfinite().all()
        if top_k >= 2:
            torch.testing.assert_close(sparse_kl(logits, targets), expected)
        assert encode(targets).value.isfinite().all()
