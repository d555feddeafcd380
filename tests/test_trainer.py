"""Training: the three methods compute what they say, and an interrupted run ends where an uninterrupted one does."""

import functools
import gc
from contextlib import nullcontext

import numpy as np
import pytest
import timm
import torch
import transformers
from accelerate import skip_first_batches
from accelerate.data_loader import prepare_data_loader
from safetensors.torch import load_file
from tiny import MEAN, STD, TinyNet, densify, reinforced_rows, tiny_dataset
from torch import nn
from torch.nn import functional as F
from torch.utils.data.dataloader import _MultiProcessingDataLoaderIter

from hf_reinforce import (
    AugmentedDataset,
    ImageSource,
    KDTrainer,
    KDTrainingArguments,
    ReinforcedDataset,
    load_policy,
    load_teacher,
)
from hf_reinforce.augmentations.policies import evaluation_policy
from hf_reinforce.metrics import measure, score
from hf_reinforce.models.preprocessing import Preprocessing
from hf_reinforce.models.students import create_student
from hf_reinforce.targets.class_distribution import batch_targets
from hf_reinforce.training.trainer import EMA_FILE

ROWS, N, C, SIZE, BATCH = 24, 2, 5, 16, 4
STEPS = ROWS // BATCH
PLAIN, MIXED = "randaug", "mixing_randaug"
IMAGENET = (torch.tensor((0.485, 0.456, 0.406)), torch.tensor((0.229, 0.224, 0.225)))


class Student(nn.Module):
    """What makes resuming hard: batch statistics, and randomness in the forward pass."""

    def __init__(self, seed=0, dropout=0.3):
        super().__init__()
        torch.manual_seed(seed)
        self.features = nn.Sequential(nn.Conv2d(3, 6, 5, stride=3), nn.BatchNorm2d(6), nn.ReLU())
        self.head = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Dropout(dropout), nn.Linear(24, C))

    def forward(self, images):
        return self.head(self.features(images))


class Constant(nn.Module):
    """Answers with its bias, whatever the image; so a loss can be worked out on paper."""

    def __init__(self, logits=(0.5, -1.0, 2.0, 0.0, 0.25)):
        super().__init__()
        self.bias = nn.Parameter(torch.tensor(logits))

    def forward(self, images):
        self.seen = images
        return self.bias.expand(len(images), -1)


def teacher_of(seed=0):
    """A tiny teacher that is surer of itself, so that its temperature matters."""
    network = TinyNet(C, seed)
    network.head.weight.data *= 3
    return load_teacher(network, preprocessing=Preprocessing(SIZE, MEAN, STD, "bilinear"))


@pytest.fixture(scope="module")
def source():
    return tiny_dataset(ROWS, labels=C)


@pytest.fixture(scope="module")
def replay(source, tmp_path_factory):
    """`replay(policy, **options)`: a ReinforcedDataset that stores every class of the teacher's answers."""

    @functools.cache
    def stored(policy):
        folder = tmp_path_factory.mktemp("plus")
        return reinforced_rows(source, teacher_of(), load_policy(policy, SIZE), folder, num_samples=N, top_k=C)

    return lambda policy=PLAIN, **options: ReinforcedDataset(*stored(policy), source=source, **options)


@pytest.fixture(scope="module")
def evaluation(source):
    return AugmentedDataset(ImageSource.of(tiny_dataset(21, labels=C)), evaluation_policy(SIZE))


@pytest.fixture
def arguments(tmp_path):
    """`arguments(**changes)`: of a short run on the CPU that saves and says nothing."""

    def arguments(**changes):
        options = {
            "output_dir": str(tmp_path / "out"),
            "use_cpu": True,
            "num_train_epochs": 2,
            "per_device_train_batch_size": BATCH,
            "per_device_eval_batch_size": 8,
            "learning_rate": 0.02,
            "save_strategy": "no",
            "logging_strategy": "no",
            "disable_tqdm": True,
        }
        return KDTrainingArguments(**{**options, **changes})

    return arguments


