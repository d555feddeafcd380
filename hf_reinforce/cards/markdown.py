"""Markdown whose structure no name can change: everything that comes from data is escaped here."""

import json
import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from functools import cache
from typing import Any

from huggingface_hub import CardData

from hf_reinforce.licenses import IMAGENET_LICENSE, is_hub_id, is_imagenet
from hf_reinforce.models.classes import printable

_PLAIN = re.compile(r"[\w .,:;/@+='?%()-]")  # neither Markdown nor HTML give these a meaning inside a line


def text(value: object) -> str:
    """A value as running text: one line, in which only letters, digits and common signs stand for themselves."""
    line = " ".join(str(value).split())
    escaped = "".join(char if _stands_for_itself(char) else f"&#{ord(char)};" for char in line)
    # An underscore within a word emphasises nothing, and neither does one that stands between spaces.
    escaped = re.sub(r"(?<![^\W_])_|_(?![^\W_])", "&#95;", escaped)
    return re.sub(
        r"(?i)(https?|ftp):(?=//)|(?<=www)\.", lambda found: f"{found[0][:-1]}&#{ord(found[0][-1])};", escaped
    )


def _stands_for_itself(char: str) -> bool:
    return bool(_PLAIN.fullmatch(char)) or (ord(char) > 127 and not unicodedata.category(char).startswith("C"))


def code(value: object) -> str:
    """A value as inline code."""
    line = " ".join(str(value).split())
    if line and re.fullmatch(r"[\w .,:;/@+=?%()\[\]{}-]*", line):
        return f"`{line}`"
    return f"<code>{text(line)}</code>"


def linked(name: str, kind: str = "") -> str:
    """A name, as a link if it is a repository of the Hub; `kind` is `"datasets/"`, or empty for a model."""
    return f"[{text(name)}](https://huggingface.co/{kind}{name})" if is_hub_id(name) else code(name)


def source(name: str | None) -> str:
    """The name of a dataset that was reinforced."""
    return "the source dataset" if name is None else linked(name, "datasets/")


def license_text(license: str | None, source_name: str | None = None) -> str:
    """A licence, or that none is stated; of an ImageNet source a link to its terms of access."""
    if is_imagenet(source_name):
        return f"[ImageNet terms of access]({IMAGENET_LICENSE['license_link']})"
    return "not stated" if license is None else text(license)


def python_string(value: str) -> str:
    """A string as a Python literal in double quotes; what cannot be seen is written out."""
    return json.dumps(value, ensure_ascii=not value.isprintable())


def shell_word(value: str) -> str:
    """A string as one word of a command, in double quotes where these are enough; the invisible is written out."""
    plain = re.fullmatch(r"[\w./@+=:, -]+", value)
    return f'"{value}"' if plain else shlex.quote(printable(" ".join(value.split())))


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the cells are Markdown already."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


@cache
def _templates() -> Any:
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("hf_reinforce.cards"))
    own = {function.__name__: function for function in (text, code, linked, source, license_text, python_string)}
    environment.globals.update(own)
    environment.filters.update(own)
    return environment


def render(template: str, metadata: CardData, **values: Any) -> str:
    """A card from a file of `templates/`, which may call the functions above."""
    return str(_templates().get_template(template).render(card_data=metadata.to_yaml(), **values))
