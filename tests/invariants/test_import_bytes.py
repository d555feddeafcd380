"""What an import of the original's archives writes never changes: values of every column, encodings, configuration."""

import hashlib
import json

import numpy as np
import pyarrow.parquet as pq
import pytest
from test_ml_dr import Original, compressed, uncompressed

from hf_reinforce import schema
from hf_reinforce.importers.ml_dr import import_ml_dr

EXPECTED = {
    "mixing_randaug": "42b545cdc4211a094f6d1921c098771a0b29df1aabb806155378f2a650bc7a38",
    "small_randaug": "7939bd835ba0f4a4139ed21e1daf47757ffa96aad96c1b68e9c39217863b4dfd",
}


def digest(folder):
    """A checksum of a configuration, without what depends on the versions of libraries."""
    found = []
    for path in sorted(folder.glob("*.parquet")):
        file = pq.ParquetFile(path)
        names = [name for name in file.schema_arrow.names if name != schema.IMAGE_HASH]  # of files that Pillow wrote
        columns = [file.metadata.row_group(0).column(index) for index in range(file.metadata.num_columns)]
        layout = [(column.path_in_schema, column.compression, sorted(column.encodings)) for column in columns]
        found.append([path.name, file.metadata.num_row_groups, layout, file.read(names).to_pylist()])
    config = json.loads((folder / "reinforcement.json").read_text(encoding="utf-8"))
    config["checksums"], config["pixels"] = sorted(config["checksums"]), config["pixels"]["backend"]
    return hashlib.sha256(json.dumps([found, list(config.items())]).encode()).hexdigest()


@pytest.mark.parametrize("variant", ["mixing_randaug", "small_randaug"])
def test_import(variant, tmp_path, monkeypatch):
    monkeypatch.setattr("hf_reinforce.importers.ml_dr.importer.draw", lambda *arguments: None, raising=False)
    original = Original(variant)
    archives = [
        original.archive(tmp_path / "a.tar.gz", layout=compressed),
        original.archive(tmp_path / "b.tar", drawn=original.draw(2, seed=1), layout=uncompressed),
    ]
    order = [5, 0, 7, 2, 1, 6, 3, 4]
    source = original.source.select(np.argsort(order))
    id_map = [-1 if row == 6 else row for row in order]
    folder = import_ml_dr(archives, source, tmp_path / "out", id_map=id_map, shard_size=3)
    assert digest(folder) == EXPECTED[variant]
