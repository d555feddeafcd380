"""Small classifiers of five classes saved in folders, as transformers, timm and the wrapper of both save them."""

import timm
import torch
from timm.models import save_for_hf
from tiny import MEAN, NAMES, STD
from transformers import (
    ResNetConfig,
    ResNetForImageClassification,
    TimmWrapperConfig,
    TimmWrapperForImageClassification,
    ViTImageProcessor,
)

CLASSES = NAMES[:5]
CFG = {"input_size": (3, 32, 32), "mean": MEAN, "std": STD, "interpolation": "bilinear", "crop_pct": 0.9}


def labels(names=CLASSES):
    return {"id2label": dict(enumerate(names)), "label2id": {name: index for index, name in enumerate(names)}}


def resnet(names=CLASSES, **options):
    """A network of transformers."""
    shape = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
    return ResNetForImageClassification(ResNetConfig(**shape, **labels(names), **options))


def _seeded(make, head, order, seed):
    """A network in evaluation mode whose head tells pictures apart; the seed decides what it says of a class."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = make().eval()
        head(model).weight.data.normal_(std=0.5)
    for parameter in head(model).parameters():
        parameter.data = parameter.data[list(order)].clone()
    return model


def transformers_folder(folder, names=CLASSES, order=range(5), seed=0):
    model = _seeded(lambda: resnet(names), lambda model: model.classifier[1], order, seed)
    model.save_pretrained(folder)
    size = {"height": 24, "width": 24}
    ViTImageProcessor(size=size, image_mean=MEAN, image_std=STD, resample=3).save_pretrained(folder)
    return model


def timm_network(order=range(5), seed=0):
    make = lambda: timm.create_model("test_resnet", num_classes=5, pretrained_cfg_overlay=CFG)
    return _seeded(make, lambda model: model.fc, order, seed)


def timm_folder(folder, names=CLASSES, order=range(5), seed=0):
    model = timm_network(order, seed)
    save_for_hf(model, folder, safe_serialization=True, model_config={"label_names": list(names)})
    return model


def wrapper_folder(folder):
    config = TimmWrapperConfig(architecture="test_resnet", pretrained_cfg=CFG, **labels())
    model = TimmWrapperForImageClassification(config).eval()
    model.timm_model.load_state_dict(timm_network(seed=2).state_dict())
    model.save_pretrained(folder)
    return model
