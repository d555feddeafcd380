"""Licences of datasets and networks, as their own cards state them, and the terms of ImageNet."""

import re
from pathlib import Path
from typing import Any

from hf_reinforce.local_copies import resolve

IMAGENET_LICENSE = {
    "license": "other",
    "license_name": "imagenet",
    "license_link": "https://www.image-net.org/download.php",
}
"""Card metadata for what is derived from ImageNet; the link leads to its terms of access."""

IMAGENET_PROMPT = """\
This dataset is derived from ImageNet: it describes views of ImageNet images, which it does not contain. The terms \
of access to ImageNet, https://www.image-net.org/download.php, apply to what you do with it. By requesting access \
you confirm that you have accepted them and that

1. you use this dataset for non-commercial research and educational purposes only;
2. you obtain the images themselves from ImageNet, or from a source that asks you to accept its terms;
3. you answer for your own use, and hold ImageNet, its universities and the publishers of this dataset harmless;
4. you give it only to colleagues who have accepted the same terms; an employer is bound by them as you are.
The terms of ImageNet decide wherever this summary differs from them.
"""

_HUB_ID = re.compile(r"\w[\w.-]*/[\w.-]+")
_IMAGENET = re.compile(r"(^|[/_.-])(ilsvrc|imagenet)", re.IGNORECASE)  # rather the terms too often than too seldom


def is_hub_id(name: str | None) -> bool:
    """Whether a recorded name is a repository on the Hub: `owner/name`. It is asked the same anywhere."""
    return name is not None and _HUB_ID.fullmatch(name) is not None


def recorded_name(name: str) -> str:
    """A name that was loaded here as it is to be recorded: a folder like a Hub id gets `./` in front."""
    return f"./{name}" if is_hub_id(name) and Path(name).exists() else name


def is_imagenet(name: str | None) -> bool:
    """Whether a source is ImageNet or a part of it, by its name, so that ImageNet's terms apply."""
    return name is not None and _IMAGENET.search(name) is not None


def read_license(name: str | None, repo_type: str, revision: str | None = None) -> str | None:
    """The licence that the own card of a dataset or model states, by folder or Hub id.

    It is the Hub's identifier, e.g. `cc-by-nc-4.0`, several joined by commas; None where there is no card, it states
    no licence, or it cannot be read: nothing depends on it.
    """
    import yaml
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError
    from huggingface_hub.repocard import metadata_load

    if name is None:
        return None
    try:
        path = Path(resolve(name)) / "README.md"
        if not path.parent.exists():
            if not is_hub_id(name):
                return None
            path = Path(hf_hub_download(name, "README.md", repo_type=repo_type, revision=revision))
        found: Any = (metadata_load(path) or {}).get("license") if path.is_file() else None
    except (OSError, ValueError, HTTPError, yaml.YAMLError):
        return None
    names = [item for item in (found if isinstance(found, list) else [found]) if isinstance(item, str) and item]
    return ", ".join(names) or None
