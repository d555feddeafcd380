"""Weights of networks: whether those of a checkpoint are the network's, and what is told of files that hold none.

Libraries fill what a checkpoint lacks with random numbers and go on. Here every loader compares the two, so that no
network answers with weights that nobody has trained.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import xxhash
from torch import Tensor, nn

_LFS = b"version https://git-lfs"
_SUFFIXES = (".safetensors", ".bin", ".pth", ".pt", ".tar", ".ckpt", ".index.json")
_ADAPTER = "adapter_config.json"
_WRAPPERS = ("module.", "_orig_mod.", "model.")
_NAMED = 3  # tensors that a message names


@dataclass(frozen=True)
class WeightReport:
    """How the tensors of a checkpoint and those of a network fit.

    Left out are `num_batches_tracked`, which no network in evaluation mode uses, and what transformers itself leaves
    out as not needed.

    Attributes:
        missing: names of the network's tensors that the checkpoint lacks; they are random.
        mismatched: names of those that it has with another shape; they are random too.
        unexpected: names of the checkpoint's tensors that the network has no place for.
    """

    missing: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    @classmethod
    def of(cls, info: Mapping[str, Iterable[Any]]) -> "WeightReport":
        """The report of `from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)`."""
        shapes = [f"{name} {_shape(stored)} for {_shape(own)}" for name, stored, own in info["mismatched_keys"]]
        return cls(_sorted(info["missing_keys"]), _sorted(shapes), _sorted(info["unexpected_keys"]))

    @classmethod
    def between(cls, network: nn.Module, state: Mapping[str, Tensor]) -> "WeightReport":
        """What `network.load_state_dict(state, strict=False)` would leave out, and what it would stumble over."""
        own = network.state_dict()
        shapes = [
            f"{name} {_shape(state[name].shape)} for {_shape(tensor.shape)}"
            for name, tensor in own.items()
            if name in state and state[name].shape != tensor.shape
        ]
        return cls(_sorted(own.keys() - state.keys()), _sorted(shapes), _sorted(state.keys() - own.keys()))

    @property
    def fresh(self) -> tuple[str, ...]:
        """Names of the network's tensors that are random."""
        return (*self.missing, *(item.split(" ")[0] for item in self.mismatched))

    def without(self, leave_out: Callable[[str], bool]) -> "WeightReport":
        """The report without the tensors for which `leave_out(name)` is true."""
        parts = (self.missing, self.mismatched, self.unexpected)
        return WeightReport(*(tuple(item for item in part if not leave_out(item.split(" ")[0])) for part in parts))

    def check(self, name: str) -> None:
        """Refuses the network `name` unless all of its tensors are those of the checkpoint, and no other is there.

        Raises:
            ValueError: naming what is missing, has another shape, or does not belong, with the counts.
        """
        kinds = {"missing": self.missing, "of another shape": self.mismatched, "not the network's": self.unexpected}
        found = [f"{len(names)} are {kind} ({_few(names)})" for kind, names in kinds.items() if names]
        if not found:
            return
        wrapper = next((p for p in _WRAPPERS if self.unexpected and all(n.startswith(p) for n in self.unexpected)), "")
        advice = "Name an image classifier with all of its weights"
        if wrapper and self.missing:
            advice = f"Save the network inside of its wrapper, whose names do not begin with {wrapper!r}"
        elif not self.missing and not self.mismatched:
            advice = "Save the network anew, without what does not belong to it"
        raise ValueError(f"The weights of {name} are not those of its network: {'; '.join(found)}. {advice}.")


def outside_body(network: nn.Module) -> Callable[[str], bool]:
    """Which tensors a network does without when it is no classifier, by name: those of its classifier, and of a
    checkpoint those of parts that the network does not have, such as CLIP's text tower.

    A probe, a detector or a student with other classes needs its body, and all of it:
    `report.without(outside_body(network)).check(name)`.
    """
    inner: Any = getattr(network, "timm_model", network)
    cfg = getattr(inner, "pretrained_cfg", None)
    if cfg:
        names = cfg.get("classifier") or ()
        heads = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
        return lambda name: name.removeprefix("timm_model.").startswith(heads)
    children = dict(network.named_children())
    body = {n for n, child in children.items() if not isinstance(child, nn.Linear) and "classifier" not in n}
    return lambda name: name.partition(".")[0] not in body


