"""Faults while a dataset is reinforced: kills at any moment, signals, disks, broken sources, flipped bits.

What is killed is the real recipe in a process of its own. Starting Python and importing torch takes seconds, so most
of these processes are forks of one that has imported everything and has a single thread.
"""

import contextlib
import errno
import hashlib
import itertools
import multiprocessing
import os
import random
import resource
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import datasets
import pytest
import torch
from hub_client import run_recipe
from hub_server import Fault
from recipe_modules import RECIPES, load_recipe
from tiny import NAMES, tiny_dataset, tiny_image, tiny_teacher

from hf_reinforce import images, load_policy, reinforce
from hf_reinforce.cards import preview
from hf_reinforce.cards.inspection import verify_shards
from hf_reinforce.generation import reinforce as run_of_files
from hf_reinforce.generation.reinforcer import source_is_gone
from hf_reinforce.hub.load import load_source
from hf_reinforce.store.config import CONFIG_FILE, ReinforcementConfig
from hf_reinforce.store.shards import check_shards, shard_files

ROWS, SHARDS, CLASSES, SIZE, POLICY = 150, 3, 5, 32, "mixing_randaug"
OPTIONS = {"num_samples": 2, "top_k": 3, "shard_size": 64, "device": "cpu"}
PETS = tiny_dataset(ROWS, (20, 36), CLASSES)
BEFORE, EACH = 8, 4  # changes of the folder before the first shard, and those that each shard makes
PRELOADED = "torch accelerate datasets timm transformers matplotlib.figure matplotlib.backends.backend_agg pytest"
PATIENCE = 600  # seconds, for a machine that does other work as well
WRITING = {"open", "os.mkdir", "os.rename", "os.remove", "shutil.rmtree"}
FORKS = multiprocessing.get_context("forkserver")
FORKS.set_forkserver_preload(
    [
        *PRELOADED.split(),
        "hf_reinforce.hub.load",
        "hf_reinforce.generation.estimate",
        "hf_reinforce.cards.dataset_card",
    ]
)


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    """`arguments(folder, **flags)`: command line of the recipe that writes into `folder / "plus"`."""
    from hf_reinforce.models.students import create_student

    workshop = tmp_path_factory.mktemp("workshop")
    (workshop / "pets").mkdir()
    PETS.to_parquet(workshop / "pets" / "train-00000-of-00001.parquet")
    torch.manual_seed(0)
    create_student("test_resnet", CLASSES, SIZE, NAMES[:CLASSES]).save_pretrained(workshop / "teacher")
    common = {"dataset_name": workshop / "pets", "teacher_name_or_path": workshop / "teacher"}
    common |= {"policy": POLICY, "image_size": SIZE, **OPTIONS}

    def build(folder, **flags):
        chosen = {**common, "output_dir": folder / "plus", **flags}
        return [str(part) for key, value in chosen.items() for part in (f"--{key}", value)]

    return build


@pytest.fixture(scope="module")
def expected(arguments, tmp_path_factory):
    """`expected(pictures, **flags)`: the files of an uninterrupted run."""
    found = {}

    def get(pictures=False, **flags):
        key = (pictures, *flags.items())
        if key not in found:
            folder = tmp_path_factory.mktemp("expected")
            assert launch(arguments(folder, **flags), pictures=pictures) == [0]
            found[key] = contents(folder)
        return found[key]

    return get


def contents(folder):
    """Every file with its bytes."""
    root = folder / "plus"
    return {str(path.relative_to(root)): path.read_bytes() for path in root.rglob("*") if path.is_file()}


def identities(folder):
    """Inode and time of each finished shard."""
    shards = (folder / "plus" / POLICY).glob("train-*.parquet")
    return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in shards}


