"""Archives in the original implementation's format, written from its documented structure, are converted exactly."""

import importlib
import io
import os
import pickle
import random
import sys
import tarfile
import zipfile
import zlib
from itertools import chain
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image, load_dataset
from PIL import Image as PILImage
from recipe_modules import load_recipe
from tiny import encode_image, stored_rows, tiny_dataset, tiny_image
from torchvision.datasets import ImageFolder
from torchvision.transforms import InterpolationMode
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.v2 import functional as F

from hf_reinforce import ReinforcedDataset, ReinforcementConfig, load_policy, load_reinforced
from hf_reinforce.augmentations.policies import named_policy
from hf_reinforce.augmentations.rand_augment import OPERATIONS
from hf_reinforce.importers.ml_dr import import_ml_dr
from hf_reinforce.importers.ml_dr.config import policy_of
from hf_reinforce.importers.ml_dr.images import image_folder_order
from hf_reinforce.importers.ml_dr.unpickling import UnsafePickleError, read_members, safe_load
from hf_reinforce.targets.class_distribution import KL_BOUND, Targets, rounding_kl

SIZE, CLASSES, NUM_SAMPLES, TOP_K = 32, 5, 6, 3
MAGNITUDES = [0.0, 0.09, 0.09, 4.35, 4.35, 9.0, 0.27, 0.27, 0.27, 0.27, 7.0, 178.5, 0.0, 0.0]
CROP = {"random_resized_crop": {"enable": True, "size": SIZE}}
SMALL_CROP = {"resize": {"size": SIZE}, "random_crop": {"size": SIZE, "padding": 4}}
FLIP = {"random_horizontal_flip": {"enable": True, "p": 0.5}}
NORMALIZE = {"to_tensor": {"enable": True}, "normalize": {"mean": [0.485, 0.456, 0.406], "std": [0.2, 0.2, 0.2]}}
RANDAUG = {"rand_augment": {"enable": True, "p": 1.0}, "random_erase": {"enable": True, "p": 0.25}}
MIXING = {
    "mixup": {"enable": True, "alpha": 1.0, "div_by": 2.0, "p": 0.5},
    "cutmix": {"enable": True, "alpha": 1.0, "p": 0.5},
}
VARIANTS = {
    "rrc": {**CROP, **FLIP, **NORMALIZE},
    "mixing": {**MIXING, **CROP, **FLIP, **NORMALIZE},
    "randaug": {"uint8": {"enable": True}, **CROP, **FLIP, **RANDAUG, **NORMALIZE, "mixup": {"enable": False}},
    "mixing_randaug": {**CROP, **FLIP, **RANDAUG, **MIXING, **NORMALIZE},
    "small_randaug": {**SMALL_CROP, **FLIP, **RANDAUG, **NORMALIZE},
}
ORDER = ("resize", "random_crop", "random_resized_crop", "random_horizontal_flip", "rand_augment", "random_erase")


# --- what the original draws and stores ------------------------------------------------------------------------------


def draw_view(rng, names, height, width):
    """Parameters of one view: transform -> value, as the original stores it; None where it was skipped."""
    view = {}
    if "resize" in names:
        view["resize"] = SIZE
        view["random_crop"] = (rng.randrange(9), rng.randrange(9))
    else:
        h, w = rng.randint(8, height), rng.randint(8, width)
        view["random_resized_crop"] = (rng.randint(0, height - h), rng.randint(0, width - w), h, w)
    view["random_horizontal_flip"] = rng.random() < 0.5
    if "rand_augment" in names:
        steps = [rng.randrange(14) for _ in range(2)]
        signs = [rng.choice((-1, 1)) if 0 < op < 10 else 1 for op in steps]
        view["rand_augment"] = [(op, sign * MAGNITUDES[op]) for op, sign in zip(steps, signs, strict=True)]
        top, left = rng.randrange(16), rng.randrange(16)
        view["random_erase"] = (top, left, rng.randint(1, 16), rng.randint(1, 16)) if rng.random() < 0.5 else None
    return view


def draw(rng, variant, sizes, index, label):
    """One reinforcement: own and partner's view, mixing parameters, partner, probabilities."""
    names = {name for name, options in VARIANTS[variant].items() if options.get("enable", True)}
    partner = rng.randrange(len(sizes))
    own, other = draw_view(rng, names, *sizes[index]), draw_view(rng, names, *sizes[partner])
    mix = {}
    if "mixup" in names:
        mix["mixup"] = rng.random() / 2 if rng.random() < 0.5 else None
        top, left, bottom, right = rng.randrange(16), rng.randrange(16), rng.randint(16, 32), rng.randint(16, 32)
        box = tuple(np.int64(edge) for edge in (top, left, bottom, right))
        mix["cutmix"] = (np.float64(rng.random()), box) if rng.random() < 0.5 else None
    logits = torch.tensor([rng.gauss(0, 1) + 4 * (c == label) for c in range(CLASSES)])
    value, top = logits.softmax(-1).topk(TOP_K)
    shuffled = rng.sample(range(TOP_K), TOP_K)
    prob = [value[shuffled].tolist(), top[shuffled].tolist()]
    return {"own": own, "partner": other, "mix": mix, "id2": partner, "prob": tuple(prob)}