@pytest.fixture
def trainer_of(arguments):
    """`trainer_of(model, train_dataset, teacher=..., **arguments)`. Ends persistent workers, which gc does slowly."""

    def trainer_of(model, train, *, teacher=None, evaluation=None, preprocessing=None, **changes):
        return KDTrainer(model, arguments(**changes), train, evaluation, teacher, preprocessing)

    yield trainer_of
    for item in gc.get_objects():
        if type(item) is _MultiProcessingDataLoaderIter:
            item._shutdown_workers()


def fresh(source, policy=PLAIN, **options):
    return AugmentedDataset(ImageSource.of(source), load_policy(policy, SIZE), **options)


def epoch_batch(dataset, epoch=0, size=8, first=0):
    """A batch with pairs and extras."""
    start = epoch * len(dataset) + first
    return dataset.collate(dataset.__getitems__(list(range(start, start + size))))


def loss_of(trainer, batch, model=None):
    with torch.no_grad():
        return float(trainer.compute_loss(trainer.model.eval() if model is None else model, batch))


def gradient(trainer, batch):
    trainer.model.zero_grad()
    trainer.compute_loss(trainer.model, batch).backward()
    return torch.cat([parameter.grad.flatten() for parameter in trainer.model.parameters()])


def weights(model):
    return {name: value.clone() for name, value in model.state_dict().items()}


def flat(model):
    return torch.cat([value.detach().flatten() for value in model.parameters()])


