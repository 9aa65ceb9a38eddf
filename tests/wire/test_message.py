"""Messages and registries: numbers, layers, decorators, and everything that is refused."""

from __future__ import annotations

import gc
import weakref
from typing import Any, ClassVar

import pytest

from tao.errors import AlreadyRegistered, NotRegistered
from tao.wire import message as message_module
from tao.wire.message import HEARTBEAT, HeartbeatMessage, Message, Registration, Registry
from tests.support import together


class Chat(Message):
    """A message that subclasses `Message`; it need not."""

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
    """A registry of one's own, with nothing but the heartbeat in it."""
    return Registry()


# -- messages


def test_a_heartbeat_is_eight_bytes_of_nanoseconds() -> None:
    """It reads what it writes, little-endian, and negative times too."""
    assert HeartbeatMessage.message_number == HEARTBEAT == 0
    assert HeartbeatMessage(0x0102).serialize() == b"\x02\x01\0\0\0\0\0\0"
    beat = HeartbeatMessage.deserialize(HeartbeatMessage(-5).serialize())
    assert (beat.timestamp, repr(beat)) == (-5, "HeartbeatMessage(-5)")


@pytest.mark.parametrize(("size", "timestamp"), [(0, 0), (7, 0), (9, 1), (16, 1)])
def test_a_heartbeat_of_another_size_is_one_too(size: int, timestamp: int) -> None:
    """A busy server of the original sends such now and then."""
    value = (b"\1" + bytes(7)) * 2
    assert HeartbeatMessage.deserialize(value[:size]).timestamp == timestamp


def test_whatever_has_number_and_serialize_is_a_message() -> None:
    """Subclassing `Message` is welcome but not needed, and keeps one's constructor."""
    assert isinstance(HeartbeatMessage(1), Message)
    assert isinstance(Chat("hi"), Message) and Chat("hi").text == "hi"
    assert not isinstance("hi", Message)


# -- registering


def test_a_registration_is_found_by_its_number(registry: Registry) -> None:
    """Number, deserializer, handler and dispatch come back as they were given."""
    registry.register(1, Chat.deserialize, handle, dispatch="pool")
    found = registry.lookup(1)
    assert (found.number, found.handler, found.dispatch) == (1, handle, "pool")
    assert found.deserialize(b"hi").text == "hi"
    assert 1 in registry and 2 not in registry and "1" not in registry
    with pytest.raises(NotRegistered, match="number 2 is not registered"):
        registry.lookup(2)


def test_a_registration_shows_what_it_joins() -> None:
    """Its repr names the number and both functions."""
    assert repr(Registration(3, len)) == f"Registration(3, {len!r}, handler=None)"


def test_every_registry_knows_the_heartbeat(registry: Registry) -> None:
    """It is registered from the start, in the default registry too."""
    assert registry.lookup(HEARTBEAT).deserialize(bytes(8)).timestamp == 0
    assert HEARTBEAT in message_module.default_registry


@pytest.mark.parametrize("number", [-(2**31), -1, 2**31 - 1])
def test_any_int32_is_a_number(registry: Registry, number: int) -> None:
    """Negative ones and both ends of the range are legal."""
    registry.register(number, Chat.deserialize)
    assert number in registry


@pytest.mark.parametrize(
    ("number", "error"),
    [(2**31, ValueError), (-(2**31) - 1, ValueError)]
    + [(wrong, TypeError) for wrong in (True, 1.0, "1", None)],
)
def test_other_numbers_are_refused(registry: Registry, number: Any, error: Any) -> None:
    """What is no int32 is refused by ``register`` and by the decorator, and named."""
    with pytest.raises(error, match=f"message_number.*{number}"):
        registry.register(number, Chat.deserialize)
    bad = type("Bad", (Chat,), {"message_number": number})
    with pytest.raises((TypeError, ValueError), match="message_number"):
        registry.handler(bad)
    assert list(registry.entries) == [HEARTBEAT]


