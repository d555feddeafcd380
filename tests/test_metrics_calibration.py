"""The adaptive calibration error: its definition, ties, and the order, batches and processes that must not matter."""

import multiprocessing
import os
import socket

import numpy as np
import pytest
import torch

from hf_reinforce.metrics import ClassificationMetrics, adaptive_calibration_error, expected_calibration_error


def draw(samples, seed=0, levels=None):
    """Confidences and whether they are right; with `levels`, so many distinct confidences."""
    generator = np.random.default_rng(seed)
    confidence = generator.uniform(0.1, 1.0, samples)
    if levels:
        confidence = np.ceil(confidence * levels) / levels
    correct = generator.uniform(size=samples) < confidence**2
    return torch.from_numpy(confidence.astype(np.float32)), torch.from_numpy(correct)


@pytest.mark.parametrize("num_bins", [1, 2, 15, 40])
@pytest.mark.parametrize("samples", [1, 14, 15, 150, 1003])
def test_equal_groups_of_the_sorted_samples(samples, num_bins):
    confidence, correct = draw(samples)
    order = confidence.argsort()
    gap = (correct.double() - confidence.double())[order].numpy()
    expected = sum(abs(group.sum()) for group in np.array_split(gap, num_bins)) / samples
    assert adaptive_calibration_error(confidence, correct, num_bins) == pytest.approx(expected, abs=1e-12)


def test_one_sample_a_bin_is_the_mean_distance():
    confidence, correct = draw(12)
    expected = float((correct.double() - confidence.double()).abs().mean())
    for num_bins in (12, 13, 100):  # the others are empty
        assert adaptive_calibration_error(confidence, correct, num_bins) == pytest.approx(expected)


@pytest.mark.parametrize("levels", [1, 3, 8])
def test_the_order_of_equal_confidences_does_not_matter(levels):
    confidence, correct = draw(500, levels=levels)
    found = adaptive_calibration_error(confidence, correct)
    for seed in range(5):
        order = torch.from_numpy(np.random.default_rng(seed).permutation(500))
        assert adaptive_calibration_error(confidence[order], correct[order]) == pytest.approx(found, abs=1e-12)


def test_equal_confidences_are_shared_out_in_proportion():
    # Two bins of three samples: 0.5 with one hit of one, then five at 0.9 with one hit. Each of these counts 0.2 hits.
    confidence, correct = torch.tensor([0.5, 0.9, 0.9, 0.9, 0.9, 0.9]), torch.tensor([1, 0, 0, 1, 0, 0]).bool()
    first, second = (1 + 0.2 * 2) - (0.5 + 2 * 0.9), 0.2 * 3 - 3 * 0.9
    expected = (abs(first) + abs(second)) / 6
    assert adaptive_calibration_error(confidence, correct, 2) == pytest.approx(expected)


def test_one_confidence_has_the_same_error_in_any_bins():
    confidence, correct = torch.full((90,), 0.75), torch.arange(90) < 30
    assert adaptive_calibration_error(confidence, correct) == pytest.approx(0.75 - 1 / 3)
    bins = torch.tensor([[90.0], [67.5], [30.0]], dtype=torch.float64)
    assert expected_calibration_error(bins) == pytest.approx(0.75 - 1 / 3)


def test_perfect_and_worst():
    assert adaptive_calibration_error(torch.ones(20), torch.ones(20)) == 0.0
    assert adaptive_calibration_error(torch.ones(20), torch.zeros(20)) == 1.0


def batches(rank):
    generator = torch.Generator().manual_seed(rank)
    for size in (8, 3 + 4 * rank):  # the processes see different numbers of samples
        yield torch.randn(size, 6, generator=generator), torch.randint(6, (size,), generator=generator)


def gather(rank, port, results):
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, PartialState

    for state in (AcceleratorState, PartialState):
        state._reset_state()
    os.environ.update(RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE="2", MASTER_ADDR="127.0.0.1")
    os.environ.update(MASTER_PORT=str(port), ACCELERATE_USE_CPU="true")
    metrics = ClassificationMetrics()
    for batch in batches(rank):
        metrics.update(*batch)
    accelerator = Accelerator(cpu=True)
    found = metrics.gather(accelerator)
    results.put((accelerator.num_processes, found.compute(), found.confidences.abs().sort().values.tolist()))
    accelerator.end_training()


def test_two_processes_gather_what_both_have_seen():
    context = multiprocessing.get_context("fork")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    results = context.Queue()
    processes = [context.Process(target=gather, args=(rank, port, results), daemon=True) for rank in (0, 1)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    whole = ClassificationMetrics()
    for rank in (0, 1):
        for batch in batches(rank):
            whole.update(*batch)
    for num_processes, metrics, confidences in found:
        assert num_processes == 2
        assert metrics == pytest.approx(whole.compute(), abs=1e-12)
        assert confidences == whole.confidences.abs().sort().values.tolist()
