"""What holds for every operation, and each against torchvision's; the distributions by Kolmogorov-Smirnov tests."""

from dataclasses import fields

import numpy as np
import pytest
import torch
from datasets import Features
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageOps
from scipy.stats import ks_2samp, kstest
from torchvision.transforms import InterpolationMode, v2
from torchvision.transforms import RandAugment as TorchvisionRandAugment
from torchvision.transforms import RandomErasing as TorchvisionRandomErasing
from torchvision.transforms import RandomResizedCrop as TorchvisionRandomResizedCrop
from torchvision.transforms.autoaugment import _apply_op
from torchvision.transforms.v2 import functional as F

from hf_reinforce import images
from hf_reinforce.augmentations import (
    AUGMENTATIONS,
    CenterCrop,
    CutMix,
    HorizontalFlip,
    MixUp,
    RandAugment,
    RandomCrop,
    RandomErasing,
    RandomResizedCrop,
    Resize,
    ViewAugmentation,
    photometric,
)
from hf_reinforce.augmentations.rand_augment import OPERATIONS, SIGNED, magnitude_of
from hf_reinforce.randomness import params_generator

HEIGHT, WIDTH, MIX_SIZE = 140, 200, 24
VIEWS = [name for name, cls in AUGMENTATIONS.items() if issubclass(cls, ViewAugmentation)]
MIXES = [name for name in AUGMENTATIONS if name not in VIEWS]


@pytest.fixture
def image(photo):
    return images.from_pil(photo)


def draw(operation, count, seed=0, height=HEIGHT, width=WIDTH):
    return [operation.sample(params_generator(seed, row, 0), height, width) for row in range(count)]


def applied(operation, count, height, width):
    """Parameters of views that the operation changes."""
    drawn = draw(operation, count, height=height, width=width)
    return drawn[:1] if operation.field is None else [params for params in drawn if params is not None]


def batches(size=MIX_SIZE, batch=30, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand((batch, 3, size, size), generator=generator).to(dtype) for _ in range(2)]


# --- What holds for every augmentation


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_params_depend_on_the_key_alone_and_survive_parquet(through_parquet, name):
    operation = AUGMENTATIONS[name]()
    assert operation.name == name
    drawn = draw(operation, 40)
    assert draw(operation, 40) == drawn
    if all(params == drawn[0] for params in drawn):  # a deterministic operation leaves the generator alone
        rng = params_generator(0, 0, 0)
        operation.sample(rng, HEIGHT, WIDTH)
        assert rng.random() == params_generator(0, 0, 0).random()
    else:
        assert draw(operation, 40, seed=1) != drawn
    if operation.field is None:
        assert operation.feature is None and set(drawn) == {None}
        return
    rows, features = [{"params": params} for params in [None, *drawn]], Features({"params": operation.feature})
    read = through_parquet(rows, features)
    assert read.features == features and list(read) == rows
    assert any(params is not None for params in drawn)


@pytest.mark.parametrize("name", [name for name, cls in AUGMENTATIONS.items() if cls.field is not None])
def test_words_and_bins(through_parquet, name):
    operation = AUGMENTATIONS[name]()
    assert len(operation.describe()) > 15 and operation.name not in operation.describe()
    drawn = [None, *draw(operation, 60)]
    assert {type(operation.caption(params)) for params in drawn if params is not None} == {str}
    stored = through_parquet([{"params": params} for params in drawn], Features({"params": operation.feature}))
    bins = list(operation.bins(stored.data.column("params").combine_chunks(), HEIGHT))
    assert all(len(views) == len(drawn) and views.dtype == bool for _, _, views in bins)
    if operation.stage != "crop" and name != "rand_augment":  # each view has one strength
        assert np.sum([views for _, _, views in bins], axis=0).tolist() == [1] * len(drawn)
        assert bins[0][2].tolist() == [params in (None, False) for params in drawn]


