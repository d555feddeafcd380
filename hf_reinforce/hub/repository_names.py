"""Names of repositories, branches and tags: those that the Hub would refuse are refused before anything is sent."""

import re

from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError, RevisionNotFoundError
from huggingface_hub.utils import validate_repo_id

from hf_reinforce.hub.remote import Branch

_FORBIDDEN = r"\.\.|@\{|//|/\.|\.lock(/|$)"
_REFERENCE = re.compile(rf"(?!.*({_FORBIDDEN}))(?![-./])[^\x00-\x20\x7f~^:?*\[\\]+(?<![./])")  # git check-ref-format


def check_names(repo_id: str, revision: str | None = None, tag: str | None = None) -> None:
    """Refuses names that cannot be names on the Hub.

    Args:
        repo_id: of a repository, `owner/name`.
        revision: of a branch.
        tag: of a tag.

    Raises:
        ValueError: if one of them is not a name.
    """
    try:
        validate_repo_id(repo_id)
        complete = "/" in repo_id
    except HFValidationError:
        complete = False
    if not complete:
        raise ValueError(
            f"repo_id must be 'owner/name', with letters, digits, '-', '_' and '.' in both of them, not {repo_id!r}."
        )
    for what, name in (("revision", revision), ("tag", tag)):
        if name is not None and not _REFERENCE.fullmatch(name):
            raise ValueError(
                f"{what} must be a name that git accepts, such as 'v1.0': without blanks, '..', '//', '@{{' or any of "
                f"~^:?*[\\, not starting with '-', '.' or '/', and not ending with '.', '/' or '.lock'; not {name!r}."
            )


def check_branch(branch: Branch) -> None:
    """Refuses what is no branch to commit to.

    Raises:
        ValueError: if a repository that exists has a tag or a commit of this name instead.
    """
    if branch.name.startswith("refs/pr/"):
        return
    try:
        refs = branch.api.list_repo_refs(branch.repo_id, repo_type="dataset")
        if branch.name not in {ref.name for ref in refs.branches}:
            branch.api.repo_info(branch.repo_id, repo_type="dataset", revision=branch.name)
            raise ValueError(
                f"{branch.name!r} is a tag or a commit of {branch.repo_id}, and what it holds cannot change; name a "
                "branch with revision=, and the result with tag=."
            )
    except (RepositoryNotFoundError, RevisionNotFoundError):
        return  # it will be created
