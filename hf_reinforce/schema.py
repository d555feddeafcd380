"""Schema v1 of a reinforced data set: the one place that spells a column name.

A reinforced data set has one row per image and, in each row, fixed-length lists over its N reinforcements: the
parameters of one random augmentation, and the teacher's answer to the augmented view. `docs/schema.md` describes the
same thing for somebody who has the Parquet files and not this package.
"""

from typing import Any

from datasets import Features, List, Value

from hf_reinforce.splits import WRITE

SCHEMA_VERSION = 1

# Columns of a row.
SOURCE_ROW = "source_row"
IMAGE_HASH = "image_hash"
AUGMENTATION_PARAMS = "augmentation_params"
TEACHER_LOGITS = "teacher_logits"
REINFORCEMENT_COLUMNS = (SOURCE_ROW, IMAGE_HASH, AUGMENTATION_PARAMS, TEACHER_LOGITS)

# Fields of one `augmentation_params` struct beside those that the operations of the policy own.
PARTNER_ROW = "partner_row"
PARTNER_PARAMS = "partner_params"

# Fields of one `teacher_logits` struct.
LABEL = "label"
VALUE = "value"
TAIL = "tail"

BOX = {name: Value("int16") for name in ("top", "left", "height", "width")}
"""A box in pixels. int16 bounds the side of an image to 32,767 pixels."""

MAX_IMAGE_SIDE = 2**15 - 1


def params_feature(view_fields: dict[str, Any], mix_fields: dict[str, Any]) -> dict[str, Any]:
    """The `augmentation_params` struct of a policy.

    Args:
        view_fields: field name -> feature of the operations that look at one image.
        mix_fields: field name -> feature of the operations that look at an image and its partner. When there are any,
            the partner's row and, where they differ from its own reinforcement, its parameters are stored as well.
    """
    fields = {**view_fields, **mix_fields}
    if mix_fields:
        fields[PARTNER_ROW] = Value("int64")
        fields[PARTNER_PARAMS] = dict(view_fields)
    return fields


def logits_feature(top_k: int, num_classes: int) -> dict[str, Any]:
    """The `teacher_logits` struct: top-k classes, their log-probabilities, and the log of the remaining mass."""
    label = Value("int16" if num_classes <= 2**15 else "int32")
    return {LABEL: List(label, length=top_k), VALUE: List(Value("float32"), length=top_k), TAIL: Value("float32")}


def reinforced_features(
    source: dict[str, Any], params: dict[str, Any], num_samples: int, top_k: int, num_classes: int
) -> Features:
    """Features of a reinforced data set.

    Args:
        source: features of the source columns that are kept.
        params: the policy's `augmentation_params` struct, see `params_feature`.
        num_samples: N, reinforcements per image.
        top_k: K, stored classes per reinforcement.
        num_classes: C, classes that the teacher tells apart.

    Raises:
        ValueError: if a source column has the name of a reinforcement column.
    """
    taken = [name for name in REINFORCEMENT_COLUMNS if name in source]
    if taken:
        raise ValueError(
            f"The source data set has columns named {taken}, which a reinforced data set needs for itself. "
            f"Rename them first: dataset.rename_column({taken[0]!r}, ...). {WRITE}"
        )
    return Features(
        {
            **source,
            SOURCE_ROW: Value("int64"),
            IMAGE_HASH: Value("string"),
            AUGMENTATION_PARAMS: List(params, length=num_samples),
            TEACHER_LOGITS: List(logits_feature(top_k, num_classes), length=num_samples),
        }
    )