@pytest.mark.parametrize("size", [(HEIGHT, WIDTH), (1, 1), (1, 60), (60, 1), (2, 3), (31, 33)])
@pytest.mark.parametrize("name", VIEWS)
def test_views_are_uint8_of_the_stated_size_whatever_the_layout_of_the_image(photo, name, size):
    operation, height, width = AUGMENTATIONS[name](), *size
    planar = F.pil_to_tensor(photo.resize((width, height)))
    layouts = [planar, planar.permute(1, 2, 0).contiguous().permute(2, 0, 1), F.pad(planar, [3])[:, 3:-3, 3:-3]]
    expected = {"resize": lambda: operation.output_size(*size), "crop": lambda: (operation.size,) * 2}
    for params in applied(operation, 12, *size):
        views = [operation.apply(layout, params) for layout in layouts]
        assert views[0].dtype == torch.uint8
        assert views[0].shape == (3, *expected.get(operation.stage, lambda: size)())
        assert torch.equal(views[0], views[1]) and torch.equal(views[0], views[2])
        assert all(torch.equal(layout, F.pil_to_tensor(photo.resize((width, height)))) for layout in layouts)


@pytest.mark.parametrize("size", [32, 100, 333])
@pytest.mark.parametrize("name", [name for name in VIEWS if AUGMENTATIONS[name].stage == "crop"])
def test_crops_replay_at_another_size(image, name, size):
    operation = AUGMENTATIONS[name]()
    (params,) = draw(operation, 1)
    expected = F.resize(images.crop(image, params).contiguous(), [size, size], antialias=True)
    assert torch.equal(operation.apply(image, params, size / operation.size), expected)


@pytest.mark.parametrize("name", MIXES)
def test_mixes_apply_each_samples_own_params_and_none_changes_nothing(name):
    operation = AUGMENTATIONS[name](p=0.7)
    own, partners = batches()
    before = own.clone(), partners.clone()
    drawn = draw(operation, 30, height=MIX_SIZE, width=MIX_SIZE)
    collated = operation.collate(drawn)
    mixed, shares = operation.apply(own, partners, collated), operation.own_share(collated, MIX_SIZE)
    assert shares.dtype == torch.float32 and shares.std() > 0.1
    weight = operation.apply(torch.ones_like(own), torch.zeros_like(own), collated)
    torch.testing.assert_close(shares, weight.mean((1, 2, 3)))
    for row, params in enumerate(drawn):
        alone = operation.apply(own[row : row + 1], partners[row : row + 1], operation.collate([params]))
        assert torch.equal(mixed[row], alone[0])
        assert torch.equal(mixed[row], own[row]) == (params is None) == (shares[row] == 1)
    assert torch.equal(own, before[0]) and torch.equal(partners, before[1]) and None in drawn
    assert operation.apply(*batches(dtype=torch.bfloat16), collated).dtype == torch.bfloat16


@pytest.mark.parametrize("p", [0.0, 0.2, 1.0])
@pytest.mark.parametrize("cls", [HorizontalFlip, RandomErasing, MixUp, CutMix])
def test_operations_are_applied_with_their_probability(cls, p):
    count = sum(params not in (None, False) for params in draw(cls(p=p), 2000, seed=5))
    assert count == pytest.approx(2000 * p, abs=4 * (2000 * p * (1 - p)) ** 0.5)


OPTIONS = {
    "p": ([-0.1, 1.1, float("nan"), True, "often"], "a number from 0 to 1"),
    "size": ([0, 2**15, 2.5, "large"], "a whole number from 1 to 32767"),
    "interpolation": (["bilinearr", None], "'bilinear' or 'bicubic'"),
    "scale": ([(0.0, 1.0), (0.5, 0.1), (0.5, 1.1), (0.1, 0.2, 0.3), 0.5], "two ascending numbers, each a number from"),
    "ratio": ([(0.0, 1.0), (1.0,), (1.0, float("inf"))], "two ascending numbers, each a number from 1e-06"),
    "padding": ([-1, 1000], "(a whole number from 0|at most the size)"),
    "num_ops": ([0, 1.5], "a whole number from 1"),
    "magnitude": ([-1, 31], "a whole number from 0 to 30"),
    "alpha": ([0.0, -1.0, 1e-320], "a number from 1e-06 to 32767"),
}


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_options_out_of_range_raise(name):
    for option in fields(AUGMENTATIONS[name]):
        wrong, message = OPTIONS[option.name]
        for value in wrong:
            with pytest.raises(ValueError, match=f"{name}: {option.name} must be {message}"):
                AUGMENTATIONS[name](**{option.name: value})


