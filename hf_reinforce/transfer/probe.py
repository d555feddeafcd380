"""Linear probe: multinomial logistic regression on the features of a frozen network."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_reinforce.classifiers import Member
from hf_reinforce.metrics import ClassificationMetrics
from hf_reinforce.transfer.extras import optional
from hf_reinforce.views import AugmentedDataset

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths C of the L2 penalty that are tried, on standardised features."""

HELD_OUT = 0.2
"""Share of the training images on which C is chosen."""


def classification_layer(model: nn.Module) -> nn.Linear:
    """The last linear layer of a classifier; what goes into it are the network's pooled features.

    Args:
        model: a timm network, or a classifier of transformers.

    Raises:
        ValueError: if it has none.
    """
    network: Any = getattr(model, "timm_model", model)
    layer = network.get_classifier() if hasattr(network, "get_classifier") else None
    if not isinstance(layer, nn.Linear):
        layer = next((m for m in reversed(list(model.modules())) if isinstance(m, nn.Linear)), None)
    if layer is None:
        raise ValueError(
            f"{type(network).__name__} has no linear classification layer, so it has no pooled features to probe; "
            "choose another network."
        )
    return layer


def extract_features(
    member: Member, dataset: AugmentedDataset, batch_size: int = 64, num_workers: int = 0, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features and labels of a data set, each image seen once.

    Args:
        member: the frozen network.
        dataset: labelled images under an evaluation policy.
        batch_size: images per forward pass.
        num_workers: processes that decode.
        device: where the network runs.

    Returns:
        features float32 [R, D], what goes into the network's last linear layer; labels int64 [R].
    """
    model, inputs = member.model.to(device), []
    handle = classification_layer(model).register_forward_pre_hook(lambda _, args: inputs.append(args[0]))
    loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=dataset.collate)
    features: list[Tensor] = []
    labels: list[Tensor] = []
    try:
        with torch.inference_mode():
            for batch in tqdm(loader, desc="Extracting features", unit="batch"):
                member.logits(batch["pixel_values"].to(device))
                features.append(inputs.pop().flatten(1).float().cpu())
                labels.append(batch["labels"])
    finally:
        handle.remove()
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe.

    Attributes:
        classifier: scikit-learn pipeline of standardisation and logistic regression.
        num_classes: classes of the data set, of which training may have lacked some.
        strength: the C that was chosen, > 0.
        held_out_nll: negative log-likelihood in nats on the held-out part, for each C that was tried.
    """

    classifier: Any
    num_classes: int
    strength: float
    held_out_nll: dict[float, float] = field(default_factory=dict)

    def log_probabilities(self, features: NDArray[np.float32]) -> Tensor:
        """Log-probabilities float64 [R, num_classes] of features [R, D]; classes that training lacked get 1e-12."""
        probabilities = np.full((len(features), self.num_classes), 1e-12)
        probabilities[:, self.classifier.classes_] = self.classifier.predict_proba(features)
        return torch.from_numpy(probabilities).clamp(min=1e-12).log()

    def evaluate(self, features: NDArray[np.float32], labels: NDArray[np.int64]) -> dict[str, float]:
        """The metrics of `ClassificationMetrics` for features [R, D] and labels [R]."""
        metrics = ClassificationMetrics()
        metrics.update(self.log_probabilities(features), torch.from_numpy(labels))
        return metrics.compute()


def fit_probe(
    features: NDArray[np.float32],
    labels: NDArray[np.int64],
    num_classes: int,
    strengths: Sequence[float] = STRENGTHS,
    seed: int = 0,
) -> LinearProbe:
    """Fits a linear probe: C is chosen by the likelihood of a fifth of the samples, then all are fitted with it.

    The likelihood rather than the accuracy, which is the same for many C when the fifth is small.

    Args:
        features: float32 [R, D].
        labels: int64 [R], in [0, num_classes).
        num_classes: classes of the data set.
        strengths: values of C to choose from, each > 0; with one of them nothing is held out.
        seed: of the choice of the fifth.

    Raises:
        ValueError: if the samples are of fewer than two classes.
    """
    if len(np.unique(labels)) < 2:
        raise ValueError("A linear probe needs training images of at least two classes; take more of them.")
    nll: dict[float, float] = {}
    if len(strengths) > 1:
        counts = np.bincount(labels)
        stratify = labels if counts[counts > 0].min() > 1 and HELD_OUT * len(labels) >= (counts > 0).sum() else None
        split = optional("sklearn.model_selection").train_test_split
        fitting, held_out = split(np.arange(len(labels)), test_size=HELD_OUT, random_state=seed, stratify=stratify)
        for strength in strengths:
            candidate = LinearProbe(
                _classifier(strength).fit(features[fitting], labels[fitting]), num_classes, strength
            )
            nll[strength] = candidate.evaluate(features[held_out], labels[held_out])["nll"]
    best = min(strengths, key=lambda strength: nll.get(strength, 0.0))
    return LinearProbe(_classifier(best).fit(features, labels), num_classes, best, nll)


def _classifier(strength: float) -> Any:
    regression = optional("sklearn.linear_model").LogisticRegression(C=strength, max_iter=2000)
    scaler = optional("sklearn.preprocessing").StandardScaler()
    return optional("sklearn.pipeline").make_pipeline(scaler, regression)
