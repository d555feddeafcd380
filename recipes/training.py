"""How recipes train: from the last checkpoint on, until the end or a signal."""

import json
import logging
from pathlib import Path

from arguments import write_json

logger = logging.getLogger("hf_reinforce.training")


def train_and_evaluate(trainer, args) -> None:
    """Trains from the last checkpoint on, where there is one, and evaluates.

    SIGTERM and SIGINT end it with a checkpoint, and exit codes 143 and 130.
    """
    from hf_reinforce.training.checkpoints import is_finished, load_finished

    # transformers turns do_eval on by itself where there is an eval_strategy
    if args.do_train or not args.do_eval or args.eval_strategy != "no":
        checkpoint = first_checkpoint(args)
        if checkpoint and is_finished(checkpoint, args):
            logger.info("The run is finished already; its last checkpoint, %s, is evaluated.", checkpoint)
            metrics = load_finished(trainer, checkpoint)
        else:
            if checkpoint:
                logger.info("Resuming from %s.", checkpoint)
            metrics = train(trainer, checkpoint)
        if metrics is not None:
            trainer.save_model()
            trainer.log_metrics("train", metrics)
            trainer.save_metrics("train", metrics)
            trainer.save_state()
    if trainer.eval_dataset is not None:
        metrics = trainer.evaluate()
        trainer.log_metrics("eval", metrics)
        trainer.save_metrics("eval", metrics)


def first_checkpoint(args):
    """The checkpoint of `--resume_from_checkpoint`; the last one, or None, where the flag is not given or True."""
    from hf_reinforce.training.checkpoints import last_checkpoint

    asked = args.resume_from_checkpoint
    if asked is None or str(asked).lower() == "true":
        last = last_checkpoint(args)
        if asked and last is None:
            raise ValueError(f"--resume_from_checkpoint {asked}: {args.output_dir} has no checkpoint; leave it out.")
        return last
    if not (Path(asked) / "trainer_state.json").is_file():
        raise ValueError(
            f"--resume_from_checkpoint {asked} is no folder of a checkpoint; leave it out for the last one."
        )
    return asked


def train(trainer, checkpoint):
    """Trains and returns the metrics; ends the program if a signal asks for it."""
    from hf_reinforce.stopping import StopSignals
    from hf_reinforce.training.checkpoints import StopTraining

    with StopSignals() as signals:
        stop = StopTraining(signals)
        trainer.add_callback(stop)
        try:
            metrics = trainer.train(resume_from_checkpoint=checkpoint).metrics
        except RuntimeError as error:
            if "DataLoader worker" not in str(error):
                raise
            raise ValueError(
                f"{error} The same command goes on from the last checkpoint; if memory ran out, give it fewer "
                "--dataloader_num_workers."
            ) from error
    if stop.stopped:
        raise SystemExit(signals.exit_code)
    return metrics


def check_same_run(args, asked) -> None:
    """Keeps the settings of a run in its `run.json`, and refuses to go on with what was begun with other ones."""
    from hf_reinforce.store.config import CONFIG_FILE

    path = Path(args.output_dir) / "run.json"
    if any(path.parent.glob(f"*/{CONFIG_FILE}")):
        raise ValueError(
            f"{args.output_dir} holds a reinforced dataset, whose card (README.md) would be lost; choose another "
            "--output_dir."
        )
    there = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    different = [
        f"{key}: {value!r}, not {there[key]!r}" for key, value in asked.items() if value != there.get(key, value)
    ]
    if different:
        raise ValueError(f"{args.output_dir} holds another run ({'; '.join(different)}); choose another --output_dir.")
    if not there and args.process_index == 0:
        write_json(path, asked)