# --- Each operation against torchvision


@pytest.mark.parametrize("size", [2, 31, 139, 140, 141, 199, 224])
def test_resize_equals_torchvision(image, size):
    for source in (image, image.transpose(1, 2)):
        assert torch.equal(Resize(size).apply(source, None), v2.Resize(size, antialias=True)(source.contiguous()))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic"])
@pytest.mark.parametrize("size", [32, 224])
def test_random_resized_crop_pixels_equal_torchvision(image, size, interpolation):
    operation = RandomResizedCrop(size, interpolation=interpolation)
    mode = InterpolationMode(interpolation)
    for box in draw(operation, 8):
        cut = F.resized_crop(image.contiguous(), **box, size=[size, size], interpolation=mode, antialias=True)
        assert torch.equal(operation.apply(image, box), cut)


def values_of(box):
    return [box["top"], box["left"], box["height"], box["width"]]


def assert_same_distribution(ours, theirs, height, width):
    """Compares boxes [n, 4]: top, left, height, width."""

    def described(boxes):
        top, left, box_height, box_width = np.array(boxes, dtype=float).T
        sides = {"height": box_height, "width": box_width, "area": box_height * box_width}
        places = {"top": top, "left": left, "bottom": height - top - box_height, "right": width - left - box_width}
        return {**sides, **places, "ratio": box_width / np.maximum(box_height, 1e-9)}

    theirs = described(theirs)
    for name, values in described(ours).items():
        assert ks_2samp(values, theirs[name]).pvalue > 0.002, name
        tolerance = 5 * np.sqrt((values.var() + theirs[name].var()) / len(values)) + 1e-9
        assert abs(values.mean() - theirs[name].mean()) < tolerance, name


@pytest.mark.parametrize(
    ("height", "width", "options"),
    [
        (140, 200, {}),
        (300, 60, {}),
        (64, 64, {"scale": (0.5, 1.0), "ratio": (1.0, 1.0)}),
        (120, 90, {"scale": (0.2, 0.4), "ratio": (0.5, 3.0)}),
    ],
)
def test_random_resized_crop_boxes_are_distributed_as_torchvisions(height, width, options):
    operation, blank = RandomResizedCrop(**options), torch.empty(3, height, width)
    torch.manual_seed(0)
    bounds = list(operation.scale), list(operation.ratio)
    theirs = [TorchvisionRandomResizedCrop.get_params(blank, *bounds) for _ in range(3000)]
    ours = [values_of(box) for box in draw(operation, 3000, height=height, width=width)]
    assert_same_distribution(ours, theirs, height, width)


@pytest.mark.parametrize(("height", "width"), [(10, 500), (500, 10), (3, 50), (50, 3)])
def test_random_resized_crop_of_narrow_images_takes_torchvisions_central_box(height, width):
    operation = RandomResizedCrop(scale=(0.9, 1.0))  # never fits, so all ten tries fail
    blank = torch.empty(3, height, width)
    expected = TorchvisionRandomResizedCrop.get_params(blank, [0.9, 1.0], list(operation.ratio))
    assert {tuple(values_of(box)) for box in draw(operation, 5, height=height, width=width)} == {expected}


@given(st.integers(1, 400), st.integers(1, 400), st.integers(0, 1000))
def test_drawn_boxes_lie_inside(height, width, row):
    for operation in (RandomResizedCrop(), RandomErasing(p=1.0), CutMix(p=1.0)):
        box = operation.sample(params_generator(0, row, 0), height, width)
        if box is not None:
            assert 0 <= box["top"] <= box["top"] + box["height"] <= height
            assert 0 <= box["left"] <= box["left"] + box["width"] <= width
            assert box["height"] * box["width"] > 0 or isinstance(operation, CutMix)


