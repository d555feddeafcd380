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
    from hf_reinforce.training.checkpoints import is_finished, last_checkpoint, load_finished

    # transformers turns do_eval on by itself where there is an eval_strategy
    if args.do_train or not args.do_eval or args.eval_strategy != "no":
        checkpoint = asked_checkpoint(args) or last_checkpoint(args)
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


def asked_checkpoint(args):
    """The folder of `--resume_from_checkpoint`; None for the last checkpoint, which must be there if it is True."""
    from hf_reinforce.training.checkpoints import last_checkpoint

    asked = args.resume_from_checkpoint
    if asked is None:
        return None
    if str(asked).lower() == "true":
        if last_checkpoint(args) is None:
            raise ValueError(
                f"--resume_from_checkpoint {asked}: {args.output_dir} has no checkpoint; leave it out to begin."
            )
        return None
    if not (Path(asked) / "trainer_state.json").is_file():
        raise ValueError(
            f"--resume_from_checkpoint {asked} is no folder of a checkpoint (it has no trainer_state.json). Without "
            "the flag a run goes on from its last checkpoint; to begin anew, choose another --output_dir."
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


def check_same_run(output_dir, asked, write) -> None:
    """Refuses to go on with what was begun with other settings.

    Args:
        output_dir: folder of the run; its `run.json` keeps the settings.
        asked: settings of this run; those that the file lacks are not compared.
        write: whether this process writes the file where there is none.

    Raises:
        ValueError: if a setting differs; the message names it.
    """
    path = Path(output_dir) / "run.json"
    if path.exists():
        there = json.loads(path.read_text(encoding="utf-8"))
        different = [
            f"{key}: {value!r}, not {there[key]!r}" for key, value in asked.items() if value != there.get(key, value)
        ]
        if different:
            raise ValueError(
                f"{output_dir} holds another run ({'; '.join(different)}); choose another --output_dir, or ask for "
                "the same."
            )
    elif write:
        write_json(path, asked)
