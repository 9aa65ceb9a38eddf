"""Messages and registries: numbers, layers, decorators, and everything that is refused."""

from __future__ import annotations

import gc
import re
import weakref
from typing import Any, ClassVar

import pytest

from tao.errors import AlreadyRegistered, NotRegistered
from tao.wire import message as message_module
from tao.wire.codec import TypeLengthValueCodec
from tao.wire.codec_checks import restricted
from tao.wire.message import (
    ANY,
    HEARTBEAT,
    HeartbeatMessage,
    Message,
    Registration,
    Registry,
    UnknownMessage,
)
from tests.support import together


class Chat(Message):
    """A message that subclasses `Message`, which is optional."""

    message_number: ClassVar[int] = 1

    def __init__(self, text: str) -> None:
        self.text: str = text

    def serialize(self) -> bytes:
        return self.text.encode()

    @classmethod
    def deserialize(cls, data: bytes) -> Chat:
        return cls(data.decode())


class Shout(Chat):
    """Another class with the same number."""


def handle(ctx: Any, conn: Any) -> None:
    """A handler that does nothing."""


@pytest.fixture
def registry() -> Registry:
    """An empty registry without a parent."""
    return Registry()


# -- messages


def test_a_heartbeat_is_eight_bytes_of_nanoseconds() -> None:
    """It is little-endian, and supports negative times."""
    assert HeartbeatMessage.message_number == HEARTBEAT == 0
    assert HeartbeatMessage(0x0102).serialize() == b"\x02\x01\0\0\0\0\0\0"
    beat = HeartbeatMessage.deserialize(HeartbeatMessage(-5).serialize())
    assert (beat.timestamp, repr(beat)) == (-5, "HeartbeatMessage(-5)")


@pytest.mark.parametrize(("size", "timestamp"), [(0, 0), (7, 0), (9, 1), (16, 1)])
def test_a_heartbeat_of_another_size_is_accepted(size: int, timestamp: int) -> None:
    """A busy server of the Go original sends such heartbeats occasionally."""
    value = (b"\1" + bytes(7)) * 2
    assert HeartbeatMessage.deserialize(value[:size]).timestamp == timestamp


def test_whatever_has_number_and_serialize_is_a_message() -> None:
    """Subclassing `Message` is optional, and keeps the class's constructor."""
    assert isinstance(HeartbeatMessage(1), Message)
    assert isinstance(Chat("hi"), Message) and Chat("hi").text == "hi"
    assert not isinstance("hi", Message)


# -- registering


def test_a_registration_is_found_by_its_number(registry: Registry) -> None:
    """Number, deserializer, handler and dispatch are stored unchanged."""
    registry.register(1, Chat.deserialize, handle, dispatch="pool")
    found = registry.lookup(1)
    assert (found.number, found.handler, found.dispatch) == (1, handle, "pool")
    assert found.deserialize(b"hi").text == "hi"
    assert 1 in registry and 2 not in registry and "1" not in registry
    with pytest.raises(NotRegistered, match="number 2 is not registered"):
        registry.lookup(2)


def test_the_repr_of_a_registration() -> None:
    """It has the number and both functions."""
    assert repr(Registration(3, len)) == f"Registration(3, {len!r}, handler=None)"


@pytest.mark.parametrize("number", [0, -1, 2**64, "GET", b"\0", "", (3, "x", b"y"), (1,)])
def test_numbers_of_all_kinds(registry: Registry, number: Any) -> None:
    """A number is an int, a str, bytes or a tuple of these, and is found by equality."""
    registry.handler(type("Message", (Chat,), {"message_number": number}))(handle)
    assert registry.lookup(number).number == number and list(registry.entries) == [number]
    with pytest.raises(AlreadyRegistered, match=re.escape(f"number {number!r} is registered")):
        registry.register(number, bytes)


@pytest.mark.parametrize("number", [True, 1.0, None, (), (1, True), (1, None), ((1,),), [1]])
def test_other_numbers_are_refused(registry: Registry, number: Any) -> None:
    """``register`` and the decorator refuse them; the error names the number."""
    with pytest.raises(TypeError, match=re.escape(f"or a tuple of these, not {number!r}")):
        registry.register(number, Chat.deserialize)
    with pytest.raises(TypeError, match="message_number"):
        registry.handler(type("Bad", (Chat,), {"message_number": number}))
    assert not registry.entries


