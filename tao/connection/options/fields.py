"""How an option is declared: default, unit and meaning, and the check of its value.

A declaration is a field of a dataclass, and its metadata hold what a plain field has no place for.
An option whose type ends in ``| None`` may be None; a check sees other values only. It raises a
``TypeError`` or ``ValueError`` that names the option.
"""

from __future__ import annotations

import functools
import socket
import ssl
from collections.abc import Callable, Collection
from dataclasses import Field, field, fields
from typing import Any, TypeVar, get_args

from tao.callables import check_callable, check_count, takes_arguments
from tao.connection.options.cluster_url import parse_cluster_url
from tao.runtime.context import Context
from tao.runtime.deadline import is_finite
from tao.runtime.threads import usable_cpus
from tao.runtime.worker_pool import WorkerPool
from tao.safe_text import safe_repr
from tao.transport.addresses import parse

__all__ = [
    "SOCKET_TIMEOUTS",
    "ErrorCallback",
    "callback",
    "check_cluster",
    "check_cluster_key",
    "check_cpus",
    "check_each",
    "check_login",
    "check_number",
    "check_on_error",
    "check_session",
    "check_socket_options",
    "check_source",
    "check_tls",
    "check_workers",
    "choice",
    "count",
    "hostname",
    "instance",
    "made_by",
    "number",
    "option",
    "takes_context",
]

T = TypeVar("T")
ConnT = TypeVar("ConnT")
#: The option ``on_error``, for a class of connections.
ErrorCallback = (
    Callable[[ConnT, BaseException], object]
    | Callable[[ConnT, BaseException, Context | None], object]
)
Check = Callable[[str, Any], object]

#: The options of a socket that would end its connection, as if reading or writing had failed.
SOCKET_TIMEOUTS = frozenset(
    getattr(socket, name) for name in ("SO_RCVTIMEO", "SO_SNDTIMEO") if hasattr(socket, name)
)
# The numbers that the kernel takes.
_INT32 = range(-(2**31), 2**31)


def option(default: T, meaning: str, *, unit: str = "", check: Check | None = None) -> T:
    """Declare an option.

    Args:
        default: what counts if nothing is given.
        meaning: for people; indented as it stands in the class.
        unit: what numbers count, if they do.
        check: called with the name of the option and what was given.

    Returns:
        a field for a dataclass, which type checkers are to take for the default.
    """
    declared: Any = field(default=default, metadata=_metadata(meaning, unit, check))
    return declared  # type: ignore[no-any-return]


def made_by(factory: Callable[[], T], meaning: str) -> T:
    """Declare an option with a default that is created anew each time."""
    declared: Any = field(default_factory=factory, metadata=_metadata(meaning, "", None))
    return declared  # type: ignore[no-any-return]


def count(default: T, unit: str, meaning: str) -> T:
    """Declare a number of things, at least one."""
    return option(default, meaning, unit=unit, check=check_count)


def number(default: T, unit: str, meaning: str) -> T:
    """Declare a quantity, such as seconds: a positive number."""
    return option(default, meaning, unit=unit, check=check_number)


def choice(default: T, kind: Any, meaning: str) -> T:
    """Declare one of several words, those of a ``Literal``."""
    choices = get_args(kind)

    def check(name: str, value: object) -> None:
        if value not in choices:
            raise ValueError(f"{name} must be one of {', '.join(choices)}, not {safe_repr(value)}")

    declared: Any = field(default=default, metadata=_metadata(meaning, "", check, choices))
    return declared  # type: ignore[no-any-return]


def callback(meaning: str, *arguments: str) -> Any:
    """Declare something to be called with these arguments; None, the default: nothing is."""
    return option(None, meaning, check=lambda name, value: check_callable(name, value, *arguments))


def instance(default: T, meaning: str, *kinds: type) -> T:
    """Declare something that is of one of these types."""
    expected = " or ".join(kind.__name__ for kind in kinds)

    def check(name: str, value: object) -> None:
        if not isinstance(value, kinds):
            raise TypeError(f"{name} must be {expected}, not {safe_repr(value)}")

    return option(default, meaning, check=check)


def hostname(default: T, meaning: str) -> T:
    """Declare the name or address of a host."""
    return option(default, meaning, check=_check_hostname)


def check_each(options: Any) -> None:
    """Check every option of an object by itself.

    Raises:
        TypeError, ValueError: one is wrong; the text names it.
    """
    kind: Any = type(options)
    for name, check, optional in _checks(kind):
        value = getattr(options, name)
        if not (optional and value is None):
            check(name, value)


@functools.cache
def _checks(kind: Any) -> list[tuple[str, Check, bool]]:
    """The options of a class that have a check, each with that and whether it may be None."""
    return [
        (each.name, each.metadata["check"], may_be_none(each))
        for each in fields(kind)
        if each.metadata["check"] is not None
    ]


def may_be_none(declared: Field[Any]) -> bool:
    """Return whether an option may be None, as its type says."""
    return str(declared.type).endswith("| None")


def _metadata(
    meaning: str, unit: str, check: Check | None, choices: tuple[str, ...] = ()
) -> dict[str, Any]:
    return {"meaning": meaning, "unit": unit, "check": check, "choices": choices}


# -- checks


