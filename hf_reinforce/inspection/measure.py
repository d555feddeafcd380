"""What an inspection measures: targets by operation, what they contradict, duplicates."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray
from tqdm.auto import tqdm

from hf_reinforce import schema
from hf_reinforce.augmentations.base import Mask, valid
from hf_reinforce.cards.statistics import StoredTargets, Sums, batches, num_rows
from hf_reinforce.store.config import ReinforcementConfig

_EXAMPLES = 100


@dataclass(frozen=True)
class Disagreement:
    """An image whose label is not what the teacher sees; probabilities are means over its unmixed views.

    Attributes:
        row: row of the source.
        position: row of the reinforced data set.
        image_hash: hash of the encoded image.
        label: its label.
        label_probability: probability of the label, 0 where it never is among the top k.
        prediction: the most likely class.
        probability: its probability.
    """

    row: int
    position: int
    image_hash: str
    label: int
    label_probability: float
    prediction: int
    probability: float


def measure(shards: Sequence[str], config: ReinforcementConfig, most: int) -> dict[str, Any]:
    """Reads every target once; memory does not grow with their number, and by about 100 bytes with each image.

    Args:
        shards: the Parquet files of a configuration, in order.
        config: its configuration.
        most: disagreements that are kept.

    Returns:
        The figures of `inspection.json`: of all targets, `everything` and by operation and strength, `groups`;
        `compared_rows`, images with a label and an unmixed view; `disagreeing_rows`, those of them whose mean target
        has another most likely class; `disagreements`, the most certain of these; and `duplicates`.

    Raises:
        ValueError: if there are no targets, or a shard is damaged.
    """
    sums, images, total = _Sums(config, most), [], sum(map(num_rows, shards))
    if not total:
        raise ValueError(
            "The reinforced data set has no rows to inspect; run the command that reinforces it again, or publish it "
            "again if shards are missing."
        )
    columns = (schema.SOURCE_ROW, schema.IMAGE_HASH, schema.AUGMENTATION_PARAMS)
    with tqdm(total=total, desc="Inspecting", unit="row") as bar:
        for batch in batches(shards, config, columns):
            targets = StoredTargets.read(batch, config)
            sums.add_views(targets, batch.column(schema.AUGMENTATION_PARAMS).flatten())
            hashes = np.array(batch.column(schema.IMAGE_HASH).to_pylist(), "S16")
            images.append((batch.column(schema.SOURCE_ROW).to_numpy(), hashes, targets.label))
            bar.update(len(batch))
    rows, hashes, labels = map(np.concatenate, zip(*images, strict=True))
    everything, *groups = sums.sorted_groups()
    return {
        "num_rows": total,
        "num_bytes": sum(Path(shard).stat().st_size for shard in shards),
        "captured_mass": round(sums.mass / everything["targets"], 6),
        "everything": everything,
        "groups": groups,
        "compared_rows": sums.compared,
        "disagreeing_rows": sums.disagreeing,
        "disagreements": [
            Disagreement(int(rows[at]), at, hashes[at].decode(), int(labels[at]), own, prediction, probability)
            for at, own, prediction, probability in sums.disagreements
        ],
        "duplicates": duplicates(hashes, rows, labels),
    }


class _Sums(Sums):
    """Adds up what else an inspection is made of."""

    def __init__(self, config: ReinforcementConfig, most: int) -> None:
        super().__init__(config)
        self.most = most
        self.compared = self.disagreeing = 0
        self.groups: dict[tuple[str, str], NDArray[np.float64]] = {}
        self.disagreements: list[tuple[int, float, int, float]] = []

    def add_views(self, targets: StoredTargets, params: pa.StructArray) -> None:
        """Adds the targets of some images with the parameters of all their views."""
        policy, known = self.config.policy, np.broadcast_to(targets.label[:, None] >= 0, targets.hit.shape)
        values = np.stack([np.ones(known.shape), targets.entropy, targets.confidence, targets.hit, known])
        values = values.reshape(len(values), -1)
        self._add_group("all", "", values)
        for operation in policy.operations:
            if operation.field is not None:
                for name, strength, mask in operation.bins(params.field(operation.field), policy.image_size):
                    self._add_group(name, strength, values[:, mask])
        unmixed = np.ones(len(params), bool)
        for mixing in policy.mix_operations:
            unmixed &= ~valid(params.field(mixing.field))
        self._compare(targets, unmixed.reshape(known.shape))
        self.add(targets)

    def _add_group(self, operation: str, strength: str, values: NDArray[np.float64]) -> None:
        sums = self.groups.setdefault((operation, strength), np.zeros(len(values)))
        sums += values.sum(axis=1)

    def _compare(self, targets: StoredTargets, unmixed: Mask) -> None:
        """Counts and keeps the images whose mean target contradicts their label."""
        chosen = np.flatnonzero((targets.label >= 0) & unmixed.any(axis=1))
        label = targets.label[chosen]
        mean = targets.mean_of(unmixed)[chosen]
        prediction, index = mean.argmax(axis=1), np.arange(len(chosen))
        probability, own = mean[index, prediction], mean[index, label]
        wrong = np.flatnonzero(prediction != label)
        self.compared += len(chosen)
        self.disagreeing += len(wrong)
        for i in wrong[np.argsort(own[wrong] - probability[wrong], kind="stable")[: self.most]]:
            found = round(float(own[i]), 6), int(prediction[i]), round(float(probability[i]), 6)
            self.disagreements.append((self.rows + int(chosen[i]), *found))
        self.disagreements.sort(key=lambda item: item[1] - item[3])
        del self.disagreements[self.most :]

    def sorted_groups(self) -> list[dict[str, Any]]:
        """Operations in the order of the policy, their strengths by value if they are numbers."""
        names = [name for name, _ in self.groups]
        found = []
        for name, strength in sorted(self.groups, key=lambda group: (names.index(group[0]), _number(group[1]))):
            count, entropy, confidence, hits, known = self.groups[name, strength].tolist()
            if count:
                found.append(
                    {
                        "operation": name,
                        "strength": strength,
                        "targets": int(count),
                        "entropy": round(entropy / count, 6),
                        "confidence": round(confidence / count, 6),
                        "agreement": round(hits / known, 6) if known else None,
                    }
                )
        return found


def _number(strength: str) -> float:
    try:
        return float(strength)
    except ValueError:
        return 0.0


def duplicates(hashes: NDArray[Any], rows: NDArray[np.int64], labels: NDArray[np.int64]) -> dict[str, Any]:
    """Images that are there more than once.

    Args:
        hashes: of their encoded bytes, [N].
        rows: their rows of the source, [N].
        labels: their labels, -1 where there is none, [N].

    Returns:
        `images`: distinct ones with more than one copy; `rows` that hold one of them; `with_different_labels`: images
        whose copies have different labels; up to 100 `examples`, those with different labels first.
    """
    order = np.lexsort((rows, hashes))
    _, starts, counts = np.unique(hashes[order], return_index=True, return_counts=True)
    several = counts > 1
    groups = [order[start : start + n] for start, n in zip(starts[several], counts[several], strict=True)]
    groups.sort(key=lambda group: (len(set(labels[group])) == 1, rows[group[0]]))
    return {
        "images": len(groups),
        "rows": int(counts[several].sum()),
        "with_different_labels": sum(len(set(labels[group])) > 1 for group in groups),
        "examples": [
            {schema.IMAGE_HASH: hashes[g[0]].decode(), "rows": rows[g].tolist(), "labels": labels[g].tolist()}
            for g in groups[:_EXAMPLES]
        ],
    }
