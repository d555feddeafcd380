"""An operation that no other file knows: one class and one entry in `AUGMENTATIONS` are all that it takes."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from datasets import Value
from tiny import tiny_dataset, tiny_teacher
from torchvision.transforms.v2.functional import gaussian_blur

from hf_reinforce import ReinforcementConfig, load_policy, load_reinforced
from hf_reinforce.augmentations import AUGMENTATIONS, ViewAugmentation
from hf_reinforce.augmentations.policies import read_operation
from hf_reinforce.cards.dataset_card import write_dataset_card
from hf_reinforce.cards.inspection import inspect_dataset, inspection_tables
from hf_reinforce.cards.preview import draw
from hf_reinforce.generation.reinforce import reinforce

ROWS, N = 12, 4


@dataclass(frozen=True)
class GaussianBlur(ViewAugmentation):
    """Blurs every other view on average, with a sigma drawn evenly from 0.5 to `largest` + 0.5.

    Args:
        largest: spread of the sigmas in pixels.
        every_view: blur every view.
    """

    largest: float = 2.0
    every_view: bool = False

    name: ClassVar[str] = "gaussian_blur"
    field: ClassVar[str] = "blur"
    stored: ClassVar[dict] = {"sigma": Value("float32")}
    encoding: ClassVar[str] = "BYTE_STREAM_SPLIT"

    def sample(self, rng, height, width):
        applied, sigma = self.every_view or rng.random() < 0.5, float(np.float32(0.5 + self.largest * rng.random()))
        return {"sigma": sigma} if applied else None

    def apply(self, image, params, scale=1.0):
        return gaussian_blur(image, [5, 5], [params["sigma"] * scale] * 2)

    def describe(self):
        return f"blurred by a Gaussian of up to {self.largest:g} pixels"

    def caption(self, params):
        return f"blurred {params['sigma']:.1f}"

    def bins(self, params, size):
        sigma = np.array([np.inf if item is None else item["sigma"] for item in params.to_pylist()])
        for low, high in ((0, 1), (1, 3)):
            yield "blur", f"{low} to {high} px", (sigma > low) & (sigma <= high)


@dataclass(frozen=True)
class Plain(GaussianBlur):
    """The same with nothing but what every operation has."""

    describe, caption, bins = ViewAugmentation.describe, ViewAugmentation.caption, ViewAugmentation.bins
    encoding: ClassVar[str] = "DICTIONARY"


def made(operation, tmp_path, monkeypatch):
    """A dataset reinforced by a policy file that names the operation, and the images."""
    monkeypatch.setitem(AUGMENTATIONS, operation.name, operation)
    path = tmp_path / "blurred.yaml"
    path.write_text(
        "name: blurred\noperations:\n- random_resized_crop: {size: 16}\n"
        "- gaussian_blur: {largest: 1.5, every_view: false}\n- mixup: {p: 0.25}\n"
    )
    policy, data = load_policy(str(path)), tiny_dataset(ROWS)
    assert policy.operations[1] == operation(1.5)
    options = {"num_samples": N, "top_k": 3, "seed": 5, "device": "cpu", "source_name": "somebody/pets"}
    return reinforce(data, tiny_teacher(), policy, tmp_path / "plus", **options), data


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        yield made(GaussianBlur, tmp_path_factory.mktemp("blurred"), patch)


def drawn(folder):
    """Every sigma, None where a view is not blurred."""
    (path,) = folder.glob("*.parquet")
    views = [params for row in pq.read_table(path)["augmentation_params"].to_pylist() for params in row]
    return [params["blur"] and params["blur"]["sigma"] for params in views]


def test_parameters_are_sampled_stored_in_their_encoding_and_replayed(folder):
    folder, data = folder
    dataset = load_reinforced(str(folder.parent), "blurred", source=data)
    policy, rows, blurred = dataset.config.policy, pq.read_table(*folder.glob("*.parquet"))["source_row"], 0
    assert ReinforcementConfig.load(folder).policy == policy
    for position, row in enumerate(rows.to_pylist()):
        image = dataset.image(position)
        for slot in range(N):
            params = dataset.params(position, slot)
            assert params["blur"] == policy.sample(dataset.config.seed, row, slot, *image.shape[1:])["blur"]
            if params["mixup"] is None:
                view, plain = dataset.view(position, slot), policy.apply(image, {**params, "blur": None})
                assert torch.equal(view, policy.apply(image, params).float())
                assert torch.equal(view, plain.float()) == (params["blur"] is None)
                blurred += params["blur"] is not None
    assert 0.1 < blurred / (ROWS * N) < 0.8
    group = pq.ParquetFile(next(folder.glob("*.parquet"))).metadata.row_group(0)
    columns = [group.column(i) for i in range(group.num_columns)]
    own = [column for column in columns if "blur" in column.path_in_schema.split(".")]
    assert {"partner_params" in column.path_in_schema for column in own} == {True, False}, "and of its partner"
    for column in own:
        assert "BYTE_STREAM_SPLIT" in column.encodings and "RLE_DICTIONARY" not in column.encodings


def test_the_card_the_preview_and_the_inspection_say_it(folder, tmp_path, monkeypatch):
    folder, data = folder
    write_dataset_card(folder.parent)
    assert "2. blurred by a Gaussian of up to 1.5 pixels\n" in (folder.parent / "README.md").read_text()
    captions = []
    monkeypatch.setattr("matplotlib.axes.Axes.set_title", lambda self, text, **options: captions.append(text))
    draw(load_reinforced(str(folder.parent), "blurred", source=data), [0, 1, 2], tmp_path / "preview.png")
    found = [text.replace("\n", " ").split(",")[0] for text in captions if "blurred" in text]
    assert found == [f"blurred {sigma:.1f}" for sigma in drawn(folder)[: 3 * N] if sigma is not None] and found
    content = inspect_dataset(folder, tmp_path / "out", num_images=0)
    counts = {group["strength"]: group["targets"] for group in content["groups"] if group["operation"] == "blur"}
    sigmas = np.array([value for value in drawn(folder) if value is not None])
    assert counts == {"0 to 1 px": (sigmas <= 1).sum(), "1 to 3 px": (sigmas > 1).sum()} and min(counts.values()) > 0
    assert "\nblur " in inspection_tables(content)
    names = list(dict.fromkeys(group["operation"] for group in content["groups"]))
    assert names == ["crop, side", "blur", "mixup"], "in the order of the policy"


def test_what_it_does_not_say_has_a_default(tmp_path, monkeypatch):
    folder, _ = made(Plain, tmp_path, monkeypatch)
    operation = ReinforcementConfig.load(folder).policy.operations[1]
    assert operation.describe() == "gaussian blur: largest 1.5, every_view False"
    assert operation.caption({"sigma": 1.0}) == "blur"
    content = inspect_dataset(folder, tmp_path / "out", num_images=0)
    counts = {g["strength"]: g["targets"] for g in content["groups"] if g["operation"] == "gaussian blur"}
    blurred = sum(value is not None for value in drawn(folder))
    assert counts == {"no": ROWS * N - blurred, "yes": blurred}
    with pytest.raises(ValueError, match="gaussian_blur: every_view must be true or false, not 1"):
        read_operation({"gaussian_blur": {"every_view": 1}})


def test_operations_that_share_a_field_share_its_encoding():
    encodings = {}
    for operation in AUGMENTATIONS.values():
        assert encodings.setdefault(operation.field, operation.encoding) == operation.encoding, operation.field
