"""Check user-defined codecs: the methods when a server or client is made, the results at run time.

Everything that can be checked without messages is checked when the codec is declared. A wrong
result at run time raises `TypeError` from ``write``, or closes the connection with an error that
names the method. tao's own codec is not checked, so it costs nothing extra.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from tao.callables import check_callable
from tao.errors import NotRegistered
from tao.safe_text import safe_repr
from tao.wire.codec import (
    Batch,
    Codec,
    Decoder,
    TypeLengthValueCodec,
    TypeLengthValueDecoder,
    unintended,
)
from tao.wire.message import Message, Registry, default_registry

__all__ = [
    "check_codec",
    "check_decoder",
    "checked_decoder",
    "checked_encoder",
    "checked_frame",
    "checks_itself",
    "headed_frame",
    "limit_decoder",
    "restricted",
    "takes_time",
]


# The methods of a decoder that append to a batch.
_LOOPS = ("feed", "decode", "decode_frames")


def check_codec(codec: Any, registry: Registry) -> None:
    """Check a codec before there is a connection.

    Raises:
        TypeError: a method is missing or wrong; the text names it.
        Exception: what ``decoder()`` raises, unless it lacks messages that may be declared later.
    """
    if isinstance(codec, type):
        raise TypeError(f"codec must be an object, not a class; write {codec.__name__}()")
    if type(codec) is TypeLengthValueCodec:
        return
    for name, argument in (("encode", "message"), ("decoder", "registry")):
        method = getattr(codec, name, None)
        if not callable(method) or _is_inherited(codec, name):
            raise TypeError(f"codec must have {name}(), but {safe_repr(codec)} has none")
        check_callable(f"codec.{name}", method, argument)
    heartbeat = getattr(codec, "heartbeat", None)  # a codec may have none
    if heartbeat is not None:
        check_callable("codec.heartbeat", heartbeat, "conn")
    for name in ("is_heartbeat", "check_number"):
        method = getattr(codec, name, None)
        if method is not None:
            check_callable(f"codec.{name}", method, "number")
    try:
        check_decoder(codec, registry)
    except (NotRegistered, LookupError):
        pass  # it looks up messages that may still be declared before the start


def takes_time(heartbeat: Any) -> bool:
    """Return whether a codec's ``heartbeat`` takes the time; otherwise it takes the connection.

    The name of its argument tells, see `Codec.heartbeat`.
    """
    code = getattr(getattr(heartbeat, "__func__", heartbeat), "__code__", None)
    return code is not None and "nanoseconds" in code.co_varnames[: code.co_argcount]


def check_decoder(codec: Codec, registry: Registry) -> None:
    """Make a decoder for no connection and check it.

    Raises:
        TypeError: a method is missing or wrong; the text names it.
        Exception: what ``decoder()`` raises.
    """
    if type(codec) is TypeLengthValueCodec:
        return
    decoder: Any = codec.decoder(registry)
    kind = f"{type(codec).__name__}.decoder()"
    if not callable(getattr(decoder, "feed", None)):
        raise TypeError(
            f"{kind} must return an object with feed(data, batch), not {safe_repr(decoder)}"
        )
    check_callable("feed", decoder.feed, "data", "batch")
    end = getattr(decoder, "end", None)
    if end is not None:
        check_callable("end", end)
    pending = getattr(decoder, "pending", 0)
    if not isinstance(pending, int):
        raise TypeError(
            f"pending of {type(decoder).__name__} must be an int, an attribute or a property, not "
            f"{safe_repr(pending)}"
        )
    try:
        returned = decoder.feed(b"", [])
    except Exception:
        return  # a decoder need not accept empty data
    if returned is not None:
        raise TypeError(_wrong_return(decoder, returned))


def restricted(codec: Codec, registry: Registry) -> Registry:
    """Return the registry of a server or client, after restricting it to the codec's numbers.

    Others are refused from now on when they are declared there. (Not in the default registry, which
    is for all codecs.)

    Raises:
        TypeError, ValueError: such a number is declared already.
    """
    check = getattr(codec, "check_number", None)  # a codec may have none
    if check is not None and registry is not default_registry:
        registry.restrict(check)
    return registry


def checked_encoder(codec: Codec) -> Callable[[Message], bytes]:
    """Return the codec's ``encode``, with its results checked if the codec is not tao's.

    A codec that can only have correct results says so, see `checks_itself`.
    """
    encode = codec.encode
    if type(codec) is TypeLengthValueCodec or checks_itself(codec, "encode"):
        return encode

    def checked(message: Message) -> bytes:
        frame = encode(message)
        return frame if type(frame) is bytes else checked_frame(codec, "encode", frame)

    return checked


def headed_frame(codec: Any, message: Message, header: Mapping[str, Any]) -> bytes:
    """Return the frame of a message with a header; the result is checked.

    Raises:
        TypeError: the codec takes no headers, or the result is not bytes-like.
        Exception: what ``encode()`` raises.
    """
    if not getattr(codec, "takes_headers", False):
        raise TypeError(f"the frames of {type(codec).__name__} have no other fields for a header")
    return checked_frame(codec, "encode", codec.encode(message, header))


def checked_frame(codec: Codec, method: str, frame: Any) -> bytes:
    """Return the result of a codec method as ``bytes``.

    Raises:
        TypeError: it is not bytes-like.
    """
    if type(frame) is bytes:
        return frame
    if isinstance(frame, (bytes, bytearray, memoryview)):
        return bytes(frame)  # a copy, as the codec may change its buffer later
    raise TypeError(
        f"{type(codec).__name__}.{method}() must return bytes, not {type(frame).__name__}"
    )


def checked_decoder(codec: Codec, registry: Registry) -> Decoder:
    """Return a new decoder; one that is not tao's is wrapped to check its results.

    A decoder that can only have correct results says so, see `checks_itself`.
    """
    decoder = codec.decoder(registry)
    if type(decoder) is TypeLengthValueDecoder or checks_itself(decoder, *_LOOPS):
        return decoder
    return _CheckedDecoder(decoder)


def checks_itself(user: object, *methods: str) -> bool:
    """Return whether the results of the methods of a codec or decoder need no check.

    The class that defines them says so, by its attribute ``checks_itself``. That of a class below
    which defines one of them itself does not count.
    """
    own = vars(user) if hasattr(user, "__dict__") else {}
    if not own.keys().isdisjoint(methods):
        return False
    for names in (own, *map(vars, type(user).__mro__)):
        if "checks_itself" in names:
            return bool(names["checks_itself"])
        if not names.keys().isdisjoint(methods):
            return False
    return False


def limit_decoder(decoder: Any, most: int) -> Callable[[], None]:
    """Have a decoder accept no message longer than ``most`` bytes, if it has a ``max_bytes``.

    Returns:
        a function that lifts the limit again; any thread may call it.
    """
    limited: Any = decoder.decoder if isinstance(decoder, _CheckedDecoder) else decoder
    before = getattr(limited, "max_bytes", None)
    if isinstance(before, int) and most < before:
        limited.max_bytes = most
        return lambda: setattr(limited, "max_bytes", before)
    return lambda: None


class _CheckedDecoder:
    """Wraps a decoder to report misuse where it happens, not where it would surface later."""

    __slots__ = ("_feed", "decoder")

    def __init__(self, decoder: Any) -> None:
        self.decoder = decoder
        self._feed: Callable[[bytes, Batch], object] = decoder.feed

    def feed(self, data: bytes, batch: Batch) -> None:
        try:
            returned = self._feed(data, batch)
        except BaseException:
            del batch[_well_formed(batch) :]  # the exception is reported, not a malformed entry
            raise
        good = _well_formed(batch)
        if good < len(batch):
            kind = type(batch[good]).__name__
            del batch[good:]
            raise _misuse(
                f"{type(self.decoder).__name__}.feed() must append tuples of a number and a "
                f"message, not a {kind}"
            )
        if returned is not None:
            raise _misuse(_wrong_return(self.decoder, returned))

    @property
    def own(self) -> Any:
        """See `TypeLengthValueDecoder`; other decoders have none."""
        return self.decoder.own

    @own.setter
    def own(self, take: Any) -> None:
        self.decoder.own = take

    def __getattr__(self, name: str) -> Any:
        """Return ``pending`` and ``end`` of the decoder, if it has them."""
        return getattr(self.decoder, name)


def _well_formed(batch: list[Any]) -> int:
    """Return how many leading entries are a pair of a hashable number and a message."""
    try:
        dict(batch)
        if {*map(type, batch)} <= {tuple}:  # dict() takes other things of two items as well
            return len(batch)
    except (TypeError, ValueError):
        pass
    for count, entry in enumerate(batch):
        if not isinstance(entry, (tuple, list)):
            return count
        try:
            number, _ = entry
            hash(number)
        except (TypeError, ValueError):
            return count
    return len(batch)


def _wrong_return(decoder: Any, returned: object) -> str:
    return (
        f"{type(decoder).__name__}.feed() must append to its batch and return None, "
        f"not a {type(returned).__name__}"
    )


def _misuse(text: str) -> Exception:
    """Return the error for a decoder that violates its contract."""
    return unintended(text, TypeError(text))


def _is_inherited(codec: Any, name: str) -> bool:
    """Return whether a method is the empty one inherited from the protocol."""
    own = name in getattr(codec, "__dict__", ())
    return getattr(type(codec), name, None) is getattr(Codec, name) and not own
