import pickle

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter

from hf_reinforce.images import ImageError
from hf_reinforce.sources.image_source import ImageSource, find_columns

IMAGE, TEXT, NUMBER, CLASS = Image(), Value("string"), Value("int64"), ClassLabel(names=["a", "b"])


@pytest.mark.parametrize(
    ("features", "named", "expected"),
    [
        ({"x": IMAGE, "y": CLASS}, {}, ("x", "y")),
        ({"x": IMAGE, "label": NUMBER, "text": TEXT}, {}, ("x", "label")),
        ({"x": IMAGE, "y": CLASS}, {"label_column": ""}, ("x", None)),
        ({"x": IMAGE, "text": TEXT}, {}, ("x", None)),
        ({"x": IMAGE, "fine": CLASS, "coarse": CLASS}, {"label_column": "fine"}, ("x", "fine")),
        ({"x": IMAGE, "fine": CLASS, "coarse": CLASS}, {}, "several label columns, .*fine.*coarse.*--label_column"),
        ({"label": CLASS, "augmentation_params": NUMBER}, {}, "reinforced dataset without its images"),
        ({"x": TEXT}, {}, r"has no image column; its columns are \['x'\], of which none hold .*cast_column"),
        ({"x": IMAGE, "y": IMAGE}, {}, r"several image columns; .*\['x', 'y'\] hold images. Name one with image_col"),
        ({"x": IMAGE}, {"image_column": "z"}, "has no image column 'z'"),
    ],
)
def test_columns_are_found_where_they_are_unambiguous(features, named, expected):
    if isinstance(expected, tuple):
        assert find_columns(Features(features), **named) == expected
    else:
        with pytest.raises(ValueError, match=expected):
            find_columns(Features(features), **named)


@pytest.mark.parametrize("pickled", [False, True])
def test_images_are_read_where_they_are(tmp_path, pickled):
    """Bytes in the dataset, in a file, and nowhere; through selections and several files; in another process too."""
    (tmp_path / "image.png").write_bytes(b"file")
    items = [{"bytes": bytes([row]) * 1000, "path": None} for row in range(50)]
    items += [{"bytes": None, "path": str(tmp_path / "image.png")}, {"bytes": None, "path": "gone.png"}, None]
    with ArrowWriter(path=str(tmp_path / "rows.arrow"), features=Features({"image": Image()})) as writer:
        writer.write_batch({"image": items})
        writer.finalize()
    stored = Dataset.from_file(str(tmp_path / "rows.arrow"))
    order = np.random.default_rng(0).permutation(2 * len(items))
    source = ImageSource.of(concatenate_datasets([stored, stored]).select(order.tolist()))
    if pickled:
        packed = pickle.dumps(source)
        assert len(packed) < 10_000, "the images travel as the name of their file"
        source = pickle.loads(packed)
    assert source.stored_rows(np.arange(len(order))).tolist() == order.tolist()
    for row, place in enumerate((order % len(items)).tolist()):
        if place > 50:
            with pytest.raises(ImageError, match=f"^Row {row} "):
                source.encoded(row)
        else:
            assert bytes(source.encoded(row)) == (items[place]["bytes"] or b"file")