def is_mixed(item):
    return any(value is not None for value in item["mix"].values())


def compressed(item):
    """The positional list of `compress: true`."""
    mixed = is_mixed(item)
    result = [item["id2"] if mixed else None] if item["mix"] else []
    for name in ORDER:
        if name in item["own"]:
            result.append([item["own"][name], item["partner"][name]] if mixed else item["own"][name])
    if item["mix"]:
        cutmix = item["mix"]["cutmix"]
        result += [item["mix"]["mixup"], None if cutmix is None else [cutmix[0], *cutmix[1]]]
    return result


def uncompressed(item):
    """The dict of `compress: false`: pairs always, operations by name, transforms without parameters as ()."""
    result = {"to_tensor": ((), ()), "normalize": ((), ())}
    for name, value in item["own"].items():
        pair = value, item["partner"][name]
        if name == "rand_augment":
            pair = tuple([(OPERATIONS[op], magnitude) for op, magnitude in steps] for steps in pair)
        result[name] = pair
    return {**result, **item["mix"], **({"id2": item["id2"]} if item["mix"] else {})}


def saved(value, protocol=4, **options):
    buffer = io.BytesIO()
    torch.save(value, buffer, pickle_protocol=protocol, **options)
    return buffer.getvalue()


def record(index, items, layout=compressed):
    return saved((index, [{"params": layout(item), "prob": item["prob"]} for item in items]))


def configuration(variant, **further):
    augmentation = VARIANTS[variant]
    return {
        "dataset": "imagenet",
        "num_classes": CLASSES,
        "teacher": {"timm_ensemble": True, "name": "ig_resnext101_32x8d,ig_resnext101_32x16d"},
        "reinforce": {"num_samples": NUM_SAMPLES, "topk": TOP_K, "compress": True, "image_augmentation": augmentation},
        **further,
    }


def add(tar, name, data):
    info = tarfile.TarInfo(name)
    info.size = len(data)
    tar.addfile(info, io.BytesIO(data))


def write_archive(path, members):
    """A tar, a tar.gz or a folder with these members, in this order."""
    if not path.suffix:
        for name, data in members.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)
        return path
    with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tar:
        for name, data in members.items():
            add(tar, name, data)
    return path


class Original:
    """A small dataset, and reinforcements of it as the original would have drawn them."""

    def __init__(self, variant, num_rows=8, num_samples=NUM_SAMPLES, seed=0):
        self.variant, self.source = variant, tiny_dataset(num_rows, labels=CLASSES)
        self.images = [item["image"].convert("RGB") for item in self.source]
        self.sizes = [(image.height, image.width) for image in self.images]
        self.drawn = self.draw(num_samples, seed)

    def draw(self, num_samples, seed):
        rng = random.Random(seed)
        return [
            [draw(rng, self.variant, self.sizes, i, i % CLASSES) for _ in range(num_samples)]
            for i in range(len(self.sizes))
        ]

    def members(self, layout=compressed, drawn=None, folder="reinforced_data", with_config=True):
        """Members of an archive in a shuffled order, its configuration somewhere in between."""
        drawn = self.drawn if drawn is None else drawn
        found = {f"{folder}/{i}.pth.tar": record(i, items, layout) for i, items in enumerate(drawn)}
        if with_config:
            found[f"{folder}/config.pth.tar"] = saved(configuration(self.variant), protocol=2)
        names = sorted(found)
        random.Random(1).shuffle(names)
        return {name: found[name] for name in names}

    def archive(self, path, **options):
        return write_archive(path, self.members(**options))


def box(values):
    return dict(zip(("top", "left", "height", "width"), values, strict=True)) if values is not None else None


def stored_view(view):
    """A view's parameters as schema v1 has them."""
    if "random_crop" in view:
        top, left = view["random_crop"]
        crop = box((top - 4, left - 4, SIZE, SIZE))
    else:
        crop = box(view["random_resized_crop"])
    fields = {"crop": crop, "hflip": view["random_horizontal_flip"]}
    if "rand_augment" in view:
        fields["rand_augment"] = [{"op": op, "magnitude": float(np.float32(m))} for op, m in view["rand_augment"]]
        fields["erase"] = box(view["random_erase"])
    return fields


def stored_params(item, id_map=None):
    params = stored_view(item["own"])
    if item["mix"]:
        lam, cutmix = item["mix"]["mixup"], item["mix"]["cutmix"]
        params["mixup"] = None if lam is None else {"lam": float(np.float32(lam))}
        params["cutmix"] = None
        if cutmix is not None:
            x1, y1, x2, y2 = map(int, cutmix[1])
            params["cutmix"] = box((x1, y1, x2 - x1, y2 - y1))
        mixed = is_mixed(item)
        params["partner_row"] = (item["id2"] if id_map is None else id_map[item["id2"]]) if mixed else None
        params["partner_params"] = stored_view(item["partner"]) if mixed else None
    return params


