"""Linear probe: multinomial logistic regression on the features of a frozen network."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from hf_reinforce.metrics import measure, score
from hf_reinforce.models.networks import Member
from hf_reinforce.replay.views import AugmentedDataset
from hf_reinforce.transfer.extras import optional

STRENGTHS = (1e-4, 1e-3, 1e-2, 1e-1, 1.0)
"""Inverse strengths C of the L2 penalty that are tried, on standardised features."""

_Call: TypeAlias = tuple[nn.Module, Tensor, Tensor]

HELD_OUT = 0.2
"""Share of the training images on which C is chosen."""


class _Pooled(nn.Module):
    """A network of timm that answers with its pooled features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network: Any = network

    def forward(self, inputs: Tensor) -> Tensor:
        pooled: Tensor = self.network.forward_head(self.network.forward_features(inputs), pre_logits=True)
        return pooled.flatten(1)


class PooledFeatures:
    """What goes into the classifier of a network: its features after pooling.

    For a network of timm, what `forward_head(pre_logits=True)` makes of its feature maps. For any other, what goes
    into the layer that answers with the logits, or the mean over several layers where the logits are their mean (a
    distilled DeiT); one forward pass tells which layers. A network without a classifier answers with its features.

    Args:
        member: the network.

    Raises:
        ValueError: if no layer answers with the logits.
    """

    def __init__(self, member: Member) -> None:
        network: Any = getattr(member.model, "timm_model", member.model)
        pools = hasattr(network, "forward_head")
        self._member = replace(member, model=_Pooled(network), class_names=None) if pools else member
        self._heads = [] if pools else self._find_heads()

    @torch.inference_mode()
    def __call__(self, images: Tensor) -> Tensor:
        """Features float32 [B, D] of views [B, 3, S, S] with values 0 to 255."""
        answer, calls = self._watched(self._heads, images)
        if not self._heads:
            return answer
        return torch.stack([given.flatten(1).float() for _, given, _ in calls]).mean(0)

    def _watched(self, layers: Iterable[nn.Module], images: Tensor) -> tuple[Tensor, list[_Call]]:
        """The logits, and each call of the layers: the layer, what went in and what came out."""
        calls: list[_Call] = []

        def note(layer: nn.Module, given: tuple[Any, ...], answer: Any) -> None:
            if given and isinstance(given[0], Tensor) and isinstance(answer, Tensor):
                calls.append((layer, given[0], answer))

        handles = [layer.register_forward_hook(note) for layer in layers]
        try:
            return self._member.logits(images), calls
        finally:
            for handle in handles:
                handle.remove()

    @torch.inference_mode()
    def _find_heads(self) -> list[nn.Module]:
        model, size = self._member.model, self._member.preprocessing.image_size
        device = next(model.parameters(), torch.empty(0)).device
        images = torch.rand(2, 3, size, size, generator=torch.Generator().manual_seed(0)).mul(255).to(device)
        layers = [layer for layer in model.modules() if isinstance(layer, (nn.Linear, nn.Identity))]
        logits, calls = self._watched(layers, images)
        answers = [call for call in calls if call[2].numel() == logits.numel() and len(call[2]) == len(logits)]
        for found in ([call] for call in reversed(answers)):
            if torch.equal(found[0][2].flatten(1).float(), logits):
                return [found[0][0]]
        heads = [call for call in answers if isinstance(call[0], nn.Linear)]
        if heads and torch.allclose(torch.stack([call[2].flatten(1).float() for call in heads]).mean(0), logits):
            return [layer for layer, _, _ in heads]
        raise ValueError(
            f"{self._member.name} ({type(model).__name__}) has no linear layer that answers with its logits, so its "
            "pooled features are unknown; choose another network to probe."
        )


def extract_features(
    member: Member, dataset: AugmentedDataset, batch_size: int = 64, num_workers: int = 0, device: str = "cpu"
) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Features and labels of a dataset, each image seen once.

    Args:
        member: the frozen network.
        dataset: labelled images under an evaluation policy.
        batch_size: images per forward pass.
        num_workers: processes that decode.
        device: where the network runs.

    Returns:
        features float32 [R, D], see `PooledFeatures`; labels int64 [R].

    Raises:
        ValueError: if it has none.
    """
    member.model.to(device)
    pooled = PooledFeatures(member)
    loader = DataLoader(dataset, batch_size, num_workers=num_workers, collate_fn=dataset.collate)
    features: list[Tensor] = []
    labels: list[Tensor] = []
    for batch in tqdm(loader, desc="Extracting features", unit="batch"):
        features.append(pooled(batch["pixel_values"].to(device)).cpu())
        labels.append(batch["labels"])
    return torch.cat(features).numpy(), torch.cat(labels).numpy()


@dataclass(frozen=True)
class LinearProbe:
    """A fitted probe.

    Attributes:
        classifier: scikit-learn pipeline of standardisation and logistic regression.
        num_classes: classes of the dataset, of which training may have lacked some.
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
        """`hf_reinforce.metrics.METRICS` and `num_samples`, for features [R, D] and labels [R]."""
        scores = score(self.log_probabilities(features), torch.from_numpy(labels))
        return {**measure(scores), "num_samples": float(len(scores))}


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
        num_classes: classes of the dataset.
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
