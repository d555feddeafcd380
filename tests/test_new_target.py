"""Two targets that no other file knows, a vector per view and a number per row: a class and an entry in `TARGETS`."""

import json
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from datasets import List, Value
from tiny import TinyNet, tiny_dataset, tiny_teacher
from torch.nn import functional as F

from hf_reinforce import KDTrainer, KDTrainingArguments, ReinforcementConfig, load_policy, load_reinforced, reinforce
from hf_reinforce.cards.dataset_card import write_dataset_card
from hf_reinforce.cards.inspection import inspect_dataset
from hf_reinforce.generation.reinforcer import Reinforcer
from hf_reinforce.targets import TARGETS, ClassDistribution, Target

ROWS, N, D, SIZE = 150, 3, 6, 16


@dataclass(frozen=True)
class Embedding(Target):
    """A vector of each view; a student comes as near to it as it can."""

    kind: ClassVar[str] = "embedding"
    per: ClassVar[str] = "view"
    encodings: ClassVar[dict[str, str]] = {"image_embedding_0": "BYTE_STREAM_SPLIT"}
    column: ClassVar[str] = "image_embedding_0"

    size: int
    scale: float = 1.0

    @property
    def feature(self):
        return List(Value("float32"), length=self.size)

    def encode(self, answer):
        return pa.FixedSizeListArray.from_arrays(pa.array(answer.float().numpy().reshape(-1)), type=self.arrow_type)

    def read(self, record):
        return {"embedding": record}

    def collate(self, samples):
        return {"embedding": torch.as_tensor(np.stack([sample["embedding"] for sample in samples]))}

    def exact(self, answer):
        return {"embedding": answer.float()}

    def loss(self, outputs, batch, temperature):
        return F.mse_loss(outputs, batch["embedding"], reduction="none").mean(-1)

    def figures(self, records):
        return {"norm": np.linalg.norm(records.flatten().to_numpy().reshape(-1, self.size), axis=1)}


@dataclass(frozen=True)
class Score(Target):
    """A number of each row: how bright its image is. The first output of a student learns it."""

    kind: ClassVar[str] = "score"
    per: ClassVar[str] = "row"
    column: ClassVar[str] = "brightness"
    feature: ClassVar[Value] = Value("float32")
    words: ClassVar[str] = "how bright the image is"

    def encode(self, answer):
        return pa.array(answer.float().numpy())

    def read(self, record):
        return {"brightness": np.float32(record)}

    def collate(self, samples):
        scores = torch.tensor(np.stack([sample["brightness"] for sample in samples]))
        if not ((scores >= 0) & (scores <= 1)).all():
            raise ValueError(f"Brightness must lie in [0, 1], not {scores.min()} to {scores.max()}.")
        return {"brightness": scores}

    def loss(self, outputs, batch, temperature):
        return (outputs[:, 0] - batch["brightness"]).square()

    def figures(self, records):
        return {"share of white": records.to_numpy()}


class Answering:
    """What any teacher needs, but its answer and its target."""

    def with_classes(self, names, class_map=None):
        return self

    def to(self, device):
        return self

    def describe(self):
        return [{**tiny_teacher().describe()[0], "name": type(self).__name__}]

    def check_processes(self):
        pass


class Embedder(Answering):
    def target(self, **options):
        return Embedding((), D, **options)

    def __call__(self, views):
        assert views.shape[1:] == (3, SIZE, SIZE)
        return torch.stack([views.float().mean((1, 2, 3)) / 255 * (place + 1) for place in range(D)], -1)


class Scorer(Answering):
    def target(self, **options):
        return Score(())

    def __call__(self, images):
        assert all(image.dtype == torch.uint8 and image.shape[0] == 3 for image in images)
        return torch.stack([image.float().mean() / 255 for image in images])


@pytest.fixture(scope="module")
def known():
    with pytest.MonkeyPatch.context() as patch:
        for target in (Embedding, Score):
            patch.setitem(TARGETS, target.kind, target)
        yield


def make(folder, policy="mixing_randaug", num_samples=N, teachers=None, **options):
    options = {"num_samples": num_samples, "shard_size": 64, "seed": 5, "device": "cpu", "num_workers": 1, **options}
    teachers = [Embedder(), Scorer()] if teachers is None else teachers
    return reinforce(tiny_dataset(ROWS), teachers, load_policy(policy, SIZE), folder, **options)


@pytest.fixture(scope="module")
def folder(known, tmp_path_factory):
    return make(tmp_path_factory.mktemp("plus"))


@pytest.fixture(scope="module")
def dataset(folder):
    return load_reinforced(str(folder.parent), folder.name, source=tiny_dataset(ROWS))


def test_the_configuration_is_of_schema_version_2(folder):
    data = json.loads((folder / "reinforcement.json").read_text())
    assert list(data)[:5] == ["schema_version", "policy", "num_samples", "targets", "seed"]
    assert data["schema_version"] == 2
    named = json.loads(json.dumps([*Embedder().describe(), *Scorer().describe()]))
    assert data["targets"] == [
        {"kind": "embedding", "teachers": named[:1], "size": D, "scale": 1.0},
        {"kind": "score", "teachers": named[1:]},
    ]
    config = ReinforcementConfig.load(folder)
    assert config.targets == (Embedding((named[0],), D), Score((named[1],)))
    assert config.teachers == tuple(named) and config.classes is config.class_names is None
    assert config.to_dict() == data
    for change, message in (
        ({"kind": "smell"}, r"targets\[0\].kind must be one of \['class_distribution', 'embedding', 'score'\]"),
        ({"size": "big"}, r"targets\[0\].size must be a whole number, not 'big'"),
        ({"colour": 1}, r"Embedding: missing keys \[\], unknown keys \['colour'\]"),
    ):
        with pytest.raises(ValueError, match=message):
            ReinforcementConfig.from_dict({**data, "targets": [{**data["targets"][0], **change}]})