def assert_equal_weights(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


# -- offline equals online ----------------------------------------------------------------------------------------


def relative(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("policy", [PLAIN, MIXED])
def test_stored_targets_give_the_gradients_of_an_online_teacher(policy, temperature, replay, trainer_of):
    # Tolerance: the codebook moves a target by at most KL = 1e-4, that is 0.7 % of total variation (Pinsker), and the
    # gradient is linear in the target. Found: at most 0.4 %.
    tolerance, far = 0.01, 0.05
    model, dataset = TinyNet(C, 5), replay(policy)
    stored = trainer_of(model, dataset, method="reinforced", temperature=temperature)
    online = trainer_of(model, dataset, method="online", teacher=teacher_of(0), temperature=temperature)
    other = trainer_of(model, dataset, method="online", teacher=teacher_of(1), temperature=temperature)
    hotter = trainer_of(model, dataset, method="online", teacher=teacher_of(0), temperature=2 * temperature)
    for epoch in range(N):
        batch = epoch_batch(dataset, epoch, size=12)
        assert policy == PLAIN or len(batch["pixel_values"]) > 12
        expected = gradient(online, batch)
        assert relative(gradient(stored, batch), expected) < tolerance
        shuffled = {**batch, **{n: v.flip(0) for n, v in batch.items() if n.startswith("target_")}}
        assert relative(gradient(stored, shuffled), expected) > far
        assert relative(gradient(other, batch), expected) > far
        assert relative(gradient(hotter, batch), expected) > far
        other_views = {**batch, "pixel_values": batch["pixel_values"].flip(-1)}
        assert relative(gradient(online, other_views), expected) > far


class Replayed(AugmentedDataset):
    """Fresh augmentations that are those of a reinforced dataset, in its order."""

    def __init__(self, reinforced, source):
        super().__init__(ImageSource.of(source), reinforced.policy, seed=reinforced.config.seed)
        self.reinforced = reinforced

    def slots(self, epochs, positions):
        return self.reinforced.slots(epochs, positions)


def test_offline_run_ends_where_the_online_run_does(replay, source, trainer_of):
    start = flat(TinyNet(C, 3))

    def run(train, **options):
        trainer = trainer_of(TinyNet(C, 3), train, num_train_epochs=4, optim="sgd", learning_rate=0.1, **options)
        trainer.train()
        return flat(trainer.model) - start

    views = Replayed(replay(), source)
    online = run(views, method="online", teacher=teacher_of(0))
    assert online.norm() > 0.1
    assert relative(run(replay(), method="reinforced"), online) < 0.01
    assert relative(run(views, method="online", teacher=teacher_of(0), temperature=0.5), online) > 0.1
    assert relative(run(views, method="online", teacher=teacher_of(1)), online) > 0.1
    assert relative(run(views, method="plain"), online) > 0.1


def test_online_teacher_sees_the_mixed_views(source, trainer_of):
    teacher, dataset = teacher_of(), fresh(source, MIXED)
    trainer = trainer_of(Constant(), dataset, method="online", teacher=teacher)
    batch = epoch_batch(dataset)
    views = mixed_by_hand(batch)
    expected = teacher(views)
    log_q = Constant().bias.detach().log_softmax(-1)
    by_hand = (expected.exp() * (expected - log_q)).sum(-1).mean()
    assert loss_of(trainer, batch) == pytest.approx(float(by_hand), rel=1e-5)
    unmixed = teacher(batch["pixel_values"][: len(views)].float())
    assert float((unmixed.exp() * (unmixed - log_q)).sum(-1).mean()) != pytest.approx(float(by_hand), rel=1e-3)
    assert all(parameter.grad is None for member in teacher.members for parameter in member.model.parameters())


# -- losses by hand -----------------------------------------------------------------------------------------------


def mixed_by_hand(batch):
    """The mixed views of a batch, one pixel of one image at a time."""
    mixed = []
    for i, partner in enumerate(batch["partner"].tolist()):
        own, other = batch["pixel_values"][i].float(), batch["pixel_values"][partner].float()
        lam = float(batch["mixup"][i])
        top, left, bottom, right = batch["cutmix"][i].tolist()
        image = lam * own + (1 - lam) * other
        image[:, top:bottom, left:right] = other[:, top:bottom, left:right]
        mixed.append(image)
    return torch.stack(mixed)


def shares_by_hand(batch):
    """Share of each mixed image that is its own: mixes a white image with a black one and looks how bright it is."""
    shares = []
    for lam, (top, left, bottom, right) in zip(batch["mixup"].tolist(), batch["cutmix"].tolist(), strict=True):
        image = np.full((SIZE, SIZE), lam)
        image[top:bottom, left:right] = 0
        shares.append(image.mean())
    return shares


def cross_entropy_by_hand(logits, label, smoothing=0.0):
    target = np.full(C, smoothing / C)
    target[label] += 1 - smoothing
    logits = np.asarray(logits, dtype=np.float64)
    return float(-(target * (logits - np.log(np.exp(logits).sum()))).sum())


def mixed_label_loss_by_hand(batch, logits, smoothing=0.0):
    rows = zip(logits, batch["labels"].tolist(), batch["partner_labels"].tolist(), shares_by_hand(batch), strict=True)
    of = functools.partial(cross_entropy_by_hand, smoothing=smoothing)
    return np.mean([share * of(row, own) + (1 - share) * of(row, other) for row, own, other, share in rows])


def test_student_sees_the_mixed_views_in_its_own_normalisation(source, trainer_of):
    dataset = fresh(source, MIXED)
    model = Constant()
    trainer = trainer_of(model, dataset, method="plain")
    batch = epoch_batch(dataset)
    loss_of(trainer, batch)
    mean, std = (values.view(3, 1, 1) for values in IMAGENET)
    torch.testing.assert_close(model.seen, (mixed_by_hand(batch) / 255 - mean) / std, rtol=1e-4, atol=1e-4)
    assert len(model.seen) == 8 < len(batch["pixel_values"])


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_plain_loss_with_mixing(smoothing, source, trainer_of):
    dataset, model = fresh(source, MIXED), TinyNet(C, 1)
    trainer = trainer_of(model, dataset, method="plain", label_smoothing_factor=smoothing)
    batch = epoch_batch(dataset, epoch=1, size=12)
    mean, std = (values.view(3, 1, 1) for values in IMAGENET)
    with torch.no_grad():
        logits = model((mixed_by_hand(batch) / 255 - mean) / std).numpy()
    assert any(0.05 < share < 0.95 for share in shares_by_hand(batch))
    assert loss_of(trainer, batch) == pytest.approx(mixed_label_loss_by_hand(batch, logits, smoothing), rel=1e-5)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_plain_loss_without_mixing(smoothing, source, trainer_of):
    dataset = fresh(source)
    trainer = trainer_of(Constant(), dataset, method="plain", label_smoothing_factor=smoothing)
    batch, logits = epoch_batch(dataset), Constant().bias.detach().numpy()
    expected = np.mean([cross_entropy_by_hand(logits, label, smoothing) for label in batch["labels"].tolist()])
    assert loss_of(trainer, batch) == pytest.approx(expected, rel=1e-6)


def kl_by_hand(batch, logits, temperature):
    stored = densify(batch_targets(batch), C).double() / temperature
    p = stored.exp() / stored.exp().sum(-1, keepdim=True)
    q = (torch.as_tensor(logits).double() / temperature).exp()
    q = q / q.sum(-1, keepdim=True)
    return float((p * (p.log() - q.log())).sum(-1).mean()) * temperature**2


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_distillation_loss(temperature, weight, replay, trainer_of):
    dataset = replay()
    trainer = trainer_of(Constant(), dataset, temperature=temperature, hard_label_weight=weight)
    batch = epoch_batch(dataset)
    logits = Constant().bias.detach()
    hard = np.mean([cross_entropy_by_hand(logits.numpy(), label) for label in batch["labels"].tolist()])
    expected = (1 - weight) * kl_by_hand(batch, logits, temperature) + weight * hard
    assert loss_of(trainer, batch) == pytest.approx(expected, rel=1e-4)


def test_hard_label_of_a_mixed_view_is_mixed_too(replay, trainer_of):
    dataset = replay(MIXED)
    trainer, batch = trainer_of(Constant(), dataset, hard_label_weight=1.0), epoch_batch(dataset)
    logits = Constant().bias.detach().numpy()[None].repeat(8, 0)
    assert loss_of(trainer, batch) == pytest.approx(mixed_label_loss_by_hand(batch, logits), rel=1e-5)


def test_loss_in_training_is_the_loss_of_the_batches(replay, trainer_of):
    dataset = replay()
    frozen = Constant()
    trainer = trainer_of(frozen, dataset, learning_rate=0.0, num_train_epochs=2)
    result = trainer.train()
    logits = Constant().bias.detach()
    every = [kl_by_hand(epoch_batch(dataset, epoch, ROWS), logits, 1.0) for epoch in range(2)]
    assert result.training_loss == pytest.approx(np.mean(every), rel=1e-4)


def test_repeated_augmentation_shows_an_image_several_times_in_a_batch(replay, trainer_of):
    trainer = trainer_of(Constant(), replay(), repeated_augmentation=2)
    batches = list(trainer.get_train_dataloader())
    assert len(batches) == STEPS
    for batch in batches:
        for first, second in ((0, 1), (2, 3)):
            assert batch["labels"][first] == batch["labels"][second]
            assert not torch.equal(batch["target_value"][first], batch["target_value"][second])
    trainer.train()
    assert trainer.state.global_step == 2 * STEPS


# -- resuming -----------------------------------------------------------------------------------------------------

WORKERS = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}
RESUMED = {
    "timm": {"timm_optimizer": "sgd", "lr_scheduler_type": "cosine", "warmup_steps": 3, "weight_decay": 1e-3},
    "average, accumulation, workers": {
        "ema_decay": 0.7,
        "gradient_accumulation_steps": 2,
        "per_device_train_batch_size": BATCH // 2,
        "dataloader_num_workers": 2,
        "dataloader_persistent_workers": True,
    },
    "plain": {"method": "plain", **WORKERS},
    "online, average": {"method": "online", "ema_decay": 0.7},
    "bfloat16": {"bf16": True},
    "bfloat16, compiled": {"bf16": True, "torch_compile": True},
    "repeated, evaluation": {"repeated_augmentation": 2, "eval_strategy": "steps", "eval_steps": 3, **WORKERS},
}


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(value, id=name, marks=[pytest.mark.slow] * ("torch_compile" in value))
        for name, value in RESUMED.items()
    ],
)
def test_resumed_run_ends_where_the_uninterrupted_one_does(options, replay, source, evaluation, trainer_of, tmp_path):
    """Resumed in an epoch, and between two."""
    policy = PLAIN if "repeated_augmentation" in options else MIXED

    def new(seed, folder):
        fits = options.get("method", "reinforced") == "reinforced"
        return trainer_of(
            Student(seed),
            replay(policy, plain_fraction=0.2) if fits else fresh(source, policy),
            teacher=teacher_of() if options.get("method") == "online" else None,
            evaluation=evaluation if "eval_steps" in options else None,
            output_dir=str(tmp_path / folder),
            **{"save_strategy": "steps", "save_steps": 2, **options},
        )

    whole = new(0, "out")
    whole.train()
    assert whole.state.global_step == 2 * STEPS
    for step in (4, STEPS):
        checkpoint = tmp_path / "out" / f"checkpoint-{step}"
        before = load_file(checkpoint / "model.safetensors")
        assert any(not torch.equal(value, whole.model.state_dict()[name]) for name, value in before.items())
        resumed = new(1, f"again-{step}")
        resumed.train(resume_from_checkpoint=str(checkpoint))
        assert resumed.state.global_step == whole.state.global_step
        assert_equal_weights(weights(resumed.model), weights(whole.model))
        if "ema_decay" in options:
            assert_equal_weights(weights(resumed.ema.module), weights(whole.ema.module))
        assert resumed.lr_scheduler.get_last_lr() == whole.lr_scheduler.get_last_lr()


