"""Several processes, and several machines: generation gives the same bytes, training the same student."""

import functools
import multiprocessing
import os
import socket
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState, GradientState, PartialState
from recipe_modules import RECIPES, load_recipe
from safetensors.torch import load_file
from tiny import NAMES, tiny_dataset, tiny_teacher

from hf_reinforce import KDTrainer, KDTrainingArguments, load_policy, load_reinforced, reinforce
from hf_reinforce.models.students import create_student

ROWS, CLASSES, SIZE = 320, 5, 32
POLICIES = ("randaug", "mixing")

pytestmark = pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")  # of Python 3.12


def in_processes(count, function, *arguments, **options):
    """Runs a function in processes that find each other as those of `accelerate launch` do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    call = functools.partial(function, *arguments, **options)
    context = multiprocessing.get_context("fork")  # without importing everything again
    processes = [context.Process(target=_rank, args=(rank, count, port, call), daemon=True) for rank in range(count)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(600)  # one that hangs
    assert [process.exitcode for process in processes] == [0] * count


def _rank(rank, count, port, call):
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": count, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, ACCELERATE_USE_CPU="true")
    for state in (AcceleratorState, GradientState, PartialState):
        state._reset_state()
    call()
    if count > 1:
        assert torch.distributed.get_world_size() == count, "the processes have not found each other"
        torch.distributed.destroy_process_group()


@pytest.fixture(scope="module")
def pets():
    return tiny_dataset(ROWS, (20, 36), CLASSES)


@pytest.fixture(scope="module")
def reinforced(pets, tmp_path_factory):
    """`reinforced(policy, world)`: a folder that so many processes have written."""
    done = {}

    def make(policy, world):
        folder = tmp_path_factory.mktemp(f"{policy}-{world}")
        options = {"num_samples": 3, "top_k": 3, "shard_size": 64, "seed": 5}
        in_processes(world, reinforce, pets, tiny_teacher(CLASSES), load_policy(policy, SIZE), folder, **options)
        return folder

    def find(policy, world):
        if (policy, world) not in done:
            done[policy, world] = make(policy, world)
        return done[policy, world]

    return find


def contents(folder):
    """The bytes of all files."""
    files = [*folder.rglob("*.parquet"), *folder.rglob("*.json")]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


@pytest.mark.parametrize("world", [2, 4])
@pytest.mark.parametrize("policy", POLICIES)
def test_several_processes_write_the_same_bytes(reinforced, policy, world):
    one = contents(reinforced(policy, 1))
    assert len(one) == ROWS // 64 + 1
    assert contents(reinforced(policy, world)) == one


def train(folder, pets, output, batch_size):
    """Trains a student without batch normalisation, and leaves its weights from before and after."""
    torch.manual_seed(0)
    args = KDTrainingArguments(
        str(output),
        use_cpu=True,
        timm_optimizer="sgd",
        learning_rate=0.1,
        max_steps=4,
        per_device_train_batch_size=batch_size,
        save_strategy="no",
        disable_tqdm=True,
        ddp_find_unused_parameters=False,
    )
    student = create_student("test_vit", CLASSES, SIZE, NAMES[:CLASSES])
    trainer = KDTrainer(student, args, load_reinforced(str(folder), source=pets))
    trainer.save_model(str(output / "start"))
    trainer.train()
    trainer.save_model()


def difference(one, other):
    """The largest difference of two students' weights, as a share of how far training has moved any weight."""
    start, one, other = (load_file(path / "model.safetensors") for path in (one / "start", one, other))
    moved, apart = (max(float((one[name] - with_[name]).abs().max()) for name in one) for with_ in (start, other))
    return apart / moved


@pytest.mark.parametrize("policy", [pytest.param("randaug", marks=pytest.mark.slow), "mixing"])
def test_two_processes_train_as_one_with_twice_the_batch(reinforced, pets, tmp_path, policy):
    folder = reinforced(policy, 1)
    in_processes(1, train, folder, pets, tmp_path / "one", 32)
    in_processes(2, train, folder, pets, tmp_path / "two", 16)
    assert difference(tmp_path / "one", tmp_path / "two") < 1e-5
    if policy == "randaug":  # other samples are noticed
        in_processes(1, train, folder, pets, tmp_path / "other", 16)
        assert difference(tmp_path / "one", tmp_path / "other") > 0.1


def recipe(name, arguments):
    """Runs a recipe in this process."""
    sys.argv = [f"{name}.py", *arguments]
    load_recipe(name).main()


def on_two_machines(name, arguments):
    """Runs a recipe with the configuration for several machines, on two that are both this one."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    launch = [sys.executable, "-m", "accelerate.commands.launch"]
    launch += ["--config_file", str(RECIPES / "accelerate" / "multi_node.yaml"), "--num_processes", "2"]
    launch += ["--main_process_ip", "127.0.0.1", "--main_process_port", port]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "PYTHONPATH": str(RECIPES.parent)}
    machines = [
        subprocess.Popen(
            [*launch, "--machine_rank", str(rank), str(RECIPES / f"{name}.py"), *arguments],
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    said = [machine.communicate(timeout=300)[1] for machine in machines]
    assert [machine.returncode for machine in machines] == [0, 0], said
    return said


@pytest.mark.slow
@pytest.mark.parametrize("policy", POLICIES)
def test_two_machines_run_both_recipes(pets, tmp_path, policy):
    """Two rendezvous endpoints on loopback, a configuration of accelerate, and one folder that both see."""
    images, teacher = tmp_path / "pets", tmp_path / "teacher"
    images.mkdir()
    pets.to_parquet(images / "train-00000-of-00001.parquet")
    torch.manual_seed(0)
    create_student("test_vit", CLASSES, SIZE, NAMES[:CLASSES]).save_pretrained(teacher)
    flags = ["--dataset_name", str(images), "--teacher_name_or_path", str(teacher), "--policy", policy]
    flags += ["--image_size", str(SIZE), "--num_samples", "2", "--top_k", "3", "--shard_size", "64", "--output_dir"]
    in_processes(1, recipe, "reinforce", [*flags, str(tmp_path / "one")])
    main, other = on_two_machines("reinforce", [*flags, str(tmp_path / "two")])
    assert contents(tmp_path / "two") == contents(tmp_path / "one")
    assert "Reinforcing" in main and "Reinforcing" not in other, "one progress bar"

    flags = ["--dataset_name", str(tmp_path / "two"), "--model_name_or_path", "test_vit", "--use_cpu", "True"]
    flags += ["--timm_optimizer", "sgd", "--learning_rate", "0.1", "--max_steps", "4", "--save_strategy", "no"]
    flags += ["--ddp_find_unused_parameters", "False", "--output_dir"]
    in_processes(1, recipe, "train_kd", [*flags, str(tmp_path / "s1"), "--per_device_train_batch_size", "32"])
    on_two_machines("train_kd", [*flags, str(tmp_path / "s2"), "--per_device_train_batch_size", "16"])
    one, two = (load_file(tmp_path / name / "model.safetensors") for name in ("s1", "s2"))
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 1e-5


def test_a_folder_that_is_not_shared_is_named(pets, tmp_path):
    def own_folder():
        folder, options = tmp_path / os.environ["RANK"], {"num_samples": 1, "top_k": 3, "shard_size": 64}
        message = "Another process has stopped" if os.environ["RANK"] == "0" else f"{folder}/randaug cannot be written"
        with pytest.raises(OSError, match=message):
            reinforce(pets, tiny_teacher(CLASSES), load_policy("randaug", SIZE), folder, **options)
        os._exit(0)  # nobody is there to part from

    in_processes(2, own_folder)
