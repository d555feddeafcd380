"""Training that is killed, stopped or left with half a checkpoint: it goes on as if nothing had happened.

Starting Python and torch takes seconds, so the runs are forked from one process that has everything imported: it has
one thread, and no work of its own. `accelerate launch` is used for a few.
"""

import hashlib
import json
import multiprocessing
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections import defaultdict
from itertools import count
from pathlib import Path

import psutil
import pytest
import torch
from datasets import load_dataset
from recipe_modules import RECIPES, load_recipe
from tiny import NAMES, tiny_dataset
from transformers import TrainerControl, TrainerState, TrainingArguments

from hf_reinforce import KDTrainer, load_policy, load_teacher, reinforce
from hf_reinforce.cards import model_card  # noqa: F401  # the recipes import it, and here it is imported once
from hf_reinforce.models.students import create_student
from hf_reinforce.stopping import StopSignals
from hf_reinforce.training.checkpoints import StopTraining, last_checkpoint

ROWS, C, SIZE, EPOCHS, BATCH = 40, 5, 32, 4, 8
STEPS = EPOCHS * ROWS // BATCH
ARCHITECTURE = "test_efficientnet"
WORKERS = {"dataloader_num_workers": 1, "dataloader_persistent_workers": True}


@pytest.fixture(scope="module")
def workshop(tmp_path_factory):
    """A folder with a teacher and `plus`, a reinforced dataset that mixes its images."""
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "pets").mkdir()
    tiny_dataset(ROWS, labels=C).to_parquet(folder / "pets" / "train-00000-of-00001.parquet")
    torch.manual_seed(0)
    create_student(ARCHITECTURE, C, SIZE, NAMES[:C]).save_pretrained(folder / "teacher")
    source, teacher = load_dataset(str(folder / "pets"), split="train"), load_teacher(str(folder / "teacher"))
    options = {"num_samples": 3, "top_k": 3, "num_workers": 1, "embed_images": True, "shard_size": 64}
    reinforce(source, teacher, load_policy("mixing_randaug", SIZE), folder / "plus", **options)
    return folder


@pytest.fixture(scope="module")
def flags(workshop):
    """`flags(folder, **changes)`: the command line of a run, with all that is random in it."""

    def flags(folder, **changes):
        values = {
            "dataset_name": workshop / "plus",
            "model_name_or_path": ARCHITECTURE,
            "model_args": json.dumps({"drop_rate": 0.2, "drop_path_rate": 0.1}),
            "output_dir": folder,
            "use_cpu": True,
            "num_train_epochs": EPOCHS,
            "per_device_train_batch_size": BATCH,
            "timm_optimizer": "sgd",
            "lr_scheduler_type": "cosine",
            "learning_rate": 0.05,
            "ema_decay": 0.8,
            "plain_fraction": 0.1,
            "save_steps": 2,
            "save_total_limit": 2,
            "disable_tqdm": True,
            **changes,
        }
        return [part for key, value in values.items() for part in (f"--{key}", str(value))]

    return flags


# -- runs that are forked -----------------------------------------------------------------------------------------