def check_target(stored, prob):
    order = sorted(range(TOP_K), key=lambda i: -prob[0][i])
    assert stored["label"] == [prob[1][i] for i in order]
    exact = torch.tensor([[prob[0][i] for i in order]], dtype=torch.float64)
    targets = Targets(torch.tensor([stored["label"]]), exact.log().float(), (1 - exact.sum(-1)).log().float())
    found = Targets(targets.label, torch.tensor([stored["value"]]), torch.tensor([stored["tail"]]))
    assert rounding_kl(targets, found) <= KL_BOUND


def replay_original(item, images, index):
    """The mixed view, 0 to 255, by the original's rules, with torchvision's own functions."""

    def view(image, params):
        if "random_crop" in params:
            image = F.resize(F.pil_to_tensor(image), [SIZE], antialias=True)
            top, left = params["random_crop"]
            image = F.pad(image, [4])[:, top : top + SIZE, left : left + SIZE]
        else:
            top, left, height, width = params["random_resized_crop"]
            image = F.pil_to_tensor(image)[:, top : top + height, left : left + width]
            image = F.resize(image, [SIZE, SIZE], antialias=True)
        image = F.to_pil_image(image)
        if params["random_horizontal_flip"]:
            image = F.horizontal_flip(image)
        for op, magnitude in params.get("rand_augment", ()):
            image = _apply_op(image, OPERATIONS[op], magnitude, InterpolationMode.NEAREST, None)
        pixels = F.pil_to_tensor(image).float()
        if params.get("random_erase"):
            x, y, h, w = params["random_erase"]
            pixels[:, x : x + h, y : y + w] = 0
        return pixels

    own, other = view(images[index], item["own"]), view(images[item["id2"]], item["partner"])
    if item["mix"].get("mixup") is not None:
        lam = item["mix"]["mixup"]
        own = lam * own + (1 - lam) * other
    if item["mix"].get("cutmix") is not None:
        x1, y1, x2, y2 = item["mix"]["cutmix"][1]
        own[:, x1:x2, y1:y2] = other[:, x1:x2, y1:y2]
    return own


# --- conversion ------------------------------------------------------------------------------------------------------

FORMS = [(variant, compressed, "a.tar") for variant in VARIANTS]
FORMS += [("mixing_randaug", uncompressed, "a.tar.gz"), ("small_randaug", uncompressed, "extracted")]


@pytest.mark.parametrize(("variant", "layout", "name"), FORMS, ids=lambda item: getattr(item, "__name__", item))
def test_every_field_and_pixel_is_carried_over(variant, layout, name, tmp_path):
    original = Original(variant)
    archive = original.archive(tmp_path / name, layout=layout)
    folder = import_ml_dr([archive], original.source, tmp_path / "out", source_name="me/tiny", shard_size=3)
    config = ReinforcementConfig.load(folder)
    assert folder.name == variant and config.policy == load_policy(variant, SIZE)
    assert (config.num_samples, config.classes.top_k, config.num_classes) == (NUM_SAMPLES, TOP_K, CLASSES)
    assert [teacher["name"] for teacher in config.teachers] == ["ig_resnext101_32x8d", "ig_resnext101_32x16d"]
    for teacher in config.teachers:
        assert (teacher["kind"], teacher["weight_hash"]) == ("ml-dr", None)
        assert list(teacher["preprocessing"]["std"]) == [0.2, 0.2, 0.2]
    assert config.complete and config.pixels.reference_views and not (folder / ".import").exists()
    assert len(list(folder.glob("train-*-of-00003.parquet"))) == 3

    rows = stored_rows(folder)
    assert (rows["source_row"][:], rows["label"][:]) == (list(range(8)), [i % CLASSES for i in range(8)])
    check_rows(rows, original.drawn)
    dataset = load_reinforced(str(tmp_path / "out"), source=original.source)
    for i in range(8):
        for slot in range(0, NUM_SAMPLES, 2):
            expected = replay_original(original.drawn[i][slot], original.images, i)
            torch.testing.assert_close(dataset.view(i, slot), expected, rtol=0, atol=1e-4)


def check_rows(rows, drawn, id_map=None):
    """Parameters and targets of stored rows are those that were drawn for their images."""
    for row, items in zip(rows, drawn, strict=True):
        assert row["augmentation_params"] == [stored_params(item, id_map) for item in items]
        for stored, item in zip(row["teacher_logits"], items, strict=True):
            check_target(stored, item["prob"])


@pytest.mark.parametrize("kind", ["joblib", "legacy"])
def test_other_containers_of_plain_data_are_read(kind, tmp_path):
    original, members = Original("mixing"), {}
    for name, data in original.members().items():
        value, buffer = safe_load(data, name), io.BytesIO()
        if kind == "joblib":
            pytest.importorskip("joblib").dump(value, buffer, compress=True)
        else:
            torch.save(value, buffer, _use_new_zipfile_serialization=False)
        members[name] = buffer.getvalue()
    folder = import_ml_dr([write_archive(tmp_path / "a.tar", members)], original.source, tmp_path / "out")
    check_rows(stored_rows(folder), original.drawn)


