"""Whether a student, its teacher and its datasets fit each other; asked before anything is spent on training."""

from typing import Any

import torch
from torch import Tensor, nn

from hf_reinforce.models.answers import logits_of, try_network
from hf_reinforce.models.preprocessing import Preprocessing
from hf_reinforce.models.records import architecture
from hf_reinforce.models.students import student_preprocessing


def student_name(model: nn.Module) -> str:
    """What a message calls a student: its folder or Hub id, else its architecture."""
    return f"The student {getattr(getattr(model, 'config', None), 'name_or_path', '') or architecture(model)}"


def student_logits(model: nn.Module, student: nn.Module, images: Tensor, preprocessing: Preprocessing | None) -> Any:
    """A student's logits [B, C] for views [B, 3, S, S] with values 0 to 255, and all that it returns.

    Args:
        model: the student as it is called, which may be wrapped for several processes.
        student: the student itself.
        images: the views.
        preprocessing: default the student's own at the size of the views.

    Raises:
        ValueError: if it returns something else than logits.
    """
    preprocessing = preprocessing or student_preprocessing(student, images.shape[-1])
    outputs = model(preprocessing(images).contiguous(memory_format=torch.channels_last))
    return logits_of(outputs, student_name(student)), outputs


def check_fit(
    model: nn.Module, train: Any, evaluation: Any, teacher: Any, preprocessing: Preprocessing | None
) -> None:
    """Lets a student and its teacher look at two black views, and compares the numbers of classes of all.

    Args:
        model: the student.
        train: training set, or None.
        evaluation: dataset to evaluate on, or None.
        teacher: teacher that answers at every step, or None.
        preprocessing: the student's, default its own.

    Raises:
        ValueError: if the student or the teacher cannot take the views, or the numbers of classes differ.
    """
    name, count = student_name(model), None
    for size in dict.fromkeys(_size(dataset) for dataset in (train, evaluation) if dataset is not None):
        own = preprocessing or student_preprocessing(model, size)
        hint = (
            f"It sees them at {own.image_size} pixels: choose the side that it takes with preprocessing= "
            "(--input_size), or another network. Grey images have three channels here, too."
        )
        answer = lambda views: student_logits(model, model, views, preprocessing)[0]
        count = try_network(model, answer, name, size, hint)
    for dataset, what in ((train, "the training set"), (evaluation, "the dataset to evaluate on")):
        classes = None if dataset is None else _classes(dataset)
        if classes not in (None, count):
            raise ValueError(
                f"{name} answers with {count} classes, but {what} has {classes}. Give the student that many "
                "(create_student(..., num_labels=...), or num_classes= of timm), or choose other data."
            )
    if teacher is not None and train is not None:
        _check_teacher(teacher, name, count, _size(train))


def _check_teacher(teacher: Any, student: str, count: int | None, size: int) -> None:
    member = next(iter(getattr(teacher, "members", ())), None)
    device = torch.device("cpu") if member is None else next(member.model.parameters(), torch.empty(0)).device
    try:
        classes = teacher(torch.zeros(2, 3, size, size, device=device)).shape[-1]
    except (RuntimeError, AssertionError, TypeError, IndexError, AttributeError) as error:
        raise ValueError(
            f"The teacher cannot take views of {size} x {size} pixels ({type(error).__name__}: {error}); make others "
            "(--image_size), or choose another teacher."
        ) from error
    if classes != count:
        raise ValueError(
            f"The teacher answers with {classes} classes, but {student[0].lower()}{student[1:]} with {count}. Fit the "
            "teacher to the classes of the dataset: teacher.with_classes(names, class_map) (--class_map)."
        )


def _size(dataset: Any) -> int:
    return int(dataset.image_size or dataset.policy.image_size)


def _classes(dataset: Any) -> int | None:
    """Classes of the targets, or of the labels by their names; None where nothing says how many they are."""
    config = getattr(dataset, "config", None)
    if config is not None:
        return int(config.num_classes) or None
    names = dataset.source.class_names
    return None if names is None else len(names)