def child(argv, log, environment, die):
    """A process of a run; what it prints goes to `log`, and a digest of each batch that it trains on to `log`.seen.

    Args:
        die: at which call of `torch.save` it kills itself, with half of the file written.
    """
    multiprocessing.set_start_method("fork", force=True)  # of the loader's workers: as from the command line
    out = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(out, 1), os.dup2(out, 2)
    os.environ.update(environment)
    torch.set_num_threads(1)
    compute_loss = KDTrainer.compute_loss

    def recording(self, model, inputs, *args, **kwargs):
        digest = hashlib.md5(b"".join(value.numpy().tobytes() for _, value in sorted(inputs.items()))).hexdigest()
        with open(f"{log}.seen", "a") as file:
            file.write(f"{self.args.process_index} {self.state.global_step} {digest}\n")
        return compute_loss(self, model, inputs, *args, **kwargs)

    KDTrainer.compute_loss = recording
    saves, save = count(1), torch.save

    def killing(content, path):
        save(content, path)
        if next(saves) == die:
            half(Path(path))
            os.kill(os.getpid(), signal.SIGKILL)

    torch.save = killing
    sys.argv = ["train_kd.py", *argv]
    load_recipe("train_kd").main()


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Runs:
    """Starts runs of `train_kd.py` in one folder, and knows what they trained on."""

    def __init__(self, context, folder, argv, ranks=1):
        self.context, self.folder, self.argv, self.ranks = context, folder, argv, ranks
        self.log = f"{folder}.log"

    def start(self, die=None):
        """Processes of a run, one for each rank."""
        environments = [{}]
        if self.ranks > 1:
            shared = {"WORLD_SIZE": self.ranks, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": free_port()}
            shared |= {"ACCELERATE_USE_CPU": "true", "LOCAL_WORLD_SIZE": self.ranks}
            environments = [{**shared, "RANK": rank, "LOCAL_RANK": rank} for rank in range(self.ranks)]
        processes = [
            self.context.Process(target=child, args=(self.argv, self.log, {k: str(v) for k, v in e.items()}, die))
            for e in environments
        ]
        for process in processes:
            process.start()
        return processes

    def finish(self, **options):
        """Runs to the end, or to wherever it dies; the exit code of the first rank."""
        return self.gather(self.start(**options))[0]

    def gather(self, processes):
        """Exit codes of the ranks; when one has failed the others are told to end, as torchrun does."""
        end = time.monotonic() + 600
        while alive := [process for process in processes if process.exitcode is None]:
            assert time.monotonic() < end, f"it hangs: {self.printed}"
            failed = any(process.exitcode for process in processes)
            for process in alive:
                process.join(5 if failed else 0.05)
                if failed:
                    process.terminate()
        return [process.exitcode for process in processes]

    @property
    def printed(self):
        return Path(self.log).read_text()

    def seen(self):
        """Digests of the batches that were trained on, by rank and step."""
        found = defaultdict(set)
        for line in Path(f"{self.log}.seen").read_text().splitlines():
            rank, step, digest = line.split()
            found[int(rank), int(step)].add(digest)
        return dict(found)

    def result(self):
        return hashlib.md5((self.folder / "model.safetensors").read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def runs(flags, tmp_path_factory):
    """`runs(name, ranks=..., **flags)`: `Runs` in a folder of that name."""
    with pytest.MonkeyPatch.context() as patch:
        folder = tmp_path_factory.mktemp("runs")
        paths = [str(Path(__file__).parent), str(RECIPES.parent), *filter(None, [os.environ.get("PYTHONPATH")])]
        patch.setenv("PYTHONPATH", os.pathsep.join(paths))
        for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"):
            patch.setenv(name, "1")
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(["test_faults_training"])

        def runs(name, ranks=1, **changes):
            return Runs(context, folder / name, flags(folder / name, **changes), ranks)

        yield runs


@pytest.fixture(scope="module")
def whole(runs):
    """A run that nobody interrupted."""
    whole = runs("whole", **WORKERS)
    assert whole.finish() == 0, whole.printed
    return whole


def wait(process, condition, printed):
    """Until something has happened in a run that must not end before."""
    while not condition():
        process.join(0.01)
        assert process.exitcode is None, printed()


def assert_same(found, whole):
    """Whenever a run came to a step, it saw the batch that the uninterrupted one did, and it ended as that did."""
    assert found.seen() == whole.seen()
    assert all(len(digests) == 1 for digests in whole.seen().values()), "it was not interrupted"
    assert len(whole.seen()) == whole.ranks * STEPS
    assert found.result() == whole.result()


# -- a few faults -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("told_by", [signal.SIGTERM, pytest.param(signal.SIGINT, marks=pytest.mark.slow)])
def test_killed_while_it_writes_a_checkpoint_and_then_told_to_stop(runs, whole, told_by):
    broken = runs("broken", **WORKERS)
    assert "Next: python recipes/evaluate.py --model_name_or_path" in whole.printed
    assert broken.finish(die=10) == -signal.SIGKILL, "in the middle of the third optimizer.pt"
    assert (broken.folder / "checkpoint-6" / "optimizer.pt").exists()
    (left,) = broken.start()
    wait(left, lambda: len(broken.seen()) > 8, lambda: broken.printed)
    for told in (*psutil.Process(left.pid).children(), left):  # as a scheduler tells all processes
        os.kill(told.pid, told_by)
    assert broken.gather([left]) == [128 + told_by], broken.printed
    assert "checkpoint-6 is passed over: the run was interrupted while it wrote it" in broken.printed
    stopped = re.search(
        rf"Stopped by {told_by.name} after step (\d+) of 20; the same command goes on from (.*)\.\n", broken.printed
    )
    assert stopped and stopped[2] == f"{broken.folder}/checkpoint-{stopped[1]}" and int(stopped[1]) < STEPS
    assert not (broken.folder / "model.safetensors").exists(), "a run that was stopped has no result"
    assert broken.finish() == 0, broken.printed
    assert f"Resuming from {stopped[2]}" in broken.printed
    assert_same(broken, whole)


def test_worker_of_the_loader_is_killed(runs):
    broken = runs("worker", **WORKERS)
    (process,) = broken.start()
    wait(process, lambda: Path(f"{broken.log}.seen").exists(), lambda: broken.printed)
    worker_of(process).kill()
    assert broken.gather([process]) == [1], "it ends, and not well"
    message = r"error: DataLoader worker .*(Killed|exited unexpectedly).* The same command goes on from the last"
    assert re.search(message, broken.printed), "torch words it one way or the other"


def test_result_is_written_by_the_next_run_if_the_first_ended_before(runs, whole):
    again = runs("again", **WORKERS)
    shutil.copytree(whole.folder, again.folder, ignore=shutil.ignore_patterns("model.safetensors", "train*", "all*"))
    for number in (18, 20):
        shutil.copytree(
            whole.folder / f"checkpoint-{number}", again.folder / f"checkpoint-{number}", dirs_exist_ok=True
        )
    assert again.finish() == 0, again.printed
    assert again.result() == whole.result()
    assert json.loads((again.folder / "train_results.json").read_text())["epoch"] == EPOCHS


def half(path):
    with path.open("r+b") as file:
        file.truncate(path.stat().st_size // 2)


def flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


DAMAGE = [
    (Path.unlink, "trainer_state.json", "trainer_state.json is missing"),
    (half, "trainer_state.json", "trainer_state.json is damaged"),
    (half, "model.safetensors", "model.safetensors is damaged"),
    (half, "ema.safetensors", "ema.safetensors is damaged"),
    (Path.unlink, "model.safetensors", "model.safetensors is missing"),
    (Path.unlink, "optimizer.pt", "optimizer.pt is missing"),
    (half, "optimizer.pt", "optimizer.pt is damaged"),
    (flip, "optimizer.pt", "optimizer.pt is damaged"),
    (half, "scheduler.pt", "scheduler.pt is damaged"),
    (Path.unlink, "rng_state.pth", "rng_state*.pth is missing"),
]


@pytest.mark.parametrize(("damage", "name", "message"), DAMAGE)
def test_checkpoint_that_is_not_whole_is_passed_over(damage, name, message, whole, tmp_path, caplog):
    folder = tmp_path / "run"
    shutil.copytree(whole.folder, folder)
    args = TrainingArguments(output_dir=str(folder), use_cpu=True)
    assert last_checkpoint(args) == str(folder / "checkpoint-20")
    damage(folder / "checkpoint-20" / name)
    (folder / "checkpoint-x").mkdir()
    assert last_checkpoint(args) == str(folder / "checkpoint-18")
    assert "checkpoint-20 is passed over" in caplog.text and message in caplog.text
    damage(folder / "checkpoint-18" / name)
    if name == "trainer_state.json" and damage is Path.unlink:  # as a kill leaves it: there is nothing to go on from
        assert last_checkpoint(args) is None
        return
    with pytest.raises(ValueError, match="No checkpoint in .* can be used .*remove them to begin anew"):
        last_checkpoint(args)


def test_stop_in_an_epoch_does_nothing_that_belongs_to_its_end():
    stop = StopTraining(StopSignals())
    for stopped, epoch, expected in ((True, 1.5, False), (True, 2.0, True), (False, 1.5, True)):
        stop.stopped = stopped
        control = TrainerControl(should_save=True, should_evaluate=True)
        stop.on_epoch_end(None, TrainerState(epoch=epoch), control)
        assert control.should_save is control.should_evaluate is expected


# -- many faults --------------------------------------------------------------------------------------------------


def worker_of(process):
    """A worker of a run's loader; None if the run has ended before it had one."""
    while process.exitcode is None:
        try:
            children = psutil.Process(process.pid).children()
        except psutil.NoSuchProcess:
            return None
        if children:
            return children[0]
        process.join(0.01)
    return None


KILLS = {
    "reinforced": (14, 1, {}),
    "streaming": (8, 1, {"streaming": True, **WORKERS}),
    "online": (8, 1, {"method": "online", "plain_fraction": 0}),
    "worker": (8, 1, WORKERS),
    "ranks": (12, 2, {"per_device_train_batch_size": BATCH // 2}),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KILLS)
def test_killed_at_random_moments(kind, runs, workshop):
    kills, ranks, changes = KILLS[kind]
    changes = dict(changes, teacher_name_or_path=workshop / "teacher") if kind == "online" else changes
    chance, passed_over = random.Random(kind), 0
    before, whole = time.monotonic(), runs(f"{kind}-whole", ranks, **changes)
    assert whole.finish() == 0, whole.printed
    seconds = time.monotonic() - before
    for number in count():
        if not kills:
            break
        killed = runs(f"{kind}-{number}", ranks, **changes)
        finished = False
        while not finished:
            within = kills % 3 == 1 and kind != "worker"  # the writing of a checkpoint
            processes = killed.start(die=chance.randint(1, 8) if within else None)
            if kills and not within:
                victim = chance.choice(processes)
                victim.join(chance.uniform(0, seconds))
                victim = worker_of(victim) if kind == "worker" else victim
                if victim is not None:
                    victim.kill()
            finished = not any(killed.gather(processes))
            kills -= not finished
            assert kills >= 0, killed.printed
        passed_over += killed.printed.count("is passed over: the run was interrupted while it wrote it")
        assert_same(killed, whole)
    print(f"{kind}: {number} runs, half a checkpoint was left {passed_over} times")
    assert passed_over or kind == "worker"


@pytest.mark.slow
def test_two_ranks_stop_at_the_same_step_when_one_is_told_to(runs):
    changes = KILLS["ranks"][2]
    whole, stopped = runs("ranks-whole-too", 2, **changes), runs("ranks-stopped", 2, **changes)
    assert whole.finish() == 0, whole.printed
    processes = stopped.start()
    wait(processes[1], lambda: (stopped.folder / "checkpoint-2").exists(), lambda: stopped.printed)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert stopped.gather(processes) == [143, 143], stopped.printed
    (step,) = set(re.findall(r"Stopped by SIGTERM after step (\d+) of 20", stopped.printed))
    assert int(step) % 5 == 0
    assert stopped.finish() == 0, stopped.printed
    assert f"Resuming from {stopped.folder}/checkpoint-{step}" in stopped.printed
    assert_same(stopped, whole)


@pytest.mark.slow
def test_accelerate_launch_is_killed_and_stopped(runs):
    whole = runs("launch-whole", 2, **KILLS["ranks"][2])
    assert whole.finish() == 0, whole.printed
    launched = runs("launched", 2, **KILLS["ranks"][2])
    config = RECIPES / "accelerate" / "cpu_multi_process.yaml"
    command = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", config]
    command += ["--main_process_port", free_port()]
    command = [*map(str, [*command, RECIPES / "train_kd.py"]), *launched.argv]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(RECIPES.parent)}
    checkpoints = lambda: {
        int(path.parent.name[11:]) for path in launched.folder.glob("checkpoint-*/trainer_state.json")
    }
    for number in (signal.SIGKILL, signal.SIGTERM, None):
        with open(launched.log, "a") as log:
            launcher = subprocess.Popen(command, env=environment, stdout=log, stderr=log)
        reached = max(checkpoints(), default=0)
        while number and launcher.poll() is None and max(checkpoints(), default=0) <= reached:
            launched.context.Event().wait(0.01)
        if number == signal.SIGKILL:
            psutil.Process(launcher.pid).children()[1].kill()
        elif number:
            launcher.send_signal(number)
        assert (launcher.wait(600) == 0) is (number is None), launched.printed
    assert launched.printed.count("Resuming from") == 2
    assert launched.printed.count("Stopped by SIGTERM") == 1
    assert launched.result() == whole.result()