def test_reinforcements_of_several_archives_and_folders_add_up(tmp_path):
    original = Original("mixing")
    parts = [original.drawn, original.draw(2, seed=1), original.draw(3, seed=2)]
    members = original.members(drawn=parts[1], folder="data/b") | original.members(drawn=parts[0], folder="data/a")
    first, second = write_archive(tmp_path / "first.tar.gz", members), tmp_path / "second.tar"
    original.archive(second, drawn=parts[2], layout=uncompressed)
    folder = import_ml_dr([first, second], original.source, tmp_path / "out")
    check_rows(stored_rows(folder), [[*a, *b, *c] for a, b, c in zip(*parts, strict=True)])
    assert ReinforcementConfig.load(folder).num_samples == NUM_SAMPLES + 5


def test_id_map_leads_to_the_rows_of_the_source(tmp_path):
    original, id_map = Original("mixing_randaug"), [5, 0, 7, 2, 1, 6, 3, 4]
    source = original.source.select(np.argsort(id_map))
    folder = import_ml_dr([original.archive(tmp_path / "a.tar")], source, tmp_path / "out", id_map=id_map)
    rows = stored_rows(folder)
    check_rows([rows[row] for row in id_map], original.drawn, id_map)
    expected = replay_original(original.drawn[2][1], original.images, 2)
    dataset = load_reinforced(str(tmp_path / "out"), source=source)
    torch.testing.assert_close(dataset.view(7, 1), expected, rtol=0, atol=1e-4)
    dataset = ReinforcedDataset(rows, ReinforcementConfig.load(folder), original.source)  # the images are looked for
    torch.testing.assert_close(dataset.view(7, 1), expected, rtol=0, atol=1e-4)


@pytest.mark.parametrize("stop", ["read", "write"])
def test_an_interrupted_import_goes_on_whatever_the_order_of_the_archive(stop, tmp_path, monkeypatch):
    module = importlib.import_module("hf_reinforce.importers.ml_dr.shards")
    monkeypatch.setattr(module, "BUFFERED_RECORDS", 3 * NUM_SAMPLES)
    original = Original("mixing")
    archives = [original.archive(tmp_path / "a.tar.gz"), original.archive(tmp_path / "b.tar")]
    members = {"reinforced_data/._0.pth.tar": b"junk", "README": b"", **dict(sorted(original.members().items()))}
    in_order = write_archive(tmp_path / "c.tar", members)
    whole = import_ml_dr([in_order, in_order], original.source, tmp_path / "whole", shard_size=3)
    calls, name, last = [], *(("safe_load", 14) if stop == "read" else ("write_shard", 2))
    real = getattr(module, name)

    def interrupted(*args):
        calls.append(args)
        if len(calls) == last:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(module, name, interrupted)
    with pytest.raises(KeyboardInterrupt):
        import_ml_dr(archives, original.source, tmp_path / "out", shard_size=3)
    with pytest.raises(ValueError, match="unfinished import of other archives"):
        import_ml_dr(archives[:1], original.source, tmp_path / "out", shard_size=3)
    import_ml_dr(archives, original.source, tmp_path / "out", shard_size=3)
    # Only the archive that was being read is read again.
    assert len(calls) == (14 + 8 if stop == "read" else 2 + 2)
    for path in sorted(whole.glob("*.parquet")):
        assert path.read_bytes() == (tmp_path / "out" / "mixing" / path.name).read_bytes()
    with pytest.raises(ValueError, match="already holds"):
        import_ml_dr(archives, original.source, tmp_path / "out", shard_size=3)


def test_images_that_cannot_be_replayed_are_left_out(tmp_path):
    original, rotated = Original("mixing", num_samples=12), PILImage.Exif()
    rotated[0x0112] = 6
    rows = [dict(item) for item in original.source.cast_column("image", Image(decode=False))]
    rows[2]["image"] = {"bytes": encode_image(original.images[2], "JPEG", exif=rotated), "path": None}
    source, archive = Dataset.from_list(rows, features=original.source.features), original.archive(tmp_path / "a.tar")
    folder = import_ml_dr([archive], source, tmp_path / "out", id_map=[0, 1, 2, 3, -1, 5, 6, 7])
    skipped = {item.row: item.error for item in ReinforcementConfig.load(folder).skipped}
    assert "EXIF orientation 6" in skipped[2] and skipped == {2: skipped[2], 4: "left out by the id map"}
    stored, expected = stored_rows(folder), []
    assert stored["source_row"][:] == [0, 1, 3, 5, 6, 7]
    for row in stored["source_row"]:
        drawn = original.drawn[row]
        usable = [n for n, item in enumerate(drawn) if not is_mixed(item) or item["id2"] not in (2, 4)]
        nearest = [next((n for n in usable if n >= slot), usable[0]) for slot in range(12)]
        expected.append([drawn[n] for n in nearest])
    check_rows(stored, expected)
    assert expected != [original.drawn[row] for row in stored["source_row"]]
    dataset = load_reinforced(str(tmp_path / "out"), source=source)
    for position in range(len(dataset)):
        dataset.view(position, 0)


def test_records_without_any_usable_partner_are_an_error(tmp_path):
    original = Original("mixing", num_samples=1)
    item = next(item for items in original.drawn for item in items if is_mixed(item))
    lost = original.drawn.index([item])
    item["id2"] = (lost + 1) % 8
    id_map = [-1 if i == item["id2"] else i for i in range(8)]
    with pytest.raises(ValueError, match=f"{lost}.pth.tar cannot be imported: all reinforcements of row {lost}"):
        import_ml_dr([original.archive(tmp_path / "a.tar")], original.source, tmp_path / "out", id_map=id_map)