def start(argv, log=os.devnull, world=1, pictures=False, **moments):
    """Starts the recipe in so many forked processes, which find each other as those of `accelerate launch` do."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    common = {"WORLD_SIZE": world, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "ACCELERATE_USE_CPU": "true"}
    ranks = [{"RANK": rank, "LOCAL_RANK": rank, **common} if world > 1 else {} for rank in range(world)]
    processes = [
        FORKS.Process(target=_recipe, args=(argv, str(log), rank, pictures), kwargs=moments) for rank in ranks
    ]
    for process in processes:
        process.start()
    return processes


def launch(argv, *args, **options):
    """Exit codes of the recipe in forked processes."""
    return [_wait(process, PATIENCE) for process in start(argv, *args, **options)]


def continues(argv, folder, result, finished=(), world=1):
    """The same command goes on to the result of an uninterrupted run, without what was finished."""
    assert launch(argv, world=world) == [0] * world
    assert contents(folder) == result
    assert dict(finished).items() <= identities(folder).items(), "a finished shard is not written again"


def _recipe(argv, log, environment, pictures, at=None, number=signal.SIGKILL, times=1, rank=0):
    """In a fork: the recipe; one of its ranks sends itself a signal before its n-th change of the output folder."""
    os.environ.update({name: str(value) for name, value in environment.items()})
    with open(log, "a") as file:
        os.dup2(file.fileno(), 1)
        os.dup2(file.fileno(), 2)
    if not pictures:
        _draw_nothing()
    if at is not None and environment.get("RANK", 0) == rank:
        before_change(argv[argv.index("--output_dir") + 1], at, lambda: os.kill(os.getpid(), number), times)
    sys.argv = ["reinforce.py", *argv]
    load_recipe("reinforce").main()


def _draw_nothing():
    preview.draw = lambda *arguments: None


def before_change(folder, at, action, times=1):
    """Calls `action` before the changes of a folder with the numbers `at` to `at + times - 1`, counted from 0."""
    seen = 0

    def hook(event, details):
        nonlocal seen
        if event not in WRITING or not str(details[0]).startswith(str(folder)):
            return
        if event == "open" and not details[2] & (os.O_WRONLY | os.O_RDWR):
            return
        seen += 1
        if at < seen <= at + times:
            action()

    sys.addaudithook(hook)


def survive(folder, argv, result, at):
    """Kills one run before its n-th change and runs it again; whether there was so late a change."""
    (code,) = launch(argv, at=at)
    assert code in (0, -signal.SIGKILL)
    continues(argv, folder, result, identities(folder))
    return code != 0


# Kills


def test_a_kill_costs_nothing_that_was_finished(arguments, expected, tmp_path):
    before_the_name_of_the_second_shard = BEFORE + EACH + 2
    assert survive(tmp_path, arguments(tmp_path), expected(), before_the_name_of_the_second_shard)


@pytest.mark.slow
def test_a_kill_before_any_change_of_the_folder(arguments, expected, tmp_path):
    survived = 0
    while survive(tmp_path / str(survived), arguments(tmp_path / str(survived)), expected(), survived):
        survived += 1
    assert survived > BEFORE + EACH * SHARDS


@pytest.mark.slow
def test_a_kill_while_added_reinforcements_are_moved_into_place(arguments, expected, tmp_path):
    base, at, code = tmp_path / "base", EACH * SHARDS, None
    assert launch(arguments(base)) == [0]
    while code != 0:
        folder = tmp_path / str(at)
        shutil.copytree(base, folder)
        argv = arguments(folder, num_samples=3)
        (code,) = launch(argv, at=at)
        continues(argv, folder, expected(num_samples=3))
        at += 1
    assert at - EACH * SHARDS > SHARDS + 3


def hunt(folder, begin, kills, longest, result, seed):
    """Kills one of the processes that `begin` starts `kills` times, each within `longest` seconds, and restarts them.

    Each run that comes to its end has a folder of its own, and the `result` of an uninterrupted one.
    """
    chance, survived, run, finished = random.Random(seed), 0, 0, {}
    while True:
        processes = begin(folder / str(run))
        victim = chance.choice(processes)
        alive = _wait(victim, chance.uniform(0, longest) if survived < kills else PATIENCE) is None
        if alive:
            victim.kill()
            for process in processes:
                if process is not victim:
                    process.terminate()  # as torchrun does
        survived += alive
        codes = [_wait(process, PATIENCE) for process in processes]
        found = identities(folder / str(run))
        assert finished.items() <= found.items(), "a finished shard is not written again"
        finished = found
        if codes == [0] * len(codes):
            assert contents(folder / str(run)) == result
            if survived >= kills:
                return
            run, finished = run + 1, {}


def _wait(process, seconds):
    """Waits until a process ends, at most so long; its exit code."""
    if isinstance(process, subprocess.Popen):
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(seconds)
        return process.poll()
    process.join(seconds)
    return process.exitcode


@pytest.mark.slow
@pytest.mark.parametrize(("world", "kills"), [(1, 30), (2, 20)])
def test_kills_at_random_moments(arguments, expected, tmp_path, world, kills):
    result, begin = expected(), time.monotonic()
    assert launch(arguments(tmp_path / "whole"), world=world) == [0] * world
    longest = time.monotonic() - begin
    hunt(tmp_path, lambda folder: start(arguments(folder), world=world), kills, longest, result, seed=world)


@pytest.mark.slow
def test_kills_of_the_command_itself(arguments, expected, tmp_path):
    def begin(folder):
        command = [sys.executable, str(RECIPES / "reinforce.py"), *arguments(folder)]
        return [subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)]

    started = time.monotonic()
    assert begin(tmp_path / "whole")[0].wait(PATIENCE) == 0
    hunt(tmp_path, begin, 2, time.monotonic() - started, expected(pictures=True), seed=3)


@pytest.mark.slow
def test_a_rank_that_dies_is_reported_and_others_take_up_its_shards(arguments, expected, tmp_path):
    argv = arguments(tmp_path)
    codes = launch(argv, tmp_path / "log", world=2, at=0, rank=1)  # before it writes its first shard
    assert codes == [1, -signal.SIGKILL]
    finished = identities(tmp_path)
    assert sorted(finished) == ["train-00000-of-00003.parquet", "train-00002-of-00003.parquet"]
    text = (tmp_path / "log").read_text()
    assert "error: Another process has stopped" in text and "with any number of processes, to continue" in text
    continues(argv, tmp_path, expected(), finished, world=3)


# Signals


@pytest.mark.parametrize(
    ("number", "world", "times"),
    [
        (signal.SIGTERM, 1, 1),
        pytest.param(signal.SIGINT, 1, 1, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 1, 2, marks=pytest.mark.slow),  # the second does not wait for the shard
        pytest.param(signal.SIGTERM, 2, 1, marks=pytest.mark.slow),
    ],
)
def test_a_signal_ends_the_run_after_the_shard(arguments, expected, tmp_path, number, world, times):
    argv, log = arguments(tmp_path), tmp_path / "log"
    at = BEFORE + EACH if world == 1 else 0
    codes = launch(argv, log, world, at=at, number=number, rank=world - 1, times=times)
    assert codes[-1] == 128 + number
    text, finished = log.read_text(), identities(tmp_path)
    assert f"Stopped by {number.name}: " in text and f"of {SHARDS} shards are done" in text
    assert "run the same command again to continue" in text and "Traceback" not in text
    assert not list((tmp_path / "plus").rglob("*.tmp*"))
    assert world == 2 or len(finished) == 3 - times
    continues(argv, tmp_path, expected(), finished)


# Disks and networks


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("full", "the disk is full. Make room there and run the same command again"),
        ("read-only", "it may not be written to. Make it writable"),
        ("gone", "it is gone. Bring it back"),
    ],
)
def test_a_disk_that_fails(arguments, expected, tmp_path, kind, message):
    process = FORKS.Process(target=_on_a_bad_disk, args=(arguments(tmp_path), kind, message))
    process.start()
    assert _wait(process, PATIENCE) == 0
    assert contents(tmp_path) == expected()


def _on_a_bad_disk(argv, kind, message):
    """In a fork: the recipe on a disk that fails under the second shard, and again when that is mended."""
    plus = Path(argv[argv.index("--output_dir") + 1])
    with open(os.devnull, "w") as nothing:  # a limit for the size of files is one for a log as well
        os.dup2(nothing.fileno(), 2)
    _draw_nothing()
    most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]

    def trouble():
        if kind == "gone":
            plus.rename(plus.parent / "elsewhere")
        elif kind == "read-only":
            raise OSError(errno.EROFS, os.strerror(errno.EROFS))
        else:
            resource.setrlimit(resource.RLIMIT_FSIZE, (1000, most))

    before_change(plus, BEFORE + EACH, trouble)
    failed = run_recipe("reinforce", *argv)
    if kind == "gone":
        (plus.parent / "elsewhere").rename(plus)
    resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
    assert failed.startswith(f"error: {plus / POLICY} cannot be written: {message}"), failed
    finished = identities(plus.parent)
    assert list(finished) == ["train-00000-of-00003.parquet"]
    assert run_recipe("reinforce", *argv) is None
    assert finished.items() <= identities(plus.parent).items()


def test_a_folder_that_cannot_be_made_says_what_to_do(tmp_path):
    (tmp_path / "plus").write_text("a file")
    with pytest.raises(OSError, match=f"{tmp_path / 'plus' / 'rrc'} cannot be written: .*run the same command again"):
        reinforce(tiny_dataset(4), tiny_teacher(), load_policy("rrc", 16), tmp_path / "plus", num_samples=1, top_k=3)


@pytest.fixture
def run(tmp_path, monkeypatch):
    """`run(dataset, folder, **options)`: reinforces in this process; returns the folder of the configuration."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))

    def call(source=PETS, folder="one", policy=POLICY, **options):
        arguments = source, tiny_teacher(CLASSES), load_policy(policy, 16), tmp_path / folder / "plus"
        return reinforce(*arguments, **OPTIONS | options)

    return call