def test_a_rank_is_told_the_number_of_the_epoch_that_it_resumes(replay, trainer_of):
    trainer = trainer_of(Student(), replay())
    trainer.accelerator.prepare = functools.partial(prepare_data_loader, num_processes=2, process_index=1)

    def batches(skipped):
        loader = skip_first_batches(trainer.get_train_dataloader(), skipped)
        loader.set_epoch(3)
        return [batch["target_value"] for batch in loader]

    whole, rest = batches(0), batches(1)
    assert len(whole) == STEPS // 2 and len(rest) == len(whole) - 1
    assert all(torch.equal(a, b) for a, b in zip(rest, whole[1:], strict=True))


def test_runs_are_equal_and_the_seed_decides(replay, trainer_of):
    def run(**options):
        trainer = trainer_of(Student(0), replay(), **options)
        trainer.train()
        return weights(trainer.model)

    first = run()
    assert_equal_weights(first, run())
    assert_equal_weights(first, run(dataloader_num_workers=2))
    assert any(not torch.equal(value, first[name]) for name, value in run(data_seed=7).items())


# -- the average of the weights -----------------------------------------------------------------------------------


def logits_by_hand(model, dataset, mean=IMAGENET[0], std=IMAGENET[1]):
    batch = epoch_batch(dataset, size=len(dataset))
    images = (batch["pixel_values"].float() / 255 - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    with torch.no_grad():
        return model.eval()(images), batch["labels"]


def metrics_by_hand(model, dataset):
    return measure(score(*logits_by_hand(model, dataset)))


def test_average_is_the_recursion_over_steps(replay, trainer_of):
    snapshots = []

    class Snapshots(transformers.TrainerCallback):
        def on_step_end(self, args, state, control, model=None, **kwargs):
            snapshots.append(flat(model))

    model = TinyNet(C, 0)
    trainer = trainer_of(model, replay(), ema_decay=0.8)
    trainer.add_callback(Snapshots())
    trainer.train()
    assert len(snapshots) == 2 * STEPS
    expected = snapshots[0]  # as in timm, it begins with the weights after the first step
    for snapshot in snapshots[1:]:
        expected = 0.8 * expected + 0.2 * snapshot
    torch.testing.assert_close(flat(trainer.ema.module), expected, rtol=1e-5, atol=1e-6)


def test_average_is_evaluated_and_saved_and_checkpoints_keep_both(replay, evaluation, trainer_of, tmp_path):
    trainer = trainer_of(
        Student(0), replay(), evaluation=evaluation, ema_decay=0.9, save_strategy="steps", save_steps=2 * STEPS
    )
    trainer.train()
    trained, average = weights(trainer.model), weights(trainer.ema.module)
    assert any(not torch.equal(value, average[name]) for name, value in trained.items())

    checkpoint = tmp_path / "out" / f"checkpoint-{2 * STEPS}"
    assert_equal_weights(load_file(checkpoint / "model.safetensors"), trained)
    assert_equal_weights(load_file(checkpoint / EMA_FILE), average)

    found = trainer.evaluate()
    of_average, of_trained = (
        metrics_by_hand(trainer.ema.module, evaluation),
        metrics_by_hand(trainer.model, evaluation),
    )
    assert found["eval_nll"] == pytest.approx(of_average["nll"], rel=1e-5)
    assert found["eval_nll"] != pytest.approx(of_trained["nll"], rel=1e-3)
    assert_equal_weights(weights(trainer.model), trained)

    trainer.save_model(str(tmp_path / "saved"))
    assert_equal_weights(load_file(tmp_path / "saved" / "model.safetensors"), average)
    assert_equal_weights(weights(trainer.model), trained)


def test_best_model_has_the_average_that_was_best(replay, evaluation, trainer_of, tmp_path):
    trainer = trainer_of(
        Student(0),
        replay(),
        evaluation=evaluation,
        ema_decay=0.5,
        num_train_epochs=3,
        eval_strategy="epoch",
        save_strategy="epoch",
        load_best_model_at_end=True,
        metric_for_best_model="nll",
        greater_is_better=True,  # so that the last model is not the best
    )
    trainer.train()
    best = trainer.state.best_global_step
    assert best < trainer.state.global_step
    assert trainer.evaluate()["eval_nll"] == pytest.approx(trainer.state.best_metric, rel=1e-6)
    trainer.save_model(str(tmp_path / "saved"))
    average = load_file(tmp_path / "out" / f"checkpoint-{best}" / EMA_FILE)
    assert_equal_weights(load_file(tmp_path / "saved" / "model.safetensors"), average)


# -- optimizers -------------------------------------------------------------------------------------------------


def test_accumulated_half_batches_are_the_whole_batch(replay, trainer_of):
    def run(**options):
        trainer = trainer_of(TinyNet(C, 0), replay(MIXED), optim="sgd", **options)
        trainer.train()
        return trainer

    whole = run(per_device_train_batch_size=8)
    halves = run(per_device_train_batch_size=4, gradient_accumulation_steps=2)
    smaller = run(per_device_train_batch_size=4)
    assert whole.state.global_step == halves.state.global_step == 6
    moved = (flat(whole.model) - flat(TinyNet(C, 0))).norm()
    assert (flat(halves.model) - flat(whole.model)).norm() < 1e-4 * moved
    assert (flat(smaller.model) - flat(whole.model)).norm() > 1e-2 * moved


def test_paper_optimizer_is_sgd_with_nesterov_momentum(replay, trainer_of):
    trainer = trainer_of(Student(), replay(), timm_optimizer="sgd", weight_decay=5e-4, learning_rate=0.2)
    optimizer = trainer.create_optimizer()
    assert type(optimizer) is torch.optim.SGD
    assert all(group["nesterov"] and group["momentum"] == 0.9 for group in optimizer.param_groups)
    assert {group["weight_decay"] for group in optimizer.param_groups} == {0.0, 5e-4}, "none on biases and norms"
    assert all(group["lr"] == 0.2 for group in optimizer.param_groups)


# -- students -----------------------------------------------------------------------------------------------------


def test_plain_timm_module_is_normalised_as_timm_says(source, trainer_of):
    model = timm.create_model("test_resnet", num_classes=C)
    dataset = fresh(source, "rrc")
    trainer = trainer_of(model, dataset, method="plain", num_train_epochs=1)
    batch = epoch_batch(dataset)
    half = torch.full((3,), 0.5)
    assert model.pretrained_cfg["mean"] == (0.5, 0.5, 0.5)
    images = (batch["pixel_values"].float() / 255 - half.view(3, 1, 1)) / half.view(3, 1, 1)
    with torch.no_grad():
        expected = F.cross_entropy(model.eval()(images), batch["labels"])
    assert loss_of(trainer, batch) == pytest.approx(float(expected), rel=1e-5)
    start = flat(model)
    trainer.train()
    assert not torch.equal(flat(model), start)


def test_wrapped_student_keeps_its_normalisation(source, trainer_of):
    # What several processes train is a wrapper around the student, without the student's configuration.
    model = create_student("test_resnet", C, SIZE)
    dataset = fresh(source, "rrc")
    trainer = trainer_of(model, dataset, method="plain")
    seen = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    batch = epoch_batch(dataset)
    loss_of(trainer, batch)
    loss_of(trainer, batch, nn.DataParallel(model.eval()))
    assert model.config.pretrained_cfg["mean"] == [0.5, 0.5, 0.5]
    torch.testing.assert_close(seen[0], (batch["pixel_values"].float() / 255 - 0.5) / 0.5)
    assert torch.equal(seen[1], seen[0])


def test_input_may_be_larger_than_the_view(replay, evaluation, trainer_of):
    model, dataset = Constant(), replay(MIXED)
    trainer = trainer_of(model, dataset, evaluation=evaluation, preprocessing=Preprocessing(40, MEAN, STD, "bilinear"))
    batch = epoch_batch(dataset)
    loss_of(trainer, batch)
    assert model.seen.shape == (8, 3, 40, 40)
    views = mixed_by_hand(batch) / 255
    small = F.interpolate(model.seen, (SIZE, SIZE), mode="area")
    normalised = (views - torch.tensor(MEAN).view(3, 1, 1)) / torch.tensor(STD).view(3, 1, 1)
    assert (small - normalised).abs().mean() < 0.3 * normalised.abs().mean()
    trainer.evaluate()
    assert model.seen.shape[1:] == (3, 40, 40)


# -- evaluation ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("drop_last", [False, True])
def test_evaluation_is_that_of_all_logits_and_repeats_itself(drop_last, replay, evaluation, trainer_of):
    trainer = trainer_of(Student(), replay(MIXED), evaluation=evaluation, dataloader_drop_last=drop_last)
    trainer.train()
    first, second = trainer.evaluate(), trainer.evaluate()
    expected = metrics_by_hand(trainer.model, evaluation)
    assert first["eval_num_samples"] == 21, "the last batch is smaller"
    for name, value in expected.items():
        assert first[f"eval_{name}"] == pytest.approx(value, rel=1e-5), name
        assert second[f"eval_{name}"] == first[f"eval_{name}"]
    assert first["eval_loss"] == pytest.approx(expected["nll"], rel=1e-5)


def test_views_that_mix_can_be_evaluated(replay, trainer_of):
    dataset = replay(MIXED)
    assert trainer_of(Student(), dataset, evaluation=dataset).evaluate()["eval_num_samples"] == len(dataset)


def test_evaluation_does_not_disturb_training(replay, evaluation, trainer_of):
    quiet = trainer_of(Student(0), replay(MIXED))
    quiet.train()
    evaluated = trainer_of(Student(0), replay(MIXED), evaluation=evaluation, eval_strategy="steps", eval_steps=3)
    evaluated.train()
    assert_equal_weights(weights(evaluated.model), weights(quiet.model))
    assert len([entry for entry in evaluated.state.log_history if "eval_accuracy" in entry]) == 4


def test_evaluation_alone(evaluation, trainer_of):
    trainer = trainer_of(Student(), None, evaluation=evaluation)
    expected = metrics_by_hand(trainer.model, evaluation)
    assert trainer.evaluate()["eval_accuracy"] == pytest.approx(expected["accuracy"])
    predicted = trainer.predict(evaluation)
    assert predicted.metrics["test_nll"] == pytest.approx(expected["nll"], rel=1e-5)
    assert predicted.label_ids.tolist() == [sample["labels"] for sample in evaluation]


def test_mixed_precision_needs_no_accelerator(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert KDTrainingArguments(output_dir=str(tmp_path), bf16=True).use_cpu
    assert not KDTrainingArguments(output_dir=str(tmp_path)).use_cpu


# -- mistakes -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"method": "magic"}, "method must be one of reinforced, online, plain, not 'magic'"),
        ({"temperature": 0.0}, "temperature must be > 0, not 0.0"),
        ({"hard_label_weight": 1.5}, r"hard_label_weight must lie in \[0, 1\]"),
        ({"ema_decay": 1.0}, r"ema_decay must lie in \[0, 1\)"),
    ],
)
def test_impossible_arguments(options, message, arguments):
    with pytest.raises(ValueError, match=message):
        arguments(**options)