@pytest.mark.parametrize("whole", [False, True])
def test_probabilities_that_fill_the_mass_and_those_of_all_classes(whole, tmp_path):
    original = Original("rrc")
    original.drawn[0][0]["prob"] = ([0.0, 1.0, 0.0], [1, 0, 4])  # nothing left
    original.drawn[0][1]["prob"] = ([0.25, 0.5, 0.2500001], [4, 0, 1])  # a little too much
    original.drawn[0][2]["prob"] = ([0.2, 0.2, 0.2], [4, 1, 0])  # ties
    for item in chain.from_iterable(original.drawn if whole else []):
        p, labels = item["prob"]
        rest = [c for c in range(CLASSES) if c not in labels]
        item["prob"] = ([*p, *[max(0.0, 1 - sum(p)) / len(rest)] * len(rest)], [*labels, *rest])
    folder = import_ml_dr([original.archive(tmp_path / "a.tar")], original.source, tmp_path / "out")
    found = stored_rows(folder)[0]["teacher_logits"]
    assert [item["label"][:3] for item in found[:3]] == [[0, 1, 2 if whole else 4], [0, 1, 4], [0, 1, 4]]
    assert all(np.isfinite(item["value"]).all() for item in found)
    tails = [0.0, 0.0, 0.0 if whole else 0.4]
    assert [round(float(np.exp(item["tail"])), 2) for item in found[:3]] == tails
    assert {item["tail"] == -np.inf for item in found} == {whole}


# --- what is refused -------------------------------------------------------------------------------------------------


class Call:
    """Pickles into a call."""

    def __init__(self, function, *args):
        self.function, self.args = function, args

    def __reduce__(self):
        return self.function, self.args


GADGETS = {
    "posix.system": Call(os.system, "touch HACKED"),
    "torch.serialization.load": Call(torch.load, "HACKED"),
    "builtins.eval": Call(eval, "open('HACKED', 'w')"),
    "builtins.getattr": Call(getattr, "", "join"),
    "collections.OrderedDict": __import__("collections").OrderedDict(a=1),
    "numpy._core.multiarray._reconstruct": np.arange(3),
    "torch._utils._rebuild_tensor_v2": torch.zeros(2),
    "pathlib": Path("x"),
}