def test_a_stream_that_breaks_off_is_resumed(run, tmp_path):
    rows = PETS.to_iterable_dataset()
    broken = datasets.IterableDataset.from_generator(_broken, features=rows.features, gen_kwargs={"rows": rows})
    message = f"broke off .*Server Disconnected.*run the same command again.* kept in {tmp_path}"
    with pytest.raises(ConnectionError, match=message):
        run(broken)
    finished = identities(tmp_path / "one")
    assert len(finished) == 1
    run(rows)
    run(rows, "whole")
    assert contents(tmp_path / "one") == contents(tmp_path / "whole")
    assert finished.items() <= identities(tmp_path / "one").items()


def _broken(rows):
    yield from rows.cast_column("image", datasets.Image(decode=False)).take(100)
    raise ConnectionError("Server Disconnected")


def test_files_that_all_vanish_are_not_skipped_as_bad_images(run, tmp_path, monkeypatch):
    mount, picture, read, count = tmp_path / "mount", tiny_image(0), images.read_encoded, itertools.count()
    mount.mkdir()
    paths = [mount / f"{row}.png" for row in range(ROWS)]
    for path in paths[:5] + paths[6:]:  # one is missing from the beginning: that is bad data
        picture.save(path)
    rows = {"image": [{"bytes": None, "path": str(path)} for path in paths]}
    source = datasets.Dataset.from_dict(rows, features=datasets.Features({"image": datasets.Image()}))

    def vanishing(item):
        if next(count) == 100:  # in the middle of a block
            mount.rename(tmp_path / "elsewhere")
        return read(item)

    monkeypatch.setattr(images, "read_encoded", vanishing)
    with pytest.raises(images.ImageError, match=r"Row \d+ .*cannot be read .*No such file"):
        run(source, policy="rrc", on_error="skip", num_workers=1)
    folder = tmp_path / "one" / "plus" / "rrc"
    assert not ReinforcementConfig.load(folder).complete and len(shard_files(folder, "train")) == 1
    (tmp_path / "elsewhere").rename(mount)
    run(source, policy="rrc", on_error="skip")
    assert [item.row for item in ReinforcementConfig.load(folder).skipped] == [5]


