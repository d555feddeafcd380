"""Fixtures that every test may use, and a process without network, with its own caches and one thread."""

import os
import shutil
import tempfile

_CACHE = tempfile.mkdtemp(prefix="hf_reinforce_tests_")
os.environ.update(
    HF_HOME=_CACHE,
    HF_DATASETS_CACHE=os.path.join(_CACHE, "datasets"),
    HF_HUB_CACHE=os.path.join(_CACHE, "hub"),
    HF_HUB_OFFLINE="1",
    HF_DATASETS_OFFLINE="1",
    TRANSFORMERS_OFFLINE="1",
    HF_HUB_DISABLE_TELEMETRY="1",
    OMP_NUM_THREADS="1",
)

# The libraries read the environment when they are imported.
import io  # noqa: E402

import pytest  # noqa: E402
import torch  # noqa: E402
from datasets import Dataset, disable_progress_bars  # noqa: E402
from hub_client import Client  # noqa: E402
from hub_server import HubServer  # noqa: E402
from hypothesis import settings  # noqa: E402
from PIL import Image  # noqa: E402
from sklearn.datasets import load_sample_image  # noqa: E402

torch.set_num_threads(1)
disable_progress_bars()
settings.register_profile("repeatable", deadline=None, derandomize=True, max_examples=100)
settings.load_profile("repeatable")


def pytest_unconfigure():
    shutil.rmtree(_CACHE, ignore_errors=True)


@pytest.fixture(scope="session")
def _photo():
    return Image.fromarray(load_sample_image("china.jpg")).resize((200, 140), Image.Resampling.LANCZOS)


@pytest.fixture
def photo(_photo):
    """A colourful RGB photo of 200 x 140 pixels (width x height)."""
    return _photo.copy()


@pytest.fixture
def encoded(photo):
    """`encoded(format, mode, **options)`: the photo in a mode, as the bytes of a file; options are Pillow's."""

    def encode(format="PNG", mode="RGB", image=None, **options):
        buffer = io.BytesIO()
        image = photo if image is None else image
        (image if image.mode == mode else image.convert(mode)).save(buffer, format=format, **options)
        return buffer.getvalue()

    return encode


@pytest.fixture
def through_parquet(tmp_path):
    """`through_parquet(rows, features)`: a Dataset of the rows, written to a Parquet file and read back."""

    def round_trip(rows, features):
        path = str(tmp_path / "rows.parquet")
        Dataset.from_list(rows, features=features).to_parquet(path)
        return Dataset.from_parquet(path, cache_dir=str(tmp_path / "cache"))

    return round_trip


@pytest.fixture(scope="session")
def hub():
    """A stand-in for the Hub; each module gives its repositories names of its own."""
    with HubServer() as server:
        yield server


@pytest.fixture(scope="session")
def client(hub, tmp_path_factory):
    """`client(function, *args)`: runs a function in a process whose Hub is the stand-in."""
    caller = Client(hub, tmp_path_factory.mktemp("client"))
    yield caller
    caller.close()
