"""The columns of a reinforced dataset; those of its targets are named and described in `targets/`.

A reinforced dataset has one row per image and, in each row, fixed-length lists over its N reinforcements: the
parameters of one random augmentation, and the teacher's answer to the augmented view. `docs/schema.md` describes the
same thing for somebody who has the Parquet files and not this package.
"""

from collections.abc import Mapping
from typing import Annotated, Any

from datasets import Features, List, Value

from hf_reinforce.splits import WRITE

SCHEMA_VERSION = 2
"""The newest version; version 1 is that of a dataset whose only target is a distribution over classes."""

Count = Annotated[int, 1]
"""A whole number of at least 1 in `reinforcement.json`."""
Index = Annotated[int, 0]
"""A whole number of at least 0 in `reinforcement.json`."""

SOURCE_ROW = "source_row"
IMAGE_HASH = "image_hash"
AUGMENTATION_PARAMS = "augmentation_params"
REINFORCEMENT_COLUMNS = (SOURCE_ROW, IMAGE_HASH, AUGMENTATION_PARAMS)
"""What every reinforced dataset has beside the columns of its targets."""

# Fields of one `augmentation_params` struct beside those that the operations of the policy own.
PARTNER_ROW = "partner_row"
PARTNER_PARAMS = "partner_params"

BOX = {name: Value("int16") for name in ("top", "left", "height", "width")}
"""A box in pixels. int16 bounds the side of an image to 32,767 pixels."""

MAX_IMAGE_SIDE = 2**15 - 1


def params_feature(view_fields: dict[str, Any], mix_fields: dict[str, Any]) -> dict[str, Any]:
    """The `augmentation_params` struct of a policy, of the fields of its operations.

    Where operations mix, it has the partner's row and, where they differ from its own reinforcement, its parameters.
    """
    partner = {PARTNER_ROW: Value("int64"), PARTNER_PARAMS: dict(view_fields)} if mix_fields else {}
    return {**view_fields, **mix_fields, **partner}


def reinforced_features(
    source: dict[str, Any], params: dict[str, Any], num_samples: int, targets: Mapping[str, Any]
) -> Features:
    """Features of a reinforced dataset; ValueError if a source column has the name of a reinforcement column.

    Args:
        source: features of the source columns that are kept.
        params: the policy's `augmentation_params` struct, see `params_feature`.
        num_samples: N, reinforcements per image.
        targets: features of the columns of targets, see `Target.column_feature`.
    """
    own = {
        SOURCE_ROW: Value("int64"),
        IMAGE_HASH: Value("string"),
        AUGMENTATION_PARAMS: List(params, length=num_samples),
        **targets,
    }
    taken = [name for name in own if name in source]
    if taken:
        raise ValueError(
            f"The source dataset has columns named {taken}, which a reinforced dataset needs for itself. "
            f"Rename them first: dataset.rename_column({taken[0]!r}, ...). {WRITE}"
        )
    return Features({**source, **own})