@pytest.mark.parametrize(("missing", "gone"), [(1, False), (63, False), (64, True)])
def test_before_anything_could_be_read_a_whole_block_tells(missing, gone):
    """The last shard of a dataset may be one row whose file is missing: that must not stop a run for ever."""
    failed = [(row, images.UnreachableError("the file cannot be read.")) for row in range(missing)]
    assert source_is_gone(failed, None) is gone
    assert not source_is_gone([(0, images.ImageError("it is no image."))] * missing, None)


def test_trouble_of_the_machine_is_not_skipped_as_bad_images(run, monkeypatch):
    def failing(item):
        raise images.UnreachableError("the file cannot be read.") from OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(images, "read_encoded", failing)
    with pytest.raises(images.ImageError, match="Row 0 .*the file cannot be read"):
        run(PETS.select(range(3)), policy="rrc", on_error="skip")


@pytest.mark.slow
def test_a_hub_that_breaks_off_is_resumed(arguments, hub, client, tmp_path):
    files = {}
    for index, start_row in enumerate(range(0, ROWS, 50)):
        PETS.select(range(start_row, start_row + 50)).to_parquet(tmp_path / "part.parquet")
        files[f"data/train-{index:05d}-of-00003.parquet"] = (tmp_path / "part.parquet").read_bytes()
    hub.add_repository("dataset", "me/pets", files)
    always = Fault("GET .*train-00002", drop_after=100, times=10**6)
    hub.faults = [always]
    message = client(_reinforce_stream, tmp_path / "stream")
    assert "The stream of images broke off" in message and "run the same command again" in message
    finished = identities(tmp_path / "stream")
    assert len(finished) == 1  # 64 of the 100 rows that arrived
    argv = arguments(tmp_path / "loaded", dataset_name="me/pets")
    failed = client(run_recipe, "reinforce", *argv)
    assert failed.startswith("error: ") and "\n" not in failed
    hub.faults = []
    for stage in ("stream", "whole"):
        assert client(_reinforce_stream, tmp_path / stage) is None
    assert contents(tmp_path / "stream") == contents(tmp_path / "whole")
    assert finished.items() <= identities(tmp_path / "stream").items()
    assert client(run_recipe, "reinforce", *argv) is None


