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
def distributions_and_k(draw, max_k=1000):
    """Float64 log-probabilities [1, C], from flat to certain, with ties and impossible classes; and K."""
    kind = draw(st.sampled_from(["gaussian", "few levels", "one-hot", "impossible"]))
    num_classes = draw(st.integers(1, 40) | st.sampled_from([100, 1000]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32)))
    logits = rng.normal(size=num_classes) * draw(st.sampled_from([0.0, 1e-6, 1e-3, 0.02, 0.3, 1.0, 5.0, 50.0]))
    if kind == "few levels":
        logits = rng.integers(0, 3, num_classes) * draw(st.floats(0, 10))
    elif kind == "one-hot":
        logits[rng.integers(num_classes)] = draw(st.floats(5, 1000))
    elif kind == "impossible":
        logits[1:][rng.random(num_classes - 1) < 0.5] = -np.inf
    most = min(num_classes, max_k)
    return torch.from_numpy(logits).log_softmax(-1)[None], draw(st.integers(1, most) | st.just(most))


def reference_kl(log_probs, stored):
    """KL(full-precision top-k and tail || stored), computed apart from the package, for a batch of one."""
    probs = log_probs[0].exp().numpy()
    inside = np.isin(np.arange(len(probs)), stored.label[0].numpy())
    exact = np.append(probs[stored.label[0].numpy()], probs[~inside].sum())
    found = np.exp(np.append(stored.value[0].double().numpy(), float(stored.tail[0])))
    exact, found = exact / exact.sum(), found / found.sum()
    positive = exact > 0
    return float((exact[positive] * np.log(exact[positive] / found[positive])).sum())


@given(distributions_and_k())
def test_rounding_stays_within_the_bound_and_changes_nothing_twice(case):
    log_probs, top_k = case
    exact = top_k_targets(log_probs, top_k)
    stored = encode(exact)
    assert stored.value.dtype == stored.tail.dtype == torch.float32
    found = float(rounding_kl(exact, stored)[0])
    assert found <= KL_BOUND and float(rounding_kl(exact, exact)[0]) == 0.0
    assert found == pytest.approx(reference_kl(log_probs, stored), abs=2e-6)  # float32 values
    assert all(map(torch.equal, stored, encode(stored)))


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
    assert 100 < len(torch.cat([stored.value.flatten(), stored.tail]).unique()) <= CODEBOOK_LEVELS


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
def test_the_most_likely_classes_and_all_of_the_mass_are_kept(case):
    log_probs, top_k = case
    exact = top_k_targets(log_probs, top_k)
    for targets in (exact, encode(exact)):
        assert targets.label.shape == targets.value.shape == (1, top_k) and targets.tail.shape == (1,)
        assert (targets.value[:, 1:] <= targets.value[:, :-1]).all()
        assert len(targets.label.unique()) == top_k and torch.equal(targets.label, exact.label)
    torch.testing.assert_close(exact.value[0], log_probs[0].sort(descending=True).values[:top_k].float())
    torch.testing.assert_close(exact.value[0], log_probs[0].float()[exact.label[0]])
    torch.testing.assert_close(exact.value.exp().sum() + exact.tail.exp().sum(), torch.tensor(1.0), atol=1e-5, rtol=0)
    assert exact.tail.isneginf().all() or top_k < log_probs.shape[-1]


def test_ties_are_broken_by_the_lower_class():
    log_probs = torch.tensor([[0.1, 0.3, 0.1, 0.3, 0.1, 0.1]]).log()
    assert top_k_targets(log_probs, 4).label.tolist() == [[1, 3, 0, 2]]
    uniform = torch.zeros(1, 1000).log_softmax(-1)
    assert top_k_targets(uniform, 50).label.tolist() == [list(range(50))]


def test_a_teacher_without_an_answer_raises():
    """NaN must not become a target that looks like any other."""
    log_probs = random_log_probs(0, 3, 8, 1.0).index_fill(0, torch.tensor([1]), torch.nan)
    with pytest.raises(ValueError, match="answered with nan"):
        top_k_targets(log_probs, 4)


def test_a_record_does_not_depend_on_its_batch():
    log_probs = random_log_probs(4, 32, 50, 1.0)
    together = encode(top_k_targets(log_probs, 20))
    for row in range(32):
        alone = encode(top_k_targets(log_probs[row : row + 1], 20))
        assert torch.equal(alone.value[0], together.value[row])
        assert torch.equal(alone.tail[0], together.tail[row])


def test_rounding_kl_sees_a_wrong_target():
    exact = top_k_targets(torch.tensor([[0.5, 0.25, 0.25]]).log(), 1)
    wrong = Targets(exact.label, torch.tensor([[0.25]]).log(), torch.tensor([0.75]).log())
    expected = 0.5 * math.log(0.5 / 0.25) + 0.5 * math.log(0.5 / 0.75)
    assert float(rounding_kl(exact, wrong)[0]) == pytest.approx(expected, rel=1e-5)


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


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize(("num_classes", "top_k"), [(2, 1), (10, 9), (1000, 10)])
@pytest.mark.parametrize("spread", [0.1, 2.0, 8.0])
def test_sparse_kl_equals_dense_kl_on_the_densified_target(temperature, num_classes, top_k, spread):
    targets = encode(top_k_targets(random_log_probs(0, 8, num_classes, spread), top_k))
    logits = torch.from_numpy(np.random.default_rng(1).normal(size=(8, num_classes)) * 3)
    assert_same_loss_and_gradient(logits, targets, densify(targets, num_classes), temperature, atol=5e-5)


@pytest.mark.parametrize("temperature", [1.0, 2.0, 4.0])
def test_all_classes_and_a_flat_tail_lose_nothing(temperature):
    log_probs = random_log_probs(2, 8, 12, 2.0)
    logits = torch.from_numpy(np.random.default_rng(3).normal(size=(8, 12)) * 3)
    assert_same_loss_and_gradient(logits, top_k_targets(log_probs, 12), log_probs, temperature)
    flat = torch.tensor([[0.5, 0.05, 0.2, 0.05, 0.05, 0.1, 0.05]]).log()
    assert_same_loss_and_gradient(logits[:1, :7], top_k_targets(flat, 3), flat, temperature)


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