@pytest.mark.parametrize(
    ("number", "error"),
    [
        *((2**31, ValueError), (-(2**31) - 1, ValueError), ("1", TypeError)),
        *((-(2**31), ValueError), (-(2**31) + 15, ValueError)),  # tao's own
    ],
)
@pytest.mark.parametrize("layer", [False, True])
def test_a_codec_refuses_numbers_that_it_does_not_support(
    number: Any, error: Any, layer: bool
) -> None:
    """The default codec supports int32 only, whether declared before or after its creation."""
    default = Registry()
    default.register(number, bytes)
    own = Registry(default if layer else None)
    restricted(TypeLengthValueCodec(), own).register(-(2**31) + 16, bytes)
    with pytest.raises(error, match=f"message_number.*{number}"):
        own.register(number, Chat.deserialize)
    with pytest.raises(error, match=f"message_number.*{number}"):
        own.handler(type("Bad", (Chat,), {"message_number": number}))
    with pytest.raises(error, match=f"message_number.*{number}"):
        restricted(TypeLengthValueCodec(), default)


def test_any_stands_for_unregistered_numbers(registry: Registry) -> None:
    """It has one handler per layer, which other layers inherit, and it can be unregistered."""
    layer = Registry(registry)
    registry.handler(ANY, dispatch="inline")(handle)
    assert layer.lookup(ANY).handler is handle and layer.lookup(ANY).dispatch == "inline"
    with pytest.raises(AlreadyRegistered, match="number ANY has a handler: handle"):
        registry.handler(ANY)(lambda ctx, conn: None)
    with pytest.raises(TypeError, match="not ANY"):
        registry.register(ANY, bytes)  # type: ignore[arg-type]
    restricted(TypeLengthValueCodec(), registry).unregister(ANY)
    assert ANY not in layer


def test_an_unknown_message_can_be_passed_on() -> None:
    """It has the received number and value, and its repr shows both."""
    message = UnknownMessage("GET", b"key")
    assert TypeLengthValueCodec().encode(UnknownMessage(7, b"!")) == b"\7\0\0\0\1\0\0\0!"
    assert (message.message_number, message.number, message.value) == ("GET", "GET", b"key")
    assert repr(message) == "UnknownMessage('GET', b'key')"


def test_other_invalid_arguments_are_refused(registry: Registry) -> None:
    """The error names the argument, and nothing is registered."""
    with pytest.raises(TypeError, match="deserialize must be callable, not 5"):
        registry.register(1, 5)  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="handler must be callable, not 5"):
        registry.register(1, Chat.deserialize, 5)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="dispatch must be 'auto', 'pool' or 'inline', not 'x'"):
        registry.register(1, Chat.deserialize, dispatch="x")
    with pytest.raises(ValueError, match="dispatch"):
        registry.handler(Chat, dispatch="x")
    with pytest.raises(TypeError, match="handler must be callable"):
        registry.handler(Chat)(5)  # type: ignore[type-var]
    assert 1 not in registry


def test_registering_twice_is_an_error(registry: Registry) -> None:
    """The second is refused, with or without a handler, and the first one stays."""
    registry.register(1, Chat.deserialize)
    with pytest.raises(AlreadyRegistered, match="message number 1 is registered twice"):
        registry.register(1, Chat.deserialize, handle)
    assert registry.lookup(1).handler is None


def test_the_default_registry_has_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """``register`` uses the registry from which all others inherit by default."""
    default = Registry()
    monkeypatch.setattr(message_module, "default_registry", default)
    message_module.register(1, Chat.deserialize, handle, dispatch="inline")
    assert (default.lookup(1).handler, default.lookup(1).dispatch) == (handle, "inline")


# -- the decorator


def test_the_decorator_registers_class_and_handler(registry: Registry) -> None:
    """The function is returned unchanged, and handles the class."""
    assert registry.handler(Chat, dispatch="inline")(handle) is handle
    found = registry.lookup(1)
    assert (found.handler, found.dispatch) == (handle, "inline")
    assert isinstance(found.deserialize(b"x"), Chat)


