"""The URLs that name a cluster: where its Redis is, and what of it belongs to the cluster.

``redis://host:6379/0?prefix=game&partitions=1&retain=65536``; what is not for tao is for redis-py.
Pure functions, without redis-py.
"""

from __future__ import annotations

from typing import Final, NamedTuple
from urllib.parse import parse_qsl, urlencode, urlsplit

__all__ = ["ClusterUrl", "parse_cluster_url"]

_SCHEMES: Final = ("redis", "rediss", "unix")
# The longest prefix, and the most partitions, which all are read by every node.
_LONGEST, _MOST = 200, 64


class ClusterUrl(NamedTuple):
    """What a URL says.

    Attributes:
        redis: the URL for redis-py.
        shown: the URL without password, for logs and errors.
        prefix: begins the names of all keys; servers with the same one are a cluster.
        partitions: how many streams there are.
        retain: publications that each stream keeps for nodes that were away.
    """

    redis: str
    shown: str
    prefix: str
    partitions: int
    retain: int


def parse_cluster_url(url: str) -> ClusterUrl:
    """Read a URL.

    Raises:
        ValueError: it is none; the text does not contain the password.
    """
    parts = urlsplit(url)
    if parts.scheme not in _SCHEMES or not (parts.netloc or parts.path):
        known = ", ".join(f"{each}://" for each in _SCHEMES)
        raise ValueError(f'must be "local" or a URL that begins with one of {known}')
    if parts.scheme == "unix" and not parts.path:
        raise ValueError("must name a socket: unix:///path/to/socket")
    query = dict(parse_qsl(parts.query, keep_blank_values=True))
    prefix = query.pop("prefix", "tao")
    if not prefix.isprintable() or not 0 < len(prefix) <= _LONGEST or set(prefix) & set("{}"):
        raise ValueError(f"prefix must have 1 to {_LONGEST} printable characters, without braces")
    partitions = _count(query, "partitions", 1, _MOST)
    retain = _count(query, "retain", 65536, 1 << 30)
    host = parts.netloc.rpartition("@")[2]
    return ClusterUrl(
        f"{parts.scheme}://{parts.netloc}{parts.path}" + (f"?{urlencode(query)}" if query else ""),
        f"{parts.scheme}://{host}{parts.path}",
        prefix,
        partitions,
        retain,
    )


def _count(query: dict[str, str], name: str, default: int, most: int) -> int:
    text = query.pop(name, str(default))
    if not (text.isascii() and text.isdigit() and 1 <= int(text) <= most):
        raise ValueError(f"{name} must be a number from 1 to {most}, not {text!r}")
    return int(text)
