import pytest
from datasets import ClassLabel, Features, Image, Value

from hf_reinforce.sources import find_columns

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
    with pytest.raises(ValueError, match="reinforced data set without its images"):
        find_columns(Features({"label": ClassLabel(names=["a"]), "teacher_logits": Value("float32")}))


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
