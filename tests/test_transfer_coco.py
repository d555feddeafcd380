"""Annotations that lack something are named, with what to do."""

import json

import pytest

from hf_reinforce.transfer.coco import read_coco

WHOLE = {"id": 17, "image_id": 1, "category_id": 3, "bbox": [0, 0, 4, 4]}


@pytest.mark.parametrize(
    ("annotation", "expected"),
    [
        ({**WHOLE, "bbox": None}, "id 17 has no bbox; add what it lacks, or remove the annotation"),
        ({**WHOLE, "image_id": None, "bbox": None}, "id 17 has no image_id or bbox"),
        ({**WHOLE, "id": None, "bbox": None}, "with keys image_id, category_id has no bbox"),
        ({**WHOLE, "category_id": 5}, r"id 17 is of category 5, which 'categories' does not list; .*ids \[3\]"),
    ],
)
def test_an_annotation_that_lacks_something(tmp_path, annotation, expected):
    content = {
        "images": [{"id": 1, "file_name": "a.jpg"}],
        "categories": [{"id": 3, "name": "ant"}],
        "annotations": [{key: value for key, value in annotation.items() if value is not None}],
    }
    (tmp_path / "train.json").write_text(json.dumps(content))
    with pytest.raises(ValueError, match=f"train.json is no COCO JSON of boxes: the annotation.*{expected}"):
        read_coco(tmp_path, tmp_path / "train.json")