def test_the_decorator_completes_a_registration(registry: Registry) -> None:
    """A registered class gets its handler; its dispatch stays unless a new one is given."""
    registry.register(1, Chat.deserialize, dispatch="pool")
    registry.handler(Chat)(handle)
    assert (registry.lookup(1).handler, registry.lookup(1).dispatch) == (handle, "pool")
    other = Registry()
    other.register(1, Chat.deserialize, dispatch="pool")
    other.handler(Chat, dispatch="auto")(handle)
    assert other.lookup(1).dispatch == "auto"


def test_a_number_has_one_handler_and_one_class(registry: Registry) -> None:
    """A second handler or class is refused, and the error names the existing one."""
    registry.handler(Chat)(handle)
    with pytest.raises(AlreadyRegistered, match="message number 1 has a handler: handle"):
        registry.handler(Chat)(lambda ctx, conn: None)
    with pytest.raises(AlreadyRegistered, match="message number 1 belongs to "):
        registry.handler(Shout)(handle)


@pytest.mark.parametrize(
    ("attributes", "text"),
    [
        ({}, "Odd has no message_number"),
        ({"message_number": vars(Message)["message_number"]}, "Odd has no message_number"),
        ({"message_number": 1}, r"Odd has no deserialize\(data\) class method"),
        ({"message_number": 1, "deserialize": 5}, "deserialize must be callable, not 5"),
    ],
)
def test_the_decorator_needs_a_message_class(
    registry: Registry, attributes: dict[str, Any], text: str
) -> None:
    """A missing attribute is reported at the declaration."""
    with pytest.raises(TypeError, match=text):
        registry.handler(type("Odd", (), attributes))


# -- layers


def test_a_layer_inherits_earlier_and_later_entries() -> None:
    """Entries are inherited at any depth, but never by parents or siblings."""
    top = Registry()
    top.register(1, Chat.deserialize)
    left, right = Registry(top), Registry(top)
    bottom = Registry(left)
    top.register(2, Chat.deserialize)
    left.register(3, Chat.deserialize)
    assert set(bottom.entries) == {1, 2, 3} == set(left.entries)
    assert set(right.entries) == {1, 2} == set(top.entries)
    assert bottom.lookup(2) is top.lookup(2)


def test_a_layers_own_entry_hides_the_parents() -> None:
    """The order of registration does not matter; lower layers see the layer's own entry."""
    top = Registry()
    layer = Registry(top)
    bottom = Registry(layer)
    layer.register(1, Shout.deserialize)
    top.register(1, Chat.deserialize)
    top.register(2, Chat.deserialize)
    layer.register(2, Shout.deserialize)
    assert all(type(bottom.lookup(n).deserialize(b"")) is Shout for n in (1, 2))
    assert all(type(top.lookup(n).deserialize(b"")) is Chat for n in (1, 2))


def test_a_layer_gives_an_inherited_class_its_own_handler() -> None:
    """The parent's handler stays, and is no obstacle."""
    top = Registry()
    top.handler(Chat)(handle)
    layer = Registry(top)

    @layer.handler(Chat)
    def mine(ctx: Any, conn: Any) -> None: ...

    assert layer.lookup(1).handler is mine
    assert top.lookup(1).handler is handle


def test_a_later_handler_reaches_the_layers() -> None:
    """A handler declared after a server was created is in the server's registry."""
    top = Registry()
    top.register(1, Chat.deserialize)
    layer = Registry(top)
    top.handler(Chat)(handle)
    assert layer.lookup(1).handler is handle


def test_a_dropped_layer_is_freed() -> None:
    """A parent does not keep the registries of servers that no longer exist."""
    top = Registry()
    layer = weakref.ref(Registry(top))
    gc.collect()
    assert layer() is None
    top.register(1, Chat.deserialize)


def test_registering_from_many_threads() -> None:
    """One thread gets each number, and every layer has all numbers in the end."""
    top = Registry()
    layers = [Registry(top) for _ in range(3)]

    def claim() -> int:
        won = 0
        for number in range(1, 101):
            try:
                top.register(number, Chat.deserialize)
                won += 1
            except AlreadyRegistered:
                pass
            Registry(top)
        return won

    assert sum(together(*[claim] * 4)) == 100
    assert all(set(layer.entries) == set(range(1, 101)) for layer in layers)