def test_answers_are_stored_and_read_back(dataset):
    for position in (0, 7, ROWS - 1):
        found = [dataset.target(position, slot) for slot in range(N)]
        score = Scorer()([dataset.image(position)])
        for slot in range(N):
            answer = Embedder()(dataset.view(position, slot)[None])[0].numpy()
            np.testing.assert_allclose(found[slot]["embedding"], answer, rtol=1e-5)
            assert found[slot]["brightness"] == score.numpy()[0]


def test_columns_have_their_own_shape_and_encoding(folder):
    file = pq.ParquetFile(next(folder.glob("*.parquet")))
    columns = file.schema_arrow
    assert columns.field("brightness").type == pa.float32()
    assert columns.field("image_embedding_0").type.list_size == N
    group = file.metadata.row_group(0)
    encodings = {group.column(i).path_in_schema: group.column(i).encodings for i in range(group.num_columns)}
    (own,) = (found for path, found in encodings.items() if path.startswith("image_embedding_0"))
    assert "BYTE_STREAM_SPLIT" in own and "RLE_DICTIONARY" in encodings["brightness"]


def test_added_reinforcements_are_those_of_one_run_and_a_row_is_asked_about_once(known, folder, tmp_path, monkeypatch):
    asked, answer = [], Scorer.__call__
    monkeypatch.setattr(Scorer, "__call__", lambda self, images: asked.append(len(images)) or answer(self, images))
    make(tmp_path, num_samples=2)
    raised = make(tmp_path, num_samples=N)
    assert sum(asked) == ROWS and len(list(folder.glob("*.parquet"))) == 3
    for shard in folder.glob("*.parquet"):
        assert (raised / shard.name).read_bytes() == shard.read_bytes()


def test_a_student_learns_from_all_targets(dataset, tmp_path):
    model = TinyNet(D, 1)
    args = KDTrainingArguments(
        str(tmp_path), max_steps=12, per_device_train_batch_size=16, report_to="none", learning_rate=0.01, use_cpu=True
    )
    trainer = KDTrainer(model, args, train_dataset=dataset)
    batch = dataset.collate([dataset[position] for position in range(4)])
    assert batch["embedding"].shape == (4, D) and batch["brightness"].shape == (4,)
    logits = model(torch.zeros(4, 3, SIZE, SIZE))
    expected = sum(target.loss(logits, batch, 1.0) for target in dataset.targets)
    torch.testing.assert_close(trainer._distillation_loss(logits, torch.zeros(4), batch), expected)
    before = trainer.compute_loss(model, batch).item()
    trainer.train()
    assert trainer.compute_loss(model, batch).item() < before / 2


def test_what_does_not_fit_is_refused(folder, dataset):
    with pytest.raises(ValueError, match="Brightness must lie in"):  # before a damaged value is used
        dataset.collate([dataset[0], {**dataset[1], "brightness": np.float32(2)}])
    with pytest.raises(ValueError, match="embedding cannot be made from a label; leave plain_fraction"):
        load_reinforced(str(folder.parent), source=tiny_dataset(ROWS), plain_fraction=0.1)
    with pytest.raises(ValueError, match="column of its own"):
        Reinforcer([tiny_teacher(), tiny_teacher()], load_policy("rrc", SIZE), 1)


def test_beside_a_distribution_over_classes(known, tmp_path):
    folder = make(tmp_path, "rrc", teachers=[tiny_teacher(), Scorer()])
    config = ReinforcementConfig.load(folder)
    assert config.schema_version == 2 and [type(target) for target in config.targets] == [ClassDistribution, Score]
    assert config.num_classes == 5 and config.class_names == config.classes.class_names
    alone = ReinforcementConfig.load(make(tmp_path / "alone", "rrc", teachers=tiny_teacher()))
    assert alone.targets == config.targets[:1] and alone.schema_version == 1
    assert any(difference.startswith("targets: ") for difference in config.differences(alone))


def test_the_card_and_the_inspection_say_what_was_measured(folder, dataset, tmp_path):
    write_dataset_card(folder.parent)
    card = (folder.parent / "README.md").read_text()
    assert "`image_embedding_0`: embedding" in card and "`brightness`: how bright the image is" in card
    brightness = np.mean([dataset.target(position, 0)["brightness"] for position in range(ROWS)])
    norms = [np.linalg.norm(dataset.target(p, slot)["embedding"]) for p in range(ROWS) for slot in range(N)]
    assert f"| brightness: share of white | {brightness:.3f} |" in card
    assert f"| image_embedding_0: norm | {np.mean(norms):.3f} |" in card
    content = inspect_dataset(folder, tmp_path)
    expected = {"image_embedding_0: norm": np.mean(norms), "brightness: share of white": brightness}
    assert content["figures"] == pytest.approx(expected, rel=1e-5) and content["agreement"] is None
    flips = [group for group in content["groups"] if group["operation"] == "horizontal flip"]
    assert sum(group["targets"] for group in flips) == ROWS * N and flips[0]["figures"].keys() == expected.keys()