def check_number(name: str, value: object) -> None:
    """Check a quantity."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, not {safe_repr(value)}")
    if not (value > 0 and is_finite(value)):
        raise ValueError(f"{name} must be positive and finite, not {safe_repr(value)}")


def check_tls(name: str, tls: object) -> None:
    """Check an SSL context."""
    if not isinstance(tls, ssl.SSLContext):
        # Not shown: a certificate is long, and may stand beside its key.
        raise TypeError(
            f"{name} must be an SSLContext, as load_tls_config() and load_client_tls_config() "
            f"return, or server_config() and client_config() of a certificate, not "
            f"{type(tls).__name__}"
        )


def check_workers(name: str, workers: object) -> None:
    """Check a number of workers, or a pool of them."""
    if not isinstance(workers, WorkerPool):
        check_count(name, workers)


def check_cluster(name: str, cluster: object) -> None:
    """Check what joins servers."""
    if not isinstance(cluster, str):
        raise TypeError(f"{name} must be a str, not {safe_repr(cluster)}")
    if cluster != "local":
        try:
            parse_cluster_url(cluster)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def check_cluster_key(name: str, keys: object) -> None:
    """Check the keys that sign what goes through a cluster; they are not shown."""
    found = keys if isinstance(keys, (list, tuple)) else [keys]
    if not found or not all(isinstance(each, bytes) for each in found):
        raise TypeError(f"{name} must be bytes, or a list of them")
    if any(len(each) < 16 for each in found if isinstance(each, bytes)):
        raise ValueError(f"{name}: a key must have 16 bytes at least, such as os.urandom(32)")


def check_login(name: str, login: object) -> None:
    """Check the message classes of a login."""
    if not isinstance(login, (tuple, list, set, frozenset)):
        raise TypeError(f"{name} must be a tuple of message classes, not {safe_repr(login)}")
    if not login:
        raise ValueError(f"{name} must name at least one message class")
    for each in login:
        number = getattr(each, "message_number", None)
        if not isinstance(each, type) or number is None or isinstance(number, property):
            raise TypeError(f"{name} must hold message classes, not {safe_repr(each)}")


def check_session(name: str, session: object) -> None:
    """Check whether a client is to have a session."""
    if not isinstance(session, bool) and session != "required":
        raise ValueError(f"{name} must be True, False or 'required', not {safe_repr(session)}")


def check_source(name: str, address: object) -> None:
    """Check where a connection is to come from."""
    if not isinstance(address, tuple):
        raise TypeError(f"{name} must be (host, port), not {safe_repr(address)}")
    try:
        parse(address, listening=True)
    except (TypeError, ValueError) as error:
        raise type(error)(f"{name}: {error}") from None


def _check_hostname(name: str, host: object) -> None:
    if not isinstance(host, str):
        raise TypeError(f"{name} must be a str, not {safe_repr(host)}")
    try:
        valid = host.encode("idna") and "\0" not in host
    except UnicodeError:
        valid = False
    if not valid:
        raise ValueError(f"{name} must be the name or the address of a host, not {safe_repr(host)}")


def check_socket_options(name: str, options: object) -> None:
    """Check the arguments for ``socket.setsockopt``."""
    if not isinstance(options, Collection) or isinstance(options, (str, bytes)):
        raise TypeError(f"{name} must be a list of (level, name, value), not {safe_repr(options)}")
    for each in options:
        if not (
            isinstance(each, (tuple, list))
            and len(each) == 3
            and all(isinstance(number, int) for number in each[:2])
            and isinstance(each[2], (int, bytes, bytearray))
        ):
            raise TypeError(f"{name} must hold (level, name, value), not {safe_repr(each)}")
        if not all(number in _INT32 for number in each if isinstance(number, int)):
            raise ValueError(f"{name} must hold numbers that fit an int32, not {safe_repr(each)}")
        if each[0] == socket.SOL_SOCKET and each[1] in SOCKET_TIMEOUTS:
            raise ValueError(f"{name}: a socket's timeouts are not for use: see idle_timeout")


def check_on_error(name: str, function: object) -> None:
    """Check what is to be called with each error."""
    if not takes_arguments(function, "conn", "error", "ctx"):
        check_callable(name, function, "conn", "error")


def takes_context(on_error: object) -> bool:
    """Return whether it takes three arguments, and not just any number of them."""
    arguments = ("conn", "error", "ctx")
    if not takes_arguments(on_error, *arguments):
        return False
    any_number = takes_arguments(on_error, *arguments, "more")
    return not (any_number and takes_arguments(on_error, *arguments[:2]))


def check_cpus(name: str, wanted: Any) -> None:
    """Check which CPUs threads are to be pinned to."""
    if not usable_cpus():
        raise ValueError(f"{name}: this platform cannot pin threads to CPUs")
    if wanted == "auto":
        return
    several = isinstance(wanted, Collection) and not isinstance(wanted, str) and len(wanted) > 0
    cpus = wanted if several else (wanted,)
    if not all(isinstance(cpu, int) and not isinstance(cpu, bool) for cpu in cpus):
        raise TypeError(f"{name} must be 'auto', a CPU number or several, not {safe_repr(wanted)}")
    if not usable_cpus() >= set(cpus):
        raise ValueError(f"{name}: of {sorted(cpus)} only {sorted(usable_cpus())} can be used here")