@pytest.mark.parametrize("size", [32, 139, 140, 141, 170, 201, 223, 301])
def test_center_crop_equals_torchvision(image, size):
    for source in (image, image.transpose(1, 2)):
        box = CenterCrop(size).sample(params_generator(0, 0, 0), *source.shape[1:])
        assert torch.equal(CenterCrop(size).apply(source, box), F.center_crop(source.contiguous(), [size, size]))


@pytest.mark.parametrize(("size", "padding"), [(96, 0), (32, 4), (150, 8), (224, 60)])
def test_random_crop_equals_torchvision(image, size, padding):
    padded = F.pad(image.contiguous(), [padding])
    for box in draw(RandomCrop(size, padding), 20):
        top, left = box["top"] + padding, box["left"] + padding
        assert min(top, left) >= 0 and top + size <= padded.shape[1] and left + size <= padded.shape[2]
        assert torch.equal(RandomCrop(size, padding).apply(image, box), F.crop(padded, top, left, size, size))


def test_random_crop_draws_every_offset_equally_often_and_centres_what_is_too_small(image):
    boxes = draw(RandomCrop(32, 4), 9000, height=32, width=32)
    offsets = np.array([[box["top"], box["left"]] for box in boxes])
    for side in offsets.T:
        assert np.unique(side).tolist() == list(range(-4, 5))
        np.testing.assert_allclose(np.bincount(side + 4), 1000, rtol=0.15)
    assert abs(np.corrcoef(offsets.T)[0, 1]) < 0.05
    view = RandomCrop(300, 4).apply(image, draw(RandomCrop(300, 4), 1)[0])
    assert torch.equal(view[:, 80:220, 50:250], image) and int(view.sum()) == int(image.sum())


def test_horizontal_flip_mirrors(image, photo):
    assert images.to_pil(HorizontalFlip().apply(image, True)).tobytes() == ImageOps.mirror(photo).tobytes()
    assert torch.equal(HorizontalFlip().apply(image, False), image)


@pytest.mark.parametrize(
    ("height", "width", "options"),
    [(32, 32, {}), (60, 200, {}), (96, 96, {"scale": (0.3, 0.9), "ratio": (0.3, 1.0)})],
)
def test_random_erasing_boxes_are_distributed_as_torchvisions(height, width, options):
    operation, blank = RandomErasing(p=1.0, **options), torch.zeros(1, height, width)
    ours = [values_of(box) for box in draw(operation, 3000, height=height, width=width) if box is not None]
    torch.manual_seed(0)
    bounds = operation.scale, operation.ratio, [0.0]
    theirs = [TorchvisionRandomErasing.get_params(blank, *bounds)[:4] for _ in range(3000)]
    theirs = [box for box in theirs if box != (0, 0, height, width)]  # torchvision's word for "no box found"
    assert len(ours) == pytest.approx(len(theirs), abs=30)
    count = min(len(ours), len(theirs))
    assert_same_distribution(ours[:count], theirs[:count], height, width)


@pytest.mark.parametrize("scale", [0.25, 1.0, 3.0])
def test_random_erasing_pixels_equal_torchvision_and_scale_with_the_view(image, scale):
    for box in draw(RandomErasing(p=1.0), 10, height=40, width=40):
        scaled = images.scale_box(box, scale)
        expected = F.erase(image.contiguous(), *values_of(scaled), torch.zeros(1))
        assert torch.equal(RandomErasing().apply(image, box, scale), expected)
        assert scaled["top"] + scaled["height"] == round((box["top"] + box["height"]) * scale)


# --- RandAugment


def rand_augment(image, *steps, scale=1.0):
    params = [{"op": OPERATIONS.index(op), "magnitude": magnitude} for op, magnitude in steps]
    return images.to_pil(RandAugment(len(steps)).apply(image, params, scale))


def pillow(picture, op, magnitude):
    return _apply_op(picture, op, magnitude, InterpolationMode.NEAREST, None)


