"""The results: a Markdown table, and `latest.json` that keeps the rows of earlier runs."""

import json
import platform
from dataclasses import asdict
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import psutil
import torch

from benchmarks.measure import Row
from hf_reinforce.evaluation import results
from hf_reinforce.images.jpeg import DECODER
from hf_reinforce.store.atomic import write_whole

LIBRARIES = ("torch", "torchvision", "pillow", "numpy", "datasets", "pyarrow", "timm", "transformers", "accelerate")


def machine() -> dict[str, Any]:
    """What the numbers were measured on."""
    return {
        "gpu": None,
        **results.machine("cuda" if torch.cuda.is_available() else "cpu"),
        "memory_gb": round(psutil.virtual_memory().total / 1e9),
        "date": datetime.now(UTC).date().isoformat(),
    }


def save(rows: list[Row], path: Path, data: str) -> None:
    """Puts rows into the file, in the place of earlier ones of the same name against the same with the same photos."""
    new = {}
    for row in rows:
        fields = asdict(row)
        new[data, row.name, row.against] = {
            **{key: fields.pop(key) for key in ("name", "against", "ratio", "target")},
            "ok": row.ok,
            **fields,
            "data": data,
        }
    earlier = json.loads(path.read_text(encoding="utf-8"))["rows"] if path.exists() else []
    kept = {(row["data"], row["name"], row["against"]): row for row in earlier}
    versions = {"python": platform.python_version(), "decoder": DECODER, **{name: version(name) for name in LIBRARIES}}
    content = {"machine": machine(), "versions": versions, "rows": list({**kept, **new}.values())}
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(path, json.dumps(content, indent=1) + "\n")


def table(path: Path) -> str:
    """The rows of a file as Markdown, a table for each set of photos."""
    rows = json.loads(path.read_text(encoding="utf-8"))["rows"]
    tables = []
    for data in dict.fromkeys(row["data"] for row in rows):
        found = "\n".join(_line(row) for row in rows if row["data"] == data)
        tables.append(f"{data}:\n\n| what | against | measured | target | ok |\n|---|---|---|---|---|\n{found}")
    return "\n\n".join(tables)


def _line(row: dict[str, Any]) -> str:
    unit = "x" if row["unit"] == "x" else f" {row['unit']}"
    measured = row["note"] if row["ratio"] is None else f"{_figure(row['ratio'])}{unit}"
    target = f"{'at most' if row['at_most'] else 'at least'} {_figure(row['target'])}{unit}"
    ok = {True: "yes", False: "no", None: ""}[row["ok"]]
    return f"| {row['name']} | {row['against']} | {measured} | {target} | {ok} |"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 1000 else f"{value:.3g}"