@pytest.mark.parametrize("where", ["record", "config", "joblib", "raw", "legacy"])
@pytest.mark.parametrize("name", GADGETS)
def test_any_other_class_is_refused_by_name(name, where, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    original, gadget = Original("rrc", num_rows=2), GADGETS[name]
    value = (1, [{"params": [[gadget]], "prob": ([1.0], [0])}])
    data = {
        "record": lambda: saved(value),
        "config": lambda: saved({"reinforce": [{}, (gadget,)]}),
        "legacy": lambda: saved(value, _use_new_zipfile_serialization=False),
        "raw": lambda: pickle.dumps(value),
        "joblib": lambda: zlib.compress(pickle.dumps(value)),
    }[where]()
    victim = f"reinforced_data/{'config' if where == 'config' else '1'}.pth.tar"
    write_archive(tmp_path / "a.tar", {**original.members(), victim: data})
    with pytest.raises(UnsafePickleError, match=name.replace(".", r"\.")) as caught:
        import_ml_dr([tmp_path / "a.tar"], original.source, tmp_path / "out")
    assert victim in str(caught.value) and "a.tar" in str(caught.value)
    assert not Path("HACKED").exists()


def test_opcodes_cannot_reach_further():
    damaged = io.BytesIO()
    with zipfile.ZipFile(damaged, "w") as file:
        file.writestr("archive/data.pkl", b"\x80\x04K\x01")
    stolen = [
        b"\x80\x04cnumpy\ndtype\n(X\x01\x00\x00\x00OI00\nI01\ntR.",  # the object dtype
        b"\x80\x04cnumpy\ndtype\n}X\x08\x00\x00\x00__call__I1\nsb.",  # attributes of what is allowed
        b"\x80\x04cnumpy\ndtype\n)\x81.",  # its __new__
        b"\x80\x04(cos\nsystem\no.",
        b"\x80\x04(S'ls'\nios\nsystem\n.",
        b"\x80\x04\x8c\x08builtins\x8c\x04exec\x93.",
        b"\x80\x04\x82\x01.",  # extension registry
        b"\x80\x04cnumpy\ncore.multiarray.scalar\n.",
        *(b"\x80\x02Xsomething", b"\x80\x04}(K\x01", b"", b"no pickle", b"PK\x03\x04 and no more"),
        zlib.compress(pickle.dumps([1] * 100))[:-8],
        damaged.getvalue(),
    ]
    for data in stolen:
        with pytest.raises(ValueError, match="^there"):
            safe_load(data, "there")


def test_numbers_of_numpy_are_read():
    values = [np.int64(-3), np.float32(0.5), np.float64(0.1), np.bool_(True), np.uint8(200), np.dtype(">i4").type(7)]
    for protocol in (3, 4, 5):
        loaded = safe_load(pickle.dumps(values, protocol), "x")
        assert loaded == values and {type(value) for value in loaded} == {int, float, bool}
    big = b"\x80\x04cnumpy.core.multiarray\nscalar\n(cnumpy\ndtype\n(X\x02\x00\x00\x00i4I00\nI01\ntR"
    big += b"(I3\nX\x01\x00\x00\x00>NNNI-1\nI-1\nI0\ntbC\x04\x00\x00\x01\x00tR."
    assert safe_load(big, "x") == 256  # of the older NumPy, whose module had another name


@pytest.mark.parametrize(
    "name", ["../0.pth.tar", "/tmp/0.pth.tar", "a/../../0.pth.tar", "symlink", "hardlink", "fifo"]
)
def test_members_that_lead_elsewhere_are_refused(name, tmp_path):
    original = Original("rrc", num_rows=2)
    path = original.archive(tmp_path / "a.tar")
    kinds = {"symlink": tarfile.SYMTYPE, "hardlink": tarfile.LNKTYPE, "fifo": tarfile.FIFOTYPE}
    with tarfile.open(path, "a") as tar:
        info = tarfile.TarInfo("reinforced_data/7.pth.tar" if name in kinds else name)
        info.type, info.linkname = kinds.get(name, tarfile.REGTYPE), "/etc/passwd" if name in kinds else ""
        tar.addfile(info)
    with pytest.raises(ValueError, match="is a link or device, or its name leads out of the archive"):
        import_ml_dr([path], original.source, tmp_path / "out")
    folder = original.archive(tmp_path / "extracted")
    (folder / "7.pth.tar").symlink_to("/etc/passwd")
    with pytest.raises(ValueError, match="is a link"):
        list(read_members(folder))


@pytest.mark.parametrize("name", ["a.tar", "a.tar.gz"])
def test_truncated_archives_are_an_error(name, tmp_path):
    data = Original("rrc").archive(tmp_path / name).read_bytes()
    size = len(data.rstrip(b"\0")) if name == "a.tar" else len(data)
    parts = [data[:stop] for stop in (0, 100, 700, size // 2, size // 512 * 512 - 512, size - 4)]
    for part in (*parts, b"<html>not found</html>" * 100):
        (tmp_path / "part.tar").write_bytes(part)
        with pytest.raises(ValueError, match="part.tar is truncated, damaged or no tar archive|cannot be read"):
            for member in read_members(tmp_path / "part.tar"):
                safe_load(member.data, member.name)


def change(function):
    """A fault: the record of image 3 is another value."""

    def apply(members, original):
        value = safe_load(members["reinforced_data/3.pth.tar"], "3")
        members["reinforced_data/3.pth.tar"] = saved(function(value))

    return apply


def first(**changes):
    return change(lambda value: (value[0], [{**value[1][0], **changes}, *value[1][1:]]))


def params(function):
    """A fault in the parameters of the first reinforcement."""
    return change(lambda v: (v[0], [{**v[1][0], "params": function(list(v[1][0]["params"]))}, *v[1][1:]]))


def parameter(position, new):
    return params(lambda p: [*p[:position], new, *p[position + 1 :]])


def mixed(partner, mixup, cutmix, crop=None):
    """A fault in a reinforcement that is mixed; the partner's view is the own one unless its crop is given."""

    def apply(p):
        own = [p[1][0], p[2][0]] if type(p[1][0]) in (tuple, list) else p[1:3]
        pairs = [[own[0], own[0] if crop is None else crop[0]], [own[1], own[1]]]
        return [partner, *pairs, mixup, cutmix]

    return params(apply)


def member(name, data=None):
    """A fault in the archive: a record is left out, repeated or another one."""

    def apply(members, original):
        record_3 = members["reinforced_data/3.pth.tar"]
        members[f"reinforced_data/{name}.pth.tar"] = record_3 if data is None else data(original)

    return apply


FAULTS = [
    ("3.pth.tar cannot be imported: it is the record of image 4", change(lambda v: (4, v[1]))),
    ("has 5 reinforcements of 3 classes, where others have 6 of 3", change(lambda v: (v[0], v[1][1:]))),
    (
        "has 6 reinforcements of 2 classes, where others have 6 of 3",
        change(lambda v: (v[0], [{**i, "prob": (i["prob"][0][:2], i["prob"][1][:2])} for i in v[1]])),
    ),
    ("has class 5, but there are 5 classes", first(prob=([0.1, 0.2, 0.3], [1, 5, 2]))),
    ("names a class twice", first(prob=([0.1, 0.2, 0.3], [1, 1, 2]))),
    ("sum to more than 1", first(prob=([0.9, 0.2, 0.3], [0, 1, 2]))),
    ("do not lie in", first(prob=([float("nan"), 0.2, 0.3], [0, 1, 2]))),
    ("not a list of probabilities", first(prob=([0.1, 0.2, 0.3], [0, 1]))),
    ("expected structure", change(lambda v: (v[0], [3, 4]))),
    ("it is no index", change(lambda v: {"id": v[0]})),
    ("no index with a list", change(lambda v: (v[0], []))),
    ("has 5 parameters where policy 'randaug' stores 4", params(lambda p: [*p, 1])),
    ("a crop is missing", parameter(0, None)),
    ("not 4 of the expected type", parameter(0, (1.5, 2, 3, 4))),
    ("box of random_resized_crop", parameter(0, (-1, 0, 10, 10))),
    ("a crop reaches beyond the image", parameter(0, (0, 0, 100, 10))),
    ("horizontal_flip is not one of", parameter(1, "yes")),
    ("operation of rand_augment", parameter(2, [(14, 1.0), (0, 0.0)])),
    ("box of random_erasing", parameter(3, (30, 0, 10, 10))),
    ("has no records of the images [3]", lambda members, original: members.pop("reinforced_data/3.pth.tar")),
    ("several of [3]", member("03")),
    ("beyond the 8", member("8", lambda original: record(8, original.drawn[0]))),
    ("describes the policy", member("b/config", lambda original: saved(configuration("rrc")))),
    ("does not have reinforce", member("config", lambda original: saved({"reinforce": None}))),
]
MIXED_FAULTS = [
    ("a partner is named where nothing is mixed", mixed(3, None, None)),
    ("weight of mixup", mixed(3, 1.5, None)),
    ("cutmix lies outside", mixed(3, None, [0.5, 0, 0, 33, 10])),
    ("negative side", mixed(3, None, [0.5, 10, 0, 5, 10])),
    ("no crop of its partner", mixed(3, 0.2, None, crop=[None])),
    ("not a natural number", mixed(-2, 0.2, None)),
    ("beyond the 8", mixed(8, 0.2, None)),
]


ALL_FAULTS = [("randaug", *item) for item in FAULTS] + [("mixing", *item) for item in MIXED_FAULTS]


@pytest.mark.parametrize(("variant", "message", "fault"), ALL_FAULTS, ids=[item[1] for item in ALL_FAULTS])
def test_faults_are_named(variant, message, fault, tmp_path):
    original = Original(variant)
    members = original.members()
    fault(members, original)
    config = members.pop("reinforced_data/config.pth.tar")
    archive = write_archive(tmp_path / "a.tar", {"reinforced_data/config.pth.tar": config, **members})
    with pytest.raises(ValueError) as caught:
        import_ml_dr([archive], original.source, tmp_path / "out")
    assert message in str(caught.value) and "a.tar" in str(caught.value)
    assert not list((tmp_path / "out").rglob("*.parquet"))


def test_wrong_images_are_noticed(tmp_path):
    original = Original("randaug", num_samples=30)
    archive = original.archive(tmp_path / "a.tar")

    def convert(name, **options):
        return import_ml_dr([archive], original.source, tmp_path / name, **options)

    with pytest.raises(ValueError, match="id map does not lead to the images"):
        convert("shifted", id_map=[1, 2, 3, 4, 5, 6, 7, 0])
    small = Original("small_randaug", num_samples=30)
    archive = small.archive(tmp_path / "b.tar")  # crops of a resized image tell nothing, but the labels do
    with pytest.raises(ValueError, match="most likely class is the label of the image for only"):
        convert("shifted", id_map=[1, 2, 3, 4, 5, 6, 7, 0])
    convert("unchecked", id_map=[1, 2, 3, 4, 5, 6, 7, 0], label_column="", num_classes=CLASSES)
    for id_map in ([0, 0, *range(2, 8)], list(range(1, 9)), [-2, *range(1, 8)], [0.5] * 8, [[0, 1]], [-1] * 8):
        with pytest.raises(ValueError, match="The id map must be a list"):
            convert("out", id_map=id_map)


def test_classes_and_policy_are_asked_for_where_they_are_not_known(tmp_path):
    original = Original("randaug")
    archive = original.archive(tmp_path / "a.tar", with_config=False)
    with pytest.raises(ValueError, match="has a config.pth.tar; say which policy"):
        import_ml_dr([archive], original.source, tmp_path / "out")
    with pytest.raises(ValueError, match="it has 4 parameters where policy 'rrc' stores 2"):
        import_ml_dr([archive], original.source, tmp_path / "wrong", policy=load_policy("rrc", SIZE))
    policy, teachers = load_policy("randaug", SIZE), ["timm/resnext101_32x8d.fb_wsl_ig1b_ft_in1k"]
    folder = import_ml_dr([archive], original.source, tmp_path / "out", policy=policy, teachers=teachers)
    assert ReinforcementConfig.load(folder).teachers[0]["name"] == teachers[0]
    for options in ({"num_classes": 7}, {"label_column": "", "policy": policy}):
        with pytest.raises(ValueError, match="number of classes must be given once or alike"):
            import_ml_dr([archive], original.source, tmp_path / "none", **{"policy": policy, **options})
    with pytest.raises(ValueError, match="missing: .*absent.tar"):
        import_ml_dr([tmp_path / "absent.tar"], original.source, tmp_path / "out")


@pytest.mark.parametrize(
    ("augmentation", "message"),
    [
        ({**CROP, "center_crop": {"size": 32}}, "uses ['center_crop']"),
        ({"random_resized_crop": {"size": 32, "antialias": False}}, "{'antialias': False}"),
        ({**SMALL_CROP, "resize": {"size": [32, 32]}}, "uses resize with {'size': [32, 32]}"),
        ({**CROP, "rand_augment": {"num_magnitude_bins": 10}}, "{'num_magnitude_bins': 10}"),
        ({**CROP, "random_erase": {"value": 1}}, "{'value': 1}"),
    ],
)
def test_transforms_without_a_counterpart_are_refused(augmentation, message):
    with pytest.raises(ValueError) as caught:
        policy_of(augmentation)
    assert message in str(caught.value)


def test_published_sizes_give_the_named_policies_and_other_options_another_name():
    for variant, augmentation in VARIANTS.items():
        large = {name: {**item, "size": 224} if "size" in item else item for name, item in augmentation.items()}
        if "random_crop" in large:
            large["random_crop"] = {"size": [224, 224], "padding": 16}
        assert policy_of(large) == named_policy(variant, 224)
    policy = policy_of({"random_resized_crop": {"size": [32, 32], "scale": [0.2, 1.0]}, **FLIP})
    assert policy.name == "imported" and policy.operations[0].scale == (0.2, 1.0)


# --- the order of ImageFolder ----------------------------------------------------------------------------------------


def test_image_folder_order_is_torchvisions(tmp_path):
    names = [
        "n02/n02_5.png",
        "n01/n01_10.png",
        "n01/n01_1.png",
        "n01/sub/n01_0.png",
        "n02/n02_40.png",
        "n01/N01_2.png",
    ]
    for seed, name in enumerate(names):
        path = tmp_path / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        tiny_image(seed).save(path)
    expected = [
        str(Path(path).relative_to(tmp_path / "images")) for path, _ in ImageFolder(tmp_path / "images").samples
    ]
    labels = [int(name[2]) - 1 for name in names]
    paths = [str(tmp_path / "images" / name) for name in names]
    dataset = Dataset.from_dict(
        {"image": paths, "label": labels},
        features=Features({"image": Image(), "label": tiny_dataset(2, labels=2).features["label"]}),
    )
    assert [names[row] for row in image_folder_order(dataset)] == expected
    dataset = tiny_dataset(6, labels=2).remove_columns("label").add_column("label", labels).add_column("file", names)
    assert [names[row] for row in image_folder_order(dataset, "file")] == expected
    with pytest.raises(ValueError, match="has no file name"):
        image_folder_order(dataset)
    with pytest.raises(ValueError, match="same file name"):
        image_folder_order(dataset.remove_columns("file").add_column("file", ["a"] * 6), "file")


def test_names_of_the_hubs_imagenet_sort_as_the_originals():
    numbers = [10026, 1002, 18, 100]
    hub = [f"n01440764_{number}_n01440764.JPEG" for number in numbers]
    dataset = tiny_dataset(4, labels=0).add_column("file", hub)
    expected = sorted(range(4), key=lambda row: f"n01440764_{numbers[row]}.JPEG")
    assert image_folder_order(dataset, "file") == expected != sorted(range(4), key=hub.__getitem__)


# --- the recipe ------------------------------------------------------------------------------------------------------


def test_recipe(tmp_path, monkeypatch, capsys):
    monkeypatch.syspath_prepend(str(Path(__file__).parent.parent / "recipes"))
    recipe, original = load_recipe("import_ml_dr"), Original("randaug")
    (tmp_path / "source" / "data").mkdir(parents=True)
    original.source.to_parquet(str(tmp_path / "source" / "data" / "train-00000-of-00001.parquet"))
    (tmp_path / "map.json").write_text("[0, 1, 2, 3, null, 5, 6, 7]")
    np.save(tmp_path / "map.npy", np.arange(8))
    archive = original.archive(tmp_path / "a.tar.gz")

    def run(name, flags):
        always = f"--archive {archive} --source_name_or_path {tmp_path / 'source'} --output_dir {tmp_path / name}"
        monkeypatch.setattr(sys, "argv", ["import_ml_dr.py", *f"{always} {flags}".split()])
        recipe.main()

    run("list", f"--id_map {tmp_path / 'map.json'} --teacher_name_or_path me/teacher")
    assert "Done: load_dataset(" in capsys.readouterr().out
    assert "me/teacher" in (tmp_path / "list" / "README.md").read_text(encoding="utf-8")
    assert (tmp_path / "list" / "randaug" / "preview.png").stat().st_size > 1000
    assert len(load_dataset(str(tmp_path / "list"), "randaug", split="train")) == 7
    run("array", f"--id_map {tmp_path / 'map.npy'} --policy randaug --image_size {SIZE} --num_classes {CLASSES}")
    dataset = load_reinforced(str(tmp_path / "array"))  # with the source that is recorded
    assert isinstance(dataset, ReinforcedDataset) and len(dataset) == 8
    (tmp_path / "map.json").write_text("{}")
    for name, flags, message in (
        ("order", "--id_map image_folder", "error: Row 0 has no file name"),
        ("list", "", "error: .* already holds"),
        ("dict", f"--id_map {tmp_path / 'map.json'}", "must be a JSON list"),
    ):
        with pytest.raises(SystemExit, match=message):
            run(name, flags)
