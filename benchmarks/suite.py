"""The benchmarks by name, in the order in which they run. A new one is a function and a line here."""

from collections.abc import Callable

from benchmarks.cached import cached
from benchmarks.generation import augmentation, generation, memory
from benchmarks.importing import importing
from benchmarks.joining import joining
from benchmarks.loader import loader_mixing, loader_original, loader_randaug, loader_rrc
from benchmarks.measure import Row, Settings
from benchmarks.opening import opening
from benchmarks.repeated import repeated
from benchmarks.storage import record_bytes, record_read
from benchmarks.streaming import streaming
from benchmarks.training import online_step, training_step

BENCHMARKS: dict[str, Callable[[Settings], list[Row]]] = {
    "loader-randaug": loader_randaug,
    "loader-rrc": loader_rrc,
    "loader-original": loader_original,
    "loader-mixing": loader_mixing,
    "repeated": repeated,
    "cached": cached,
    "streaming": streaming,
    "record-read": record_read,
    "record-bytes": record_bytes,
    "opening": opening,
    "joining": joining,
    "importing": importing,
    "generation": generation,
    "augmentation": augmentation,
    "training-step": training_step,
    "online-step": online_step,
    "memory": memory,
}