def pictures(photo):
    """A photo without black and white, which AutoContrast would keep; and of few pixels: noise, few colours, flat,
    flat in one channel, gray."""
    yield photo.resize((100, 70)).point(lambda value: 20 + value * 7 // 10)
    rng = np.random.default_rng(0)
    for size in ((1, 1), (2, 5), (3, 3), (5, 2), (33, 57)):
        noise = rng.integers(0, 256, (*size, 3), dtype=np.uint8)
        one_flat = noise.copy()
        one_flat[..., 1] = 7
        gray = rng.integers(40, 90, (*size, 1), dtype=np.uint8).repeat(3, axis=2)
        for pixels in (noise, noise // 128 * 255, np.full_like(noise, noise[0, 0]), one_flat, gray):
            yield Image.fromarray(pixels)


@pytest.mark.parametrize("op", OPERATIONS)
def test_every_magnitude_has_the_pixels_of_torchvision(photo, op):
    for picture in pictures(photo):
        for level in range(31) if magnitude_of(op, 0, 9) or magnitude_of(op, 30, 9) else (0,):
            magnitude = float(np.float32(magnitude_of(op, level, picture.width)))
            for signed in (magnitude, -magnitude) if op in SIGNED else (magnitude,):
                found = rand_augment(images.from_pil(picture), (op, signed))
                assert found.tobytes() == pillow(picture, op, signed).tobytes(), level
            if picture.width == 100 and level == 9 and op != "Identity":
                assert found.tobytes() != picture.tobytes()


def test_any_sequence_of_operations_has_the_pixels_of_torchvision(photo):
    rng, photo = np.random.default_rng(0), photo.resize((45, 31))
    image = images.from_pil(photo)
    for _ in range(150):
        steps, expected = [], photo
        for op in rng.choice(OPERATIONS, 4):
            steps.append((str(op), float(np.float32(magnitude_of(str(op), int(rng.integers(31)), 45)))))
            expected = pillow(expected, *steps[-1])
        assert rand_augment(image, *steps).tobytes() == expected.tobytes(), steps
    assert torch.equal(image, images.from_pil(photo)), "the input is not changed"


@pytest.mark.parametrize("factor", [*(1 + 0.03 * level for level in range(-30, 31)), -3.0, 0.5, 7.7, 300.0])
def test_blending_equals_pillows_for_all_pairs_of_values(factor):
    first, second = np.mgrid[:256, :256].astype(np.uint8)
    expected = Image.blend(Image.fromarray(first), Image.fromarray(second), float(np.float32(factor)))
    np.testing.assert_array_equal(photometric._blend(first, second, float(np.float32(factor))), np.asarray(expected))


@pytest.mark.parametrize("size", [32, 224, 331])
def test_magnitudes_equal_torchvisions(size):
    for op, (magnitudes, signed) in TorchvisionRandAugment()._augmentation_space(31, (size, size)).items():
        assert (op in SIGNED) == signed
        for level in range(31):
            expected = float(magnitudes[level]) if magnitudes.ndim else float(magnitudes)
            assert magnitude_of(op, level, size) == pytest.approx(expected, rel=1e-5, abs=1e-4)
            if op in ("Posterize", "TranslateX", "TranslateY"):
                assert int(np.float32(magnitude_of(op, level, size))) == int(expected)


def test_magnitudes_of_the_paper_at_224_pixels():
    expected = [0.0, 0.09, 0.09, 30.453, 30.453, 9.0, 0.27, 0.27, 0.27, 0.27, 7.0, 178.5, 0.0, 0.0]
    assert [magnitude_of(op, 9, 224) for op in OPERATIONS] == pytest.approx(expected, abs=5e-4)


def test_rand_augment_draws_operations_and_signs_uniformly():
    steps = [step for params in draw(RandAugment(), 7000) for step in params]
    ops = np.array([step["op"] for step in steps])
    np.testing.assert_allclose(np.bincount(ops, minlength=14), 1000, rtol=0.15)
    for index, op in enumerate(OPERATIONS):
        signs = np.sign([step["magnitude"] for step in steps if step["op"] == index])
        assert (set(signs) == {-1.0, 1.0} and abs(signs.mean()) < 0.12) if op in SIGNED else -1.0 not in signs
    first, second = ops.reshape(-1, 2).T
    assert np.mean(first == second) == pytest.approx(1 / 14, abs=0.02)


@pytest.mark.parametrize(("num_ops", "p"), [(1, 1.0), (2, 0.0), (5, 0.3)])
def test_rand_augment_applies_each_of_num_ops_operations_with_its_own_probability(num_ops, p):
    drawn = draw(RandAugment(num_ops, magnitude=20, p=p), 3000)
    ops = np.array([[step["op"] for step in params] for params in drawn])
    assert ops.shape == (3000, num_ops)
    np.testing.assert_allclose((ops != 0).mean(0), p * 13 / 14, atol=0.03)
    assert (ops != 0).all(1).mean() == pytest.approx((p * 13 / 14) ** num_ops, abs=0.03)
    for step in (step for params in drawn[:100] for step in params):
        assert abs(step["magnitude"]) == np.float32(magnitude_of(OPERATIONS[step["op"]], 20, WIDTH))


@pytest.mark.parametrize("scale", [0.5, 2.0])
@pytest.mark.parametrize("op", OPERATIONS)
def test_only_translations_scale_with_the_view(image, photo, op, scale):
    magnitude = magnitude_of(op, 9, 224)
    expected = pillow(photo, op, magnitude * scale if op.startswith("Translate") else magnitude)
    assert rand_augment(image, (op, magnitude), scale=scale).tobytes() == expected.tobytes()


# --- MixUp and CutMix


@pytest.mark.parametrize("alpha", [0.2, 1.0, 3.0])
def test_mixup_equals_the_formula_with_lam_from_a_beta_distribution(alpha):
    drawn = draw(MixUp(alpha=alpha, p=1.0), 2000)
    assert kstest([params["lam"] for params in drawn], "beta", args=(alpha, alpha)).pvalue > 0.01
    own, partners = batches()
    mixed = MixUp().apply(own, partners, MixUp().collate(drawn[:30])).numpy()
    for row, params in enumerate(drawn[:30]):
        expected = params["lam"] * own[row].double() + (1.0 - params["lam"]) * partners[row].double()
        np.testing.assert_allclose(mixed[row], expected, atol=1e-6)


@pytest.mark.parametrize("scale", [0.5, 1.0, 1.5, 3.5])
def test_cutmix_equals_pasting_each_samples_box_scaled_with_the_view(scale):
    own, partners = batches(round(MIX_SIZE * scale), batch=20)
    drawn = draw(CutMix(p=1.0), 20, height=MIX_SIZE, width=MIX_SIZE)
    collated = CutMix().collate(drawn)
    mixed, shares = CutMix().apply(own, partners, collated, scale), CutMix().own_share(collated, MIX_SIZE)
    for row, box in enumerate(drawn):
        top, left, height, width = values_of(images.scale_box(box, scale))
        expected = own[row].clone()
        expected[:, top : top + height, left : left + width] = partners[
            row, :, top : top + height, left : left + width
        ]
        assert torch.equal(mixed[row], expected)
        assert float(shares[row]) == pytest.approx(1 - box["height"] * box["width"] / MIX_SIZE**2, abs=1e-6)


@pytest.mark.parametrize("alpha", [0.3, 1.0])
def test_cutmix_boxes_are_distributed_as_torchvisions(alpha):
    size, transform, blank = 64, v2.CutMix(alpha=alpha, num_classes=2), torch.empty(2, 3, 64, 64)
    torch.manual_seed(0)
    edges = np.array([transform.make_params([blank])["box"] for _ in range(3000)])  # left, top, right, bottom
    theirs = edges[:, [1, 0, 3, 2]] - np.pad(edges[:, [1, 0]], ((0, 0), (2, 0)))
    boxes = draw(CutMix(alpha=alpha, p=1.0), 3000, height=size, width=size)
    ours = np.array([values_of(box) for box in boxes])
    for name, values in {"top": 0, "left": 1, "height": 2, "width": 3}.items():
        assert ks_2samp(ours[:, values], theirs[:, values]).pvalue > 0.002, name
    assert ks_2samp(*(found[:, 2] * found[:, 3] for found in (ours, theirs))).pvalue > 0.002
