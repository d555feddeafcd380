"""`ResumableTrainer`: what every Trainer of this package shares, so that a run can be interrupted at any step."""

import functools
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from hf_reinforce.replay.sampler import EpochSampler, Readers


class ResumableTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer whose order of samples depends on (seed, epoch) alone, with timm optimizers.

    Datasets that have a method `partners` are sampled by `EpochSampler`. Every image of an evaluation set counts, also
    where training leaves out the last batch.

    Args:
        model: as `transformers.Trainer`.
        args: see `ResumableTrainingArguments`.
        kwargs: as `transformers.Trainer`.
    """

    args: Any
    data_collator: Any
    optimizer: Any

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        dataset = self.train_dataset if train_dataset is None else train_dataset
        if not hasattr(dataset, "partners"):
            return super()._get_train_sampler(train_dataset)
        seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
        readers = Readers(self._train_batch_size, max(1, self.args.dataloader_num_workers), self.args.world_size)
        return EpochSampler(dataset, seed, getattr(self.args, "repeated_augmentation", 1), readers)

    def get_train_dataloader(self) -> Any:
        """The batches of an epoch, see `resumable`."""
        return resumable(super().get_train_dataloader())

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Every image of an evaluation set, in batches as this set collates them."""
        with self._evaluated(eval_dataset):
            return resumable(super().get_eval_dataloader(eval_dataset))

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Every image of a test set, in batches as this set collates them."""
        with self._evaluated(test_dataset):
            return resumable(super().get_test_dataloader(test_dataset))

    @contextmanager
    def _evaluated(self, dataset: Any) -> Iterator[None]:
        dataset = self.eval_dataset if dataset is None else dataset
        dataset = self.eval_dataset[dataset] if isinstance(dataset, str) else dataset
        before = self.data_collator, self.args.dataloader_drop_last
        self.data_collator, self.args.dataloader_drop_last = getattr(dataset, "collate", before[0]), False
        try:
            yield
        finally:
            self.data_collator, self.args.dataloader_drop_last = before

    def create_optimizer(self, model: Any = None) -> Any:
        """The optimizer that `timm_optimizer` names, without weight decay for biases and norms, else `optim`."""
        if self.args.timm_optimizer is None or self.optimizer is not None:
            return super().create_optimizer(model)
        from timm.optim import create_optimizer_v2

        args, trained = self.args, self.trained_parameters(self.model if model is None else model)
        self.optimizer = create_optimizer_v2(
            trained, opt=args.timm_optimizer, lr=args.learning_rate, weight_decay=args.weight_decay, momentum=0.9
        )
        return self.optimizer

    def is_checkpoint(self, folder: str | None) -> bool:
        """Whether a folder is that of the checkpoint of this step."""
        return folder is not None and Path(folder).name == f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        if self.is_checkpoint(output_dir) and self.args.should_save:  # unfinished from here on
            (Path(str(output_dir)) / TRAINER_STATE_NAME).unlink(missing_ok=True)
        token, self.args.hub_token = self.args.hub_token, None  # training_args.bin is published too
        try:
            self.save_to(output_dir or self.args.output_dir, state_dict)
        finally:
            self.args.hub_token = token

    def save_to(self, folder: str, state_dict: Any) -> None:
        """Writes the model and `training_args.bin`."""
        super()._save(folder, state_dict)

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # `trainer_state.json` comes next, see `checkpoints`

    def trained_parameters(self, model: Any) -> Any:
        """What a timm optimizer is made of: the model, or groups of its parameters."""
        return model


def resumable(loader: Any) -> Any:
    """A loader that accelerate has prepared, changed so that a run that is resumed or stopped gets what it should.

    - Seeds of workers come from a generator of their own, not from the one that dropout uses: a resumed run starts its
      workers at other times.
    - The sampler of a rank is told the number of an epoch that is resumed in its middle; accelerate, which wraps it
      once more to skip batches, would not find it, and the samples would be those of the first epoch.
    - A signal to all processes, as schedulers and terminals send it, ends no worker: the step in hand needs them.
    """
    inner = getattr(loader, "base_dataloader", loader)
    inner.generator = torch.Generator()
    inner.worker_init_fn = functools.partial(_start_worker, inner.worker_init_fn)
    if hasattr(loader.batch_sampler, "batch_sampler"):
        loader.batch_sampler.sampler = loader.batch_sampler.batch_sampler.sampler
    return loader


def _start_worker(further: Callable[[int], None] | None, worker: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_parent, args=(parent.pid,), daemon=True).start()
    if further is not None:
        further(worker)


def _end_for_parent(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
