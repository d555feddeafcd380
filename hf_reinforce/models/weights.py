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

from hf_reinforce.models.classes import some

_ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class WeightReport:
    """How the tensors of a checkpoint and those of a network fit, by name; `num_batches_tracked` is left out.

    Attributes:
        missing: tensors of the network that the checkpoint lacks; they are random.
        mismatched: likewise, with both shapes behind the name: the checkpoint has tensors of another shape.
        unexpected: tensors of the checkpoint that the network has no place for.
    """

    missing: tuple[str, ...] = ()
    mismatched: tuple[str, ...] = ()
    unexpected: tuple[str, ...] = ()

    @classmethod
    def of(cls, info: Mapping[str, Iterable[Any]]) -> "WeightReport":
        """The report of `from_pretrained(..., output_loading_info=True, ignore_mismatched_sizes=True)`."""
        size = "x".join
        shapes = [f"{n} {size(map(str, has))} for {size(map(str, own))}" for n, has, own in info["mismatched_keys"]]
        parts = (info["missing_keys"], shapes, info["unexpected_keys"])
        return cls(*(tuple(sorted(name for name in names if "num_batches_tracked" not in name)) for names in parts))

    @classmethod
    def between(cls, network: nn.Module, state: Mapping[str, Tensor]) -> "WeightReport":
        """The report of a network and the tensors that it should get."""
        own = network.state_dict()
        shapes = [(name, state[name].shape, own[name].shape) for name in own.keys() & state.keys()]
        mismatched = [(name, stored, wanted) for name, stored, wanted in shapes if stored != wanted]
        missing, unexpected = own.keys() - state.keys(), state.keys() - own.keys()
        return cls.of({"missing_keys": missing, "mismatched_keys": mismatched, "unexpected_keys": unexpected})

    @property
    def fresh(self) -> tuple[str, ...]:
        """Names of the network's tensors that are random."""
        return (*self.missing, *(item.split(" ")[0] for item in self.mismatched))

    def check(self, name: str, needless: Callable[[str], bool] = lambda tensor: False) -> None:
        """Raises a ValueError unless all tensors of the network `name` are in the checkpoint, and no others, but for
        those for which `needless(tensor)` is true."""
        parts = {"missing": self.missing, "of another shape": self.mismatched, "not the network's": self.unexpected}
        kinds = {kind: [n for n in names if not needless(n.split(" ")[0])] for kind, names in parts.items()}
        found = [f"{len(names)} are {kind} ({some(names, 3)})" for kind, names in kinds.items() if names]
        if found:
            raise ValueError(
                f"The weights of {name} are not those of its network: {'; '.join(found)}. Name an image classifier "
                "with all of its weights, saved outside of any wrapper that changes their names."
            )


def outside_body(network: nn.Module) -> Callable[[str], bool]:
    """Which tensors a network without its head does not need: those of its classifier, and those of parts that only
    the checkpoint has, such as CLIP's text tower."""
    inner: Any = getattr(network, "timm_model", network)
    if cfg := getattr(inner, "pretrained_cfg", None):
        names = cfg.get("classifier") or ()
        heads = tuple(f"{name}." for name in ((names,) if isinstance(names, str) else names))
        return lambda name: name.removeprefix("timm_model.").startswith(heads)
    children = network.named_children()
    body = {n for n, child in children if not isinstance(child, nn.Linear) and "classifier" not in n}
    return lambda name: name.partition(".")[0] not in body


def weight_hash(model: nn.Module) -> str:
    """xxh3-64, hex, over the names and bytes of a model's parameters and buffers."""
    digest = xxhash.xxh3_64()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(name.encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


def repository_file(path: str, revision: str | None, *names: str) -> Path:
    """The first of some files that a folder or a repository of the Hub has, on this machine; else an OSError."""
    from transformers.utils import cached_file

    missing: OSError = FileNotFoundError(f"{path} has no {names[0]}")
    for name in names:
        try:
            if found := cached_file(path, name, revision=revision):
                return Path(found)
        except OSError as error:
            missing = error
    raise missing


def read_state(name: str, file: Path) -> dict[str, Tensor]:
    """The tensors of a checkpoint file: safetensors, or what `torch.load(weights_only=True)` accepts."""
    if file.suffix == ".safetensors":
        from safetensors.torch import load_file

        state: Any = load_file(file)
    else:
        state = torch.load(file, map_location="cpu", weights_only=True)
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        keys = f" with the keys {some(state, 3)}" if isinstance(state, Mapping) else ""
        raise ValueError(
            f"{file}, the checkpoint of {name}, does not hold tensors by name, but a {type(state).__name__}{keys}; "
            "save the state dict alone, as safetensors."
        )
    return dict(state)


@contextmanager
def loading(name: str, path: str) -> Iterator[None]:
    """Around the loading of the network `name` from a path: its library reports nothing, and whatever it raises
    becomes a ValueError of one sentence."""
    if (Path(path) / _ADAPTER).is_file():
        raise ValueError(  # without PEFT the network beside it would be loaded, as if it had not been fine-tuned
            f"{name} holds an adapter of PEFT ({_ADAPTER}), not a whole network; merge it (merge_and_unload() of "
            "PEFT), save that with save_pretrained, and name it."
        )
    reports = logging.getLogger("transformers.modeling_utils")
    # What does not fit is checked, and told in one sentence. Another level would make transformers report more.
    only_errors = lambda record: record.levelno >= logging.ERROR
    reports.addFilter(only_errors)
    try:
        yield
    except Exception as error:  # parsers of weights raise what they run into
        text = " ".join(str(error).split())
        if "trust_remote_code" in text:
            raise ValueError(
                f"{name} needs code of its own repository (trust_remote_code), which is never run here; name a "
                "classifier of transformers or timm itself, or pass the loaded network as a module."
            ) from error
        files = sorted(Path(path).iterdir()) if Path(path).is_dir() else [Path(path)]
        small = [file for file in files if file.is_file() and file.stat().st_size < 1024]
        if pointers := [file for file in small if file.read_bytes().startswith(b"version https://git-lfs")]:
            raise ValueError(
                f"The weights of {name} are not there: {pointers[0]} is a pointer of git-lfs; fetch the file itself "
                "(git lfs pull, or hf download)."
            ) from error
        if isinstance(error, ValueError) and name in text:
            raise
        raise ValueError(
            f"{name} cannot be loaded ({type(error).__name__}: {text[:300]}). If its files are cut short or damaged, "
            "fetch them again; else name another network."
        ) from error
    finally:
        reports.removeFilter(only_errors)
