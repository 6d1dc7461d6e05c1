"""Publish a finished run's pipeline on the Hub: weights, card and provenance in one commit; private unless told.

The run folder is the truth: a push that fails loses nothing, and the same command again pushes and does nothing else.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from diffcompress.errors import AccessError, DiffCompressError, UsageError
from diffcompress.records.provenance import Provenance
from diffcompress.records.report import Pushed
from diffcompress.records.run_files import read_record, write_json
from diffcompress.records.run_folder import RunFolder
from diffcompress.report import card, reading
from diffcompress.runtime import Progress
from diffcompress.sources import hub, hub_errors
from diffcompress.sources.licence import Licence

T = TypeVar("T")
_WAITS = (1.0, 2.0, 4.0, 8.0)
_LONGEST_WAIT = 120.0
_TOKENS = "https://huggingface.co/settings/tokens"


def check(repo: str, *, public: bool, licence: Licence) -> None:
    """Find out before hours of training whether `repo` (owner/name) could be pushed to.

    Raises UsageError for a name that is none, AccessError while the licence is unknown, offline, without a token that
    may write there, and for a repository that is public already when `public` was not said.
    """
    from huggingface_hub import HfApi, get_token

    _check_name(repo)
    if not licence.is_known:
        raise AccessError(
            f"the licence of the student is unknown ({licence.source}), so it is not pushed to '{repo}'",
            f"{licence.advice}, or leave out --push-to-hub",
        )
    later = "or leave out --push-to-hub now: the same command with it pushes the finished run later"
    if hub.is_offline():
        raise AccessError(f"'{repo}' cannot be pushed to offline", f"leave out --offline (HF_HUB_OFFLINE), {later}")
    if get_token() is None:
        raise AccessError(
            f"no token to push to '{repo}' with", f"log in with `hf auth login`, or set HF_TOKEN, {later}"
        )
    try:
        me = _patiently(lambda: HfApi().whoami())
        _check_rights(me, repo)
        exists_public = _is_public(repo)
    except DiffCompressError:
        raise
    except Exception as error:
        raise _explained(error, repo, later) from error
    if exists_public and not public:
        raise AccessError(
            f"'{repo}' is on the Hub already and is public, so pushing there publishes the student",
            "say --public if that is meant, or name another repository",
        )


def push(run: RunFolder, repo: str, *, public: bool, progress: Progress | None = None) -> Pushed:
    """Push `run.pipeline` to `repo` in one commit; write and return what `run.pushed` holds.

    The repository is made private unless `public`; one that exists keeps its visibility. Raises AccessError when the
    Hub refuses, DiffCompressError when it or the network keeps failing; the run stays as it is.
    """
    from huggingface_hub import CommitOperationAdd, HfApi

    provenance = read_record(run.provenance, Provenance)
    card.write(run.pipeline, provenance, reading.collect(run), repo)
    files = [CommitOperationAdd(path, str(run.pipeline / path)) for path in _files(run.pipeline)]
    api, name = HfApi(), provenance.teacher.name
    later = f"the run is finished and safe in {run.path}; the same command again pushes it and does nothing else"
    try:
        # Asked first: a token that may write to a repository may not be allowed to make one.
        if not _exists(repo):
            _patiently(lambda: api.create_repo(repo, private=not public, exist_ok=True))
        told = f"{name} compressed by diffcompress {provenance.versions['diffcompress']}"
        made = _patiently(lambda: api.create_commit(repo, files, commit_message=told))
        private = bool(_patiently(lambda: api.model_info(repo)).private)
    except Exception as error:
        raise _explained(error, repo, later) from error
    if progress is not None and public and private:
        progress.warn(f"'{repo}' existed as a private repository and stays private: change that in its settings")
    pushed = Pushed(
        repo=repo, url=str(made.repo_url), commit=made.oid, public=not private, files=dict(provenance.files)
    )
    write_json(run.pushed, pushed.to_json())
    return pushed


def _check_name(repo: str) -> None:
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    if hub.REPOSITORY_ID.fullmatch(repo) is None:
        raise UsageError(f"--push-to-hub '{repo}' is not a repository", "name it as owner/name")
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise UsageError(f"--push-to-hub '{repo}' is not a repository: {_told(error)}", "name it otherwise") from error


def _files(folder: Path) -> list[str]:
    """Paths of all files inside `folder`; parts that are links are followed."""
    walk = os.walk(folder, followlinks=True)
    return sorted((Path(root) / name).relative_to(folder).as_posix() for root, _, names in walk for name in names)


def _check_rights(me: dict[str, Any], repo: str) -> None:
    """Against what the Hub says of the token; fine-grained ones are only put to the test by the push itself."""
    owner = repo.partition("/")[0]
    owners = {me.get("name"), *(one.get("name") for one in me.get("orgs") or ())}
    if owner not in owners:
        raise AccessError(
            f"'{me.get('name')}' may not push to '{repo}': '{owner}' is neither you nor an organization of yours",
            f"name a repository of {', '.join(sorted(filter(None, owners)))}",
        )
    if ((me.get("auth") or {}).get("accessToken") or {}).get("role") == "read":
        raise AccessError(f"your token may only read, not push to '{repo}'", f"make one that may write at {_TOKENS}")


def _exists(repo: str) -> bool:
    from huggingface_hub import HfApi

    return _patiently(lambda: HfApi().repo_exists(repo))


def _is_public(repo: str) -> bool:
    from huggingface_hub import HfApi

    return _exists(repo) and not _patiently(lambda: HfApi().model_info(repo)).private


def _patiently(request: Callable[[], T]) -> T:
    """A push ends hours of work: it waits longer than a download, and for a network that is gone too."""
    return hub.patiently(request, waits=_WAITS, longest=_LONGEST_WAIT, reconnect=True)


def _explained(error: Exception, repo: str, later: str) -> DiffCompressError:
    from huggingface_hub.errors import HfHubHTTPError

    if isinstance(error, HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403, 404):
            return AccessError(
                f"the Hub refuses the push to '{repo}' ({status}): the token is not valid, or may not write there",
                f"make one that may write at {_TOKENS}; {later}",
            )
        return DiffCompressError(f"the push to '{repo}' failed: {_told(error)}", later)
    if hub_errors.is_unreachable(error):
        return DiffCompressError(f"the push to '{repo}' failed: the Hub cannot be reached", later)
    return DiffCompressError(f"the push to '{repo}' failed: {type(error).__name__}: {_told(error)}", later)


def _told(error: Exception) -> str:
    """In one line; the Hub's reason is often in the last of several."""
    return " ".join(str(error).split())
