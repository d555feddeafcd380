"""Linear probe: multinomial logistic regression on the features of a frozen network."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_reinforce.metrics import measure, score
from hf_reinforce.models.networks import Member
from hf_reinforce.replay.views import AugmentedDataset
from hf_reinforce.transfer.samples import optional

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths C of the L2 penalty that are tried, on standardised features."""

HELD_OUT = 0.2
"""Share of the training images on which C is chosen."""


def without_classifier(member: Member) -> Member:
    """A copy of a network that answers with its pooled features instead of logits.

    A network of timm removes its classifier itself. In one of transformers the linear layers above its body with as
    many outputs as classes become the identity: of a distilled DeiT, whose logits are the mean over two of them, the
    features are the mean as well. A network without a classifier stays as it is.
    """
    model: Any = deepcopy(member.model)
    network = getattr(model, "timm_model", model)
    if hasattr(network, "reset_classifier"):
        network.reset_classifier(0)
    elif classes := model.config.num_labels:
        body = f"{model.base_model_prefix}."
        heads = [
            name
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear) and layer.out_features == classes and not name.startswith(body)
        ]
        if not heads:
            raise ValueError(
                f"{member.name} ({type(model).__name__}) has no linear classifier; choose another network."
            )
        for name in heads:
            model.set_submodule(name, nn.Identity())
    return replace(member, model=model, class_names=None)


def extract_features(
    member: Member, dataset: AugmentedDataset, batch_size: int = 64, num_workers: int = 0, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features float32 [R, D], see `without_classifier`, and labels int64 [R] of a dataset, each image seen once."""
    member = without_classifier(member)
    member.model.to(device)
    loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=dataset.collate)
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in tqdm(loader, desc="Extracting features", unit="batch"):
        with torch.inference_mode():
            features.append(member.logits(batch["pixel_values"].to(device)).cpu())
        labels.append(batch["labels"])
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


@dataclass(frozen=True)
class LinearProbe:
    """A fitted pipeline of scikit-learn, the C that was chosen, and the likelihood of the held-out part for each C."""

    classifier: Any
    num_classes: int
    strength: float
    held_out_nll: dict[float, float]

    def evaluate(self, features: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
        """`hf_reinforce.metrics.METRICS` and `num_samples`, for features [R, D] and labels [R]; classes that training
        lacked have the probability 1e-12."""
        probabilities = np.full((len(features), self.num_classes), 1e-12)
        probabilities[:, self.classifier.classes_] = self.classifier.predict_proba(features)
        scores = score(torch.from_numpy(probabilities).clamp(min=1e-12).log(), torch.from_numpy(labels))
        return {**measure(scores), "num_samples": float(len(scores))}


def fit_probe(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> LinearProbe:
    """Fits a linear probe to features [R, D]: C is chosen by the likelihood of a fifth of the samples, then all are
    fitted with it; with one of `strengths` nothing is held out.

    The likelihood rather than the accuracy, which is the same for many C when the fifth is small.
    """
    counts = np.unique(labels, return_counts=True)[1]
    if len(counts) < 2:
        raise ValueError("A linear probe needs training images of at least two classes; take more of them.")

    def fit(strength: float, samples: Any, nll: dict[float, float]) -> LinearProbe:
        scaler = optional("sklearn.preprocessing").StandardScaler()
        regression = optional("sklearn.linear_model").LogisticRegression(C=strength, max_iter=2000)
        classifier = optional("sklearn.pipeline").make_pipeline(scaler, regression)
        return LinearProbe(classifier.fit(features[samples], labels[samples]), num_classes, strength, nll)

    nll: dict[float, float] = {}
    if len(strengths) > 1:
        stratify = labels if counts.min() > 1 and HELD_OUT * len(labels) >= len(counts) else None
        split = optional("sklearn.model_selection").train_test_split
        fitting, held_out = split(np.arange(len(labels)), test_size=HELD_OUT, random_state=seed, stratify=stratify)
        for strength in strengths:
            nll[strength] = fit(strength, fitting, {}).evaluate(features[held_out], labels[held_out])["nll"]
    return fit(min(strengths, key=lambda strength: nll.get(strength, 0.0)), slice(None), nll)
