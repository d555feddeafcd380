"""`ResumableTrainer`: what every Trainer of this package shares, so that a run can be interrupted at any step."""

import multiprocessing
import os
import signal
import threading
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch.utils.data import DataLoader
from transformers import Trainer
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR
from transformers.utils import SAFE_WEIGHTS_NAME

from hf_reinforce.replay.sampler import EpochSampler, Readers


class ResumableTrainer(Trainer):  # type: ignore[misc]
    """transformers' Trainer whose order of samples, that of `EpochSampler`, depends on (seed, epoch) alone.

    Datasets are collated by their method `collate`, where they have one, else by `data_collator`. Every image of an
    evaluation set counts, also where training leaves out the last batch. Arguments are those of
    `transformers.Trainer`, with `ResumableTrainingArguments`.
    """

    args: Any
    optimizer: Any

    def get_train_dataloader(self) -> Any:
        """The batches of this rank."""
        args = self.args
        batch_size = self.get_total_train_batch_size(args) // (args.gradient_accumulation_steps * args.world_size)
        seed = args.seed if args.data_seed is None else args.data_seed
        readers = Readers(batch_size, max(1, args.dataloader_num_workers), args.world_size)
        sampler = EpochSampler(self.train_dataset, seed, getattr(args, "repeated_augmentation", 1), readers)
        options = {"drop_last": args.dataloader_drop_last, "persistent_workers": args.dataloader_persistent_workers}
        loader = self._loader(self.train_dataset, batch_size, sampler=sampler, **options)
        # Where accelerate looks for what to tell the number of an epoch that is resumed in its middle.
        loader.batch_sampler.sampler = sampler
        return loader

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        """Every image of an evaluation set."""
        dataset = self.eval_dataset if eval_dataset is None else eval_dataset
        dataset = self.eval_dataset[dataset] if isinstance(dataset, str) else dataset
        return self._loader(dataset, self.args.eval_batch_size)

    def get_test_dataloader(self, test_dataset: Any) -> Any:
        """Every image of a test set."""
        return self.get_eval_dataloader(test_dataset)

    def _loader(self, dataset: Any, batch_size: int, **options: Any) -> Any:
        args = self.args
        loader: DataLoader[Any] = DataLoader(
            dataset,
            batch_size,
            collate_fn=getattr(dataset, "collate", self.data_collator),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            prefetch_factor=args.dataloader_prefetch_factor,
            in_order=args.dataloader_in_order,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            generator=torch.Generator(),  # not that of dropout: a resumed run starts its workers at other times
            worker_init_fn=_start_worker,
            **options,
        )
        return self.accelerator.prepare(loader)

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

    def trained_parameters(self, model: Any) -> Any:
        """What a timm optimizer is made of: the model, or groups of its parameters."""
        return model

    def is_checkpoint(self, folder: str) -> bool:
        """Whether a folder is that of the checkpoint of this step."""
        return Path(folder).name == f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"

    def load_weights(self, checkpoint: str) -> None:
        """Loads the model of a checkpoint."""
        self.model.load_state_dict(load_file(Path(checkpoint) / SAFE_WEIGHTS_NAME), strict=False)

    def save_to(self, folder: str, state_dict: Any) -> None:
        """Writes the model and `training_args.bin`."""
        super()._save(folder, state_dict)

    def _save(self, output_dir: str | None = None, state_dict: Any = None) -> None:
        folder = output_dir or self.args.output_dir
        if self.is_checkpoint(folder) and self.args.should_save:  # unfinished from here on
            (Path(folder) / TRAINER_STATE_NAME).unlink(missing_ok=True)
        token, self.args.hub_token = self.args.hub_token, None  # training_args.bin is published too
        try:
            self.save_to(folder, state_dict)
        finally:
            self.args.hub_token = token

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        self.accelerator.wait_for_everyone()  # `trainer_state.json` comes next, see `checkpoints`


def _start_worker(worker: int) -> None:
    """Makes a dataloader worker outlive a signal to all processes, which schedulers send: the last step needs it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    parent = multiprocessing.parent_process()
    if parent is not None and hasattr(signal, "sigwaitinfo"):  # not on macOS
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
        threading.Thread(target=_end_for_parent, args=(parent.pid,), daemon=True).start()


def _end_for_parent(parent: int | None) -> None:
    while signal.sigwaitinfo({signal.SIGTERM}).si_pid != parent:
        pass
    os._exit(0)