def _reinforce_stream(folder):
    """In the client: reinforces a stream of the Hub, without waiting between attempts; the error that ended it."""
    with mock.patch("time.sleep"):
        try:
            stream = load_source("me/pets", streaming=True)
            reinforce(stream, tiny_teacher(CLASSES), load_policy(POLICY, 16), folder / "plus", **OPTIONS)
        except OSError as error:
            return str(error)
    return None


# Flipped bits


def flip(path, position, bit=0):
    """Changes one bit of a file; a position below 0 counts from the end."""
    data = bytearray(path.read_bytes())
    data[position] ^= 1 << bit
    path.write_bytes(data)


def test_a_flipped_bit_is_found_wherever_it_is(run):
    folder = run()
    assert verify_shards(folder) == (SHARDS, [])
    chance = random.Random(0)
    for shard in shard_files(folder, "train"):
        whole = shard.read_bytes()
        for position in (0, 3, -1, -5, -40, *(chance.randrange(len(whole)) for _ in range(20))):
            flip(shard, position, chance.randrange(8))
            _, problems = verify_shards(folder)
            assert len(problems) == 1 and problems[0].startswith(
                f"{shard} is damaged. Run the command that reinforces"
            )
            shard.write_bytes(whole)


@pytest.mark.parametrize("position", [200, -200, None])
def test_only_the_damaged_shard_is_computed_again(run, tmp_path, caplog, position):
    shards = shard_files(run(), "train")
    before, found = contents(tmp_path / "one"), identities(tmp_path / "one")
    if position is None:
        shards[1].write_bytes(b"")
    else:
        flip(shards[1], position)
    run()
    assert contents(tmp_path / "one") == before
    after = identities(tmp_path / "one")
    assert {name for name in found if after[name] != found[name]} == {shards[1].name}
    assert f"{shards[1]} is damaged; it is computed again." in caplog.text


@pytest.mark.parametrize("when", ["written", "added", "moved"])
def test_a_shard_that_is_damaged_before_the_run_is_done_is_computed_again(run, tmp_path, when):
    options = {} if when == "written" else {"num_samples": 3}
    if options:
        run()
    if when != "added":  # all shards are there, in place
        with mock.patch.object(run_of_files.Run, "finish", side_effect=Stop), pytest.raises(Stop):
            run(**options)
    folder = tmp_path / "one" / "plus" / POLICY
    if when == "moved":
        for shard in folder.glob(".num_samples-3/*.parquet"):
            shard.replace(folder / shard.name)
    flip(shard_files(folder, "train")[0], 300)
    run(**options)
    run(folder="fresh", **options)
    assert contents(tmp_path / "one") == contents(tmp_path / "fresh")


class Stop(Exception):
    """What ends a run in these tests."""


def test_checksums_are_sha256_and_made_where_an_earlier_version_did_not(run, tmp_path):
    folder = run()
    config, now = ReinforcementConfig.load(folder), (folder / CONFIG_FILE).read_bytes()
    hashes = {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in shard_files(folder, "train")}
    assert config.checksums == hashes
    ReinforcementConfig(**{**vars(config), "checksums": {}}).save(folder)
    with pytest.raises(ValueError, match="is not finished, or older than checksums; run the command"):
        verify_shards(folder)
    before = identities(tmp_path / "one")
    run()
    assert (folder / CONFIG_FILE).read_bytes() == now and identities(tmp_path / "one") == before
    flip(shard_files(folder, "train")[1], 300)  # what is damaged is not published
    with pytest.raises(ValueError, match=f"{shard_files(folder, 'train')[1]} is damaged"):
        check_shards(folder, config)


def test_the_recipe_verifies(run, capsys):
    folder = run()
    assert run_recipe("inspect_dataset", folder.parent, "--verify", "True") == "0"
    assert f"All {SHARDS} shards of {folder.parent} are as they were written." in capsys.readouterr().out
    first, second, third = shard_files(folder, "train")
    first.unlink()
    flip(second, 300)
    shutil.copy(third, folder / "train-00007-of-00003.parquet")
    assert run_recipe("inspect_dataset", folder.parent, "--verify", "True") == "1"
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(". ")[0] for line in lines] == [
        f"{first.name} is missing in {folder}",
        f"{second} is damaged",
        f"{folder / 'train-00007-of-00003.parquet'} is no shard of this dataset",
    ]
