"""A process of its own for the real clients of the Hub: they read its address and the token when they are imported."""

import multiprocessing
import os
import sys
from concurrent.futures import ProcessPoolExecutor
from unittest import mock

from hub_server import TOKEN
from recipe_modules import load_recipe


def run_recipe(name, *argv):
    """In the client: runs a recipe; the error that ended it, None without."""
    with mock.patch.object(sys, "argv", [f"{name}.py", *map(str, argv)]):
        try:
            load_recipe(name).main()
        except SystemExit as stop:
            return str(stop.code)
    return None


class Client:
    """Calls functions of the tests in another process, whose clients were imported for the Hub of a test.

    Args:
        hub: the server.
        cache: folder of what the clients download.
    """

    def __init__(self, hub, cache):
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("HF_", "TRANSFORMERS_"))}
        disabled = (
            "HUB_DISABLE_XET",
            "HUB_DISABLE_TELEMETRY",
            "HUB_DISABLE_PROGRESS_BARS",
            "DATASETS_DISABLE_PROGRESS_BARS",
        )
        own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(cache), "HF_TOKEN": TOKEN, "OMP_NUM_THREADS": "1"}
        self._pool = ProcessPoolExecutor(1, multiprocessing.get_context("spawn"))
        with mock.patch.dict(os.environ, {**kept, **own, **{f"HF_{name}": "1" for name in disabled}}, clear=True):
            self._pool.submit(os.getpid).result()

    def __call__(self, function, *args, **kwargs):
        return self._pool.submit(function, *args, **kwargs).result(timeout=600)

    def close(self):
        self._pool.shutdown()
