import pickle

import numpy as np
import pytest
from datasets import ClassLabel, Dataset, Features, Image, Value, concatenate_datasets
from datasets.arrow_writer import ArrowWriter

from hf_reinforce.images import ImageError
from hf_reinforce.sources.image_source import ImageSource, find_columns

COARSE_AND_FINE = Features(
    {"img": Image(), "fine_label": ClassLabel(names=["a", "b"]), "coarse_label": ClassLabel(names=["c"])}
)


def test_columns_that_are_unambiguous_are_found():
    assert find_columns(Features({"x": Image(), "y": ClassLabel(names=["a"])})) == ("x", "y")
    assert find_columns(Features({"x": Image(), "label": Value("int64"), "text": Value("string")})) == ("x", "label")
    assert find_columns(Features({"x": Image(), "y": ClassLabel(names=["a"])}), label_column="") == ("x", None)
    assert find_columns(Features({"x": Image(), "text": Value("string")})) == ("x", None)


def test_several_label_columns_are_not_guessed():
    with pytest.raises(ValueError, match="several label columns, .*fine_label.*coarse_label.*--label_column_name"):
        find_columns(COARSE_AND_FINE)
    assert find_columns(COARSE_AND_FINE, label_column="fine_label") == ("img", "fine_label")


def test_a_reinforced_data_set_without_images_says_where_they_are():
    with pytest.raises(ValueError, match="reinforced dataset without its images"):
        find_columns(Features({"label": ClassLabel(names=["a"]), "augmentation_params": Value("float32")}))


def test_without_a_name_none_is_called_none():
    with pytest.raises(
        ValueError, match=r"has no image column; its columns are \['x'\], of which none hold .*cast_column"
    ):
        find_columns(Features({"x": Value("string")}))
    with pytest.raises(
        ValueError, match=r"several image columns; .*\['x', 'y'\] hold images. Name one with image_column"
    ):
        find_columns(Features({"x": Image(), "y": Image()}))
    with pytest.raises(ValueError, match="has no image column 'z'"):
        find_columns(Features({"x": Image()}), "z")


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
