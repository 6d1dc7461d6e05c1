"""What the Hub or the way to it refused, as one sentence and what to do next; exit code 4."""

from __future__ import annotations

import contextlib
import errno
import json
from collections.abc import Iterator
from typing import Any

from diffcompress.errors import AccessError, DiffCompressError

_LOG_IN = "log in with `hf auth login`, or set HF_TOKEN"
# By name: which of them huggingface_hub is built on differs between its versions.
_HTTP_LIBRARIES = ("httpx", "httpx2", "requests", "urllib3", "httpcore")


class UnreachableError(AccessError):
    """No network, or the Hub is down: nobody said no, and a cached copy will do."""


@contextlib.contextmanager
def told(repository: str, revision: str | None) -> Iterator[None]:
    """Turn whatever huggingface_hub raises about `repository` at `revision` into an AccessError."""
    try:
        yield
    except DiffCompressError:
        raise
    except Exception as error:
        explained = explain(error, repository, revision)
        if explained is None:
            raise
        raise explained from error


def is_unreachable(error: Exception) -> bool:
    """Whether no answer came from the Hub at all."""
    return isinstance(explain(error, "", None), UnreachableError)


def explain(error: Exception, repository: str, revision: str | None) -> AccessError | None:
    """The AccessError for `error`; None for what has nothing to do with access, such as a full disk."""
    from huggingface_hub import constants, errors, get_token

    causes = list(_causes(error))
    page = f"{constants.ENDPOINT}/{repository}"
    for cause in causes:
        if isinstance(cause, errors.GatedRepoError):
            log_in = "" if get_token() else f", and {_LOG_IN}"
            return AccessError(
                f"'{repository}' is gated, and its conditions are not accepted yet", f"accept them on {page}{log_in}"
            )
        if isinstance(cause, errors.RevisionNotFoundError):
            return AccessError(
                f"'{repository}' has no revision '{revision or 'main'}'",
                f"see {page}/tree/main for its branches and tags",
            )
        if isinstance(cause, errors.RepositoryNotFoundError):
            return _not_found(repository, logged_in=get_token() is not None)
        if isinstance(cause, errors.DisabledRepoError):
            return AccessError(f"'{repository}' is disabled on the Hub", f"see {page}, or name another teacher")
    for cause in causes:
        if isinstance(cause, errors.HfHubHTTPError):
            if cause.response.status_code == 404:  # of a mirror, which does not say what it did not find
                return _not_found(repository, logged_in=get_token() is not None)
            return _by_status(cause.response.status_code, retry_after(cause), repository)
    if any(_is_network(cause) for cause in causes):
        return UnreachableError(
            f"'{repository}' cannot be read: the connection to {constants.ENDPOINT} failed or broke off",
            "check the network and run the command again, or name a folder",
        )
    if any(isinstance(cause, json.JSONDecodeError) for cause in causes):
        return UnreachableError(
            f"'{repository}' cannot be read: what answers at {constants.ENDPOINT} does not speak as the Hub does",
            "check HF_ENDPOINT and the network (a proxy or a login page may be in the way), or name a folder",
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return None
    if isinstance(error, OSError) and "Consistency check failed" in str(error):
        return AccessError(f"a file of '{repository}' arrived incomplete, and was thrown away", "run the command again")
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.EntryNotFoundError, errors.HFValidationError)):
        return AccessError(f"'{repository}' cannot be read: {_first_line(error)}", f"see {page}")
    return None


def retry_after(error: Exception, default: float | None = None) -> float | None:
    """Seconds to wait before asking again: the Hub's own word, else `default`; None when asking again is no use."""
    from huggingface_hub.errors import HfHubHTTPError

    if not isinstance(error, HfHubHTTPError) or not (_status(error) == 429 or _status(error) >= 500):
        return None
    stated = str(error.response.headers.get("Retry-After", ""))
    return float(stated) if stated.isdigit() else default


def _not_found(repository: str, *, logged_in: bool) -> AccessError:
    if logged_in:
        return AccessError(
            f"'{repository}' is not on the Hub, or your token may not read it",
            "check the spelling and, for a private repository, the rights of your token",
        )
    return AccessError(
        f"'{repository}' is not on the Hub, or it is private or gated: without a token the Hub does not say which",
        f"check the spelling; if it exists, {_LOG_IN}",
    )


def _by_status(status: int, wait: float | None, repository: str) -> AccessError:
    if status == 401:
        return AccessError(
            f"the Hub does not accept your token (401) for '{repository}'", f"{_LOG_IN} with a valid one"
        )
    if status == 403:
        return AccessError(
            f"the Hub forbids reading '{repository}' (403): your token lacks the right to",
            "use a token that may read it, made at https://huggingface.co/settings/tokens",
        )
    if status == 429:
        told = f"; it asks to wait {wait:.0f} s" if wait else ""
        return AccessError(
            f"the Hub refuses '{repository}' for too many requests (429){told}",
            f"wait and run the command again; {_LOG_IN} for a higher limit",
        )
    if status >= 500:
        return UnreachableError(
            f"the Hub failed ({status}) while reading '{repository}', several times", "run the command again later"
        )
    return AccessError(f"the Hub refused '{repository}' with status {status}", "see https://status.huggingface.co")


def _status(error: Any) -> int:
    return int(error.response.status_code)


def _is_network(error: BaseException) -> bool:
    if isinstance(error, (ConnectionError, TimeoutError)):
        return True
    return any(cls.__module__.partition(".")[0] in _HTTP_LIBRARIES for cls in type(error).__mro__)


def _causes(error: BaseException) -> Iterator[BaseException]:
    seen: list[BaseException] = []
    found: BaseException | None = error
    while found is not None and found not in seen:
        seen.append(found)
        yield found
        found = found.__cause__


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