def test_other_wrong_arguments_are_refused(registry: Registry) -> None:
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
    """The second is refused, with or without a handler, and the first stays."""
    registry.register(1, Chat.deserialize)
    with pytest.raises(AlreadyRegistered, match="message number 1 is registered twice"):
        registry.register(1, Chat.deserialize, handle)
    assert registry.lookup(1).handler is None
    with pytest.raises(AlreadyRegistered, match="number 0"):
        registry.register(HEARTBEAT, Chat.deserialize)


def test_the_default_registry_has_a_function(monkeypatch: pytest.MonkeyPatch) -> None:
    """``register`` adds to the registry that all others inherit from unless told otherwise."""
    default = Registry()
    monkeypatch.setattr(message_module, "default_registry", default)
    message_module.register(1, Chat.deserialize, handle, dispatch="inline")
    assert (default.lookup(1).handler, default.lookup(1).dispatch) == (handle, "inline")


# -- the decorator


def test_the_decorator_registers_class_and_handler(registry: Registry) -> None:
    """The function is returned as it was, and handles the class from then on."""
    assert registry.handler(Chat, dispatch="inline")(handle) is handle
    found = registry.lookup(1)
    assert (found.handler, found.dispatch) == (handle, "inline")
    assert isinstance(found.deserialize(b"x"), Chat)


def test_the_decorator_completes_a_registration(registry: Registry) -> None:
    """A class registered before gets its handler; its dispatch stays unless a new one is given."""
    registry.register(1, Chat.deserialize, dispatch="pool")
    registry.handler(Chat)(handle)
    assert (registry.lookup(1).handler, registry.lookup(1).dispatch) == (handle, "pool")
    other = Registry()
    other.register(1, Chat.deserialize, dispatch="pool")
    other.handler(Chat, dispatch="auto")(handle)
    assert other.lookup(1).dispatch == "auto"


def test_a_number_has_one_handler_and_one_class(registry: Registry) -> None:
    """A second handler is refused, and so is a second class; the error names what is there."""
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
def test_the_decorator_wants_a_message_class(
    registry: Registry, attributes: dict[str, Any], text: str
) -> None:
    """What the class lacks is said when it is decorated, not when a message comes."""
    with pytest.raises(TypeError, match=text):
        registry.handler(type("Odd", (), attributes))


# -- layers


def test_a_layer_inherits_what_comes_before_and_after() -> None:
    """Down to any depth, and nothing goes up or sideways."""
    top = Registry()
    top.register(1, Chat.deserialize)
    left, right = Registry(top), Registry(top)
    bottom = Registry(left)
    top.register(2, Chat.deserialize)
    left.register(3, Chat.deserialize)
    assert set(bottom.entries) == {0, 1, 2, 3} == set(left.entries)
    assert set(right.entries) == {0, 1, 2} == set(top.entries)
    assert bottom.lookup(2) is top.lookup(2)


def test_a_layers_own_entry_hides_the_parents() -> None:
    """Whichever was registered first; layers below the layer see its own as well."""
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
    """The parent's handler is not touched, nor does it stand in the way."""
    top = Registry()
    top.handler(Chat)(handle)
    layer = Registry(top)

    @layer.handler(Chat)
    def mine(ctx: Any, conn: Any) -> None: ...

    assert layer.lookup(1).handler is mine
    assert top.lookup(1).handler is handle


def test_a_handler_given_late_reaches_the_layers() -> None:
    """Decorating after a server was made works, and the layer's view is the decorated one."""
    top = Registry()
    top.register(1, Chat.deserialize)
    layer = Registry(top)
    top.handler(Chat)(handle)
    assert layer.lookup(1).handler is handle


def test_a_forgotten_layer_is_freed() -> None:
    """A parent does not keep the registries of servers that are gone."""
    top = Registry()
    layer = weakref.ref(Registry(top))
    gc.collect()
    assert layer() is None
    top.register(1, Chat.deserialize)


def test_registering_from_many_threads() -> None:
    """Of those who want the same number one wins, and every layer ends with every number."""
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
    assert all(set(layer.entries) == set(range(101)) for layer in layers)