NO_LABELS = "needs labels with these settings, but there are none"


@pytest.mark.parametrize(
    ("data", "options", "message"),
    [
        ("stored", {"method": "online"}, r"needs a teacher; pass teacher= \(--teacher_name_or_path\)"),
        ("stored", {"repeated_augmentation": 3}, "repeated_augmentation=3 needs a batch size that it divides"),
        ("stored", {"repeated_augmentation": 0}, "repeats must lie between 1"),
        ("fresh", {"method": "reinforced"}, "needs a reinforced dataset; this one has no stored targets"),
        ("unlabelled", {"method": "plain"}, f"method='plain' {NO_LABELS}"),
        ("unlabelled", {"method": "online", "hard_label_weight": 0.5, "teacher": 1}, NO_LABELS),
        ("unlabelled", {"method": "online", "teacher": 1}, ""),
    ],
)
def test_what_does_not_go_together(data, options, message, replay, source, trainer_of):
    views = fresh(source if data == "fresh" else tiny_dataset(8, labels=0))
    options = {**options, **({"teacher": teacher_of()} if "teacher" in options else {})}
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        trainer_of(Student(), replay() if data == "stored" else views, **options).train()


def test_seconds_of_training_go_on_where_a_run_is_resumed(replay, trainer_of, tmp_path, monkeypatch):
    clock = iter(range(0, 10**6, 5))
    monkeypatch.setattr("hf_reinforce.training.checkpoints.time.monotonic", lambda: float(next(clock)))
    options = {"save_strategy": "steps", "save_steps": 4, "logging_strategy": "steps", "logging_steps": 2}
    trainer_of(Student(), replay(MIXED), **options).train()
    resumed = trainer_of(Student(), replay(MIXED), **{**options, "output_dir": str(tmp_path / "again")})
    resumed.train(resume_from_checkpoint=str(tmp_path / "out" / "checkpoint-4"))
    seconds = {entry["step"]: entry["train_seconds"] for entry in resumed.state.log_history if "loss" in entry}
    assert [seconds[step] for step in (2, 4, 6, 8)] == [5, 10, 15, 20]
