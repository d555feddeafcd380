"""Whether the shards of a reinforced data set are what was written."""

from pathlib import Path

from tqdm.auto import tqdm

from hf_reinforce.hub.repository import Repository
from hf_reinforce.store.parquet import file_checksum


def verify_shards(
    name_or_path: str, config_name: str | None = None, *, revision: str | None = None
) -> tuple[int, list[str]]:
    """Compares every byte of every shard with its recorded checksum.

    Args:
        name_or_path: Hub id, or a folder that `reinforce` wrote.
        config_name: the configuration, default the only one.
        revision: Hub revision.

    Returns:
        The number of shards that there should be, and a sentence for each that is damaged, missing or too many.

    Raises:
        ValueError: if it is no reinforced data set, unfinished, or made before checksums were recorded; the message
            says what to do.
    """
    repository = Repository.find(name_or_path, revision)
    config_name, config = repository.load_config(config_name)
    if not config.checksums:
        raise ValueError(
            f"{name_or_path} is not finished, or was made before checksums were recorded; run the command that "
            "reinforces it again to complete it."
        )
    remedy = "Run the command that reinforces it again: only this shard is computed."
    if any(teacher.get("kind") == "ml-dr" for teacher in config.teachers):
        remedy = "Import the archives again, into another folder."
    elif repository.commit is not None:
        remedy = "Delete it there to download it again."
    there = {Path(path).name: path for path in repository.shards(config_name, config.split)}
    problems = []
    for name in tqdm(sorted(config.checksums), desc="Verifying", unit="shard"):
        path = there.pop(name, None)
        if path is None:
            problems.append(f"{name} is missing in {repository.folder / config_name}. {remedy}")
        elif file_checksum(path) != config.checksums[name]:
            problems.append(f"{path} is damaged. {remedy}")
    problems += [f"{path} is no shard of this data set. Delete it." for path in there.values()]
    return len(config.checksums), problems