def weight_hash(model: nn.Module) -> str:
    """xxh3-64, hex, over the names and bytes of a model's parameters and buffers."""
    digest = xxhash.xxh3_64()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def loading(name: str, path: str | None = None) -> Iterator[None]:
    """Around the loading of a network: its library reports nothing, and whatever it raises becomes one sentence.

    Args:
        name: name of the network.
        path: its folder or file, where it is on this machine.

    Raises:
        ValueError: for anything that the library raises.
    """
    if path and (Path(path) / _ADAPTER).is_file():
        raise ValueError(  # without PEFT the network beside it would be loaded, as if it had not been fine-tuned
            f"{name} holds an adapter of PEFT ({_ADAPTER}), not a whole network. Merge it into its network "
            "(merge_and_unload() of PEFT), save that with save_pretrained, and name it."
        )
    reports = logging.getLogger("transformers.modeling_utils")
    # What does not fit is checked, and told in one sentence. Another level would make transformers report more.
    reports.addFilter(_unreported)
    try:
        yield
    except Exception as error:  # parsers of weights raise what they run into
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise ValueError(
                f"{name} needs code of its own repository (trust_remote_code), which is never run here. Name a "
                "classifier of transformers or timm itself; in Python, pass the loaded network as a module."
            ) from error
        pointers = [file for file in _weight_files(path) if _start(file) == _LFS]
        if pointers:
            raise ValueError(
                f"The weights of {name} are not there: {pointers[0]} is a pointer of git-lfs. Fetch the file itself "
                "(git lfs pull, or hf download)."
            ) from error
        if isinstance(error, ValueError) and name in text:
            raise
        advice = "If its weights are cut short or damaged, fetch them again; else name another network."
        advice = "Mend its configuration, or name another network." if isinstance(error, ValueError) else advice
        raise ValueError(f"{name} cannot be loaded ({type(error).__name__}: {text[:300]}). {advice}") from error
    finally:
        reports.removeFilter(_unreported)


@contextmanager
def watched_loads(name: str) -> Iterator[list[WeightReport]]:
    """What each `load_state_dict` leaves out while this is open; timm loads some networks loosely and does not say.

    Raises:
        ValueError: if the weights of the network `name` do not fit, and were not loaded loosely.
    """
    found: list[WeightReport] = []
    own = nn.Module.load_state_dict

    def watched(self: nn.Module, state: Mapping[str, Any], *args: Any, **kwargs: Any) -> Any:
        try:
            result = own(self, state, *args, **kwargs)
        except RuntimeError:
            WeightReport.between(self, state).check(name)
            raise
        found.append(WeightReport(_sorted(result.missing_keys), (), _sorted(result.unexpected_keys)))
        return result

    nn.Module.load_state_dict = watched  # type: ignore[method-assign,assignment]
    try:
        yield found
    finally:
        nn.Module.load_state_dict = own  # type: ignore[method-assign]


def read_state(name: str, file: str) -> dict[str, Tensor]:
    """The tensors of a checkpoint file: safetensors, or what `torch.load(weights_only=True)` accepts.

    Raises:
        ValueError: if there is none, or it holds something else.
    """
    if not Path(file).is_file():
        raise ValueError(f"There is no checkpoint {file}.")
    with loading(f"{file}, the checkpoint of {name},", file):
        if file.endswith(".safetensors"):
            from safetensors.torch import load_file

            state: Any = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        keys = f" with the keys {_few(tuple(map(str, state)))}" if isinstance(state, Mapping) else ""
        raise ValueError(
            f"{file}, the checkpoint of {name}, does not hold tensors by name, but a {type(state).__name__}{keys}; "
            "save the state dict alone, as safetensors."
        )
    return dict(state)


def _unreported(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR


def _start(file: Path) -> bytes:
    with file.open("rb") as opened:
        return opened.read(len(_LFS))


def _weight_files(path: str | None) -> list[Path]:
    if path is None or not Path(path).exists():
        return []
    files = [Path(path)] if Path(path).is_file() else sorted(Path(path).iterdir())
    return [file for file in files if file.is_file() and file.name.endswith(_SUFFIXES)]


def _sorted(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(sorted(name for name in names if not name.split(" ")[0].endswith("num_batches_tracked")))


def _few(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_NAMED]) + (", ..." if len(names) > _NAMED else "")


def _shape(shape: Iterable[int]) -> str:
    return "x".join(map(str, shape)) or "scalar"
