"""Renders docs/reference.md from the docstrings of the public names.

python docs/render_reference.py
"""

import inspect
import re
import textwrap
from pathlib import Path

import hf_reinforce

PAGE = Path(__file__).parent / "reference.md"
HEAD = """# Reference

What `hf_reinforce` exports. `python docs/render_reference.py` makes this page from the docstrings, and the tests run
every example.
"""
SECTIONS = ("Args", "Attributes", "Returns", "Yields", "Raises", "Example")


def render() -> str:
    """The page, Markdown."""
    return "\n".join([HEAD, *(_entry(name) for name in hf_reinforce.__all__ if not name.startswith("__"))])


def example(name: str) -> str | None:
    """The code of the example in the docstring of a public name."""
    found = re.search(r"^Example:\n((?:    .*\n|\n)+)", inspect.getdoc(getattr(hf_reinforce, name)) + "\n", re.M)
    return None if found is None else textwrap.dedent(found[1]).strip() + "\n"


def _entry(name: str) -> str:
    value = getattr(hf_reinforce, name)
    lines = [f"## `{name}`", "", f"`{name}{_signature(value)}`", "", _markdown(inspect.getdoc(value))]
    methods = vars(value) if inspect.isclass(value) else {}
    for method, inner in methods.items():
        inner = getattr(inner, "__func__", inner)
        if method.startswith("_") or not inspect.isfunction(inner) or not inspect.getdoc(inner):
            continue
        summary = inspect.getdoc(inner).split("\n\n")[0].replace("\n", " ")
        lines.append(f"- `.{method}{_signature(inner, own=True)}`: {summary}")
    return "\n".join([*lines, ""])


def _signature(value: object, own: bool = False) -> str:
    signature = inspect.signature(value)
    parameters = [
        each.replace(
            annotation=inspect.Parameter.empty, default=... if inspect.isfunction(each.default) else each.default
        )
        for key, each in signature.parameters.items()
        if not (own and key in ("self", "cls"))
    ]
    if len(parameters) > 20:  # those of TrainingArguments are transformers'
        return "(...)"
    return str(signature.replace(parameters=parameters, return_annotation=inspect.Signature.empty))


def _markdown(doc: str) -> str:
    parts = re.split(rf"^({'|'.join(SECTIONS)}):\n", doc, flags=re.M)
    text = [parts[0].strip()]
    for title, body in zip(parts[1::2], parts[2::2], strict=True):
        inside = re.match(r"((?:    .*\n|\n)*)", body + "\n")[0]
        rest, body = body[len(inside) :].strip(), textwrap.dedent(inside).rstrip()
        if title == "Example":
            text.append(f"```python\n{body.strip()}\n```")
        elif title in ("Args", "Attributes", "Raises"):
            items = re.split(r"^(?=\S)", body, flags=re.M)
            text.append(f"**{title}**\n\n" + "\n".join(_item(item) for item in items if item.strip()))
        else:
            text.append(f"**{title}** " + " ".join(body.split()))
        if rest:
            text.append(rest)
    return "\n\n".join(text) + "\n"


def _item(item: str) -> str:
    name, _, rest = " ".join(item.split()).partition(":")
    return f"- `{name}`:{rest}" if rest else f"- {name}"


if __name__ == "__main__":
    PAGE.write_text(render(), encoding="utf-8")
