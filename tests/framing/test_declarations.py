"""Whatever the declaration: what is encoded decodes again, in any pieces."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from tao import framing as f
from tao.wire.arrival import Arrival
from tests.framing.streams import decoded, in_pieces, registry_of
from tests.framing.test_frame import Raw

#: Kinds of fields, each with a value that it can have.
KINDS: list[tuple[str, dict[str, Any], Any]] = [
    ("u8", {}, 200), ("u16", {}, 0), ("u24", {}, 70000), ("i32le", {}, -5), ("u64be", {}, 2**63),
    ("digits3", {}, 12), ("hex4", {}, 0xBEEF), ("bcd2", {}, 9), ("bytes2", {}, b"\0~"),
    ("text3", {}, "abc"), ("varint", {}, 300), ("text", {"end": b";"}, ""), ("f64", {}, 0.5),
    ("digits", {"end": b";"}, 42),
]  # fmt: skip
OPEN = {"varint", "text", "digits"}
LENGTHS = ["u8", "u16le", "u32", "digits4", "hex4", "bcd2", "varint"]
CHECKSUMS = ["sum8", "xor8", "crc16-x25", "crc32", "mod256", "crc8"]


@st.composite
def declarations(draw: st.DrawFn) -> tuple[f.Frame, dict[str, Any]]:
    """A frame, and a value for each of its fields."""
    header: dict[str, Any] = {}
    names_of_fields = (f"field{number}" for number in range(99))

    def field(when: str | None = None, fixed: bool = False) -> f.Field:
        chosen = [each for each in KINDS if not fixed or each[0] not in OPEN]
        kind, options, value = draw(st.sampled_from(chosen))
        name = next(names_of_fields)
        header[name] = value
        return f.Field(name, kind, when=when, **options)

    head: list[Any] = [f.Magic(b"\x7e")] if draw(st.booleans()) else []
    head += [field() for _ in range(draw(st.integers(0, 2)))]
    if draw(st.booleans()):
        header["flag"] = draw(st.integers(0, 1))
        head += [f.Bits("u8", f.Field("flag", 1), f.Field("spare", 7, default=3))]
        extra = field(when="flag")
        head += [extra]
        if not header["flag"]:
            del header[extra.name]
    trail: list[Any] = [field(fixed=True) for _ in range(draw(st.integers(0, 1)))]
    names = [part.name for part in head]
    first = draw(st.sampled_from([*names, "body"]))
    if draw(st.booleans()):
        last = trail[-1].name if trail else "body"
        trail += [f.Checksum(draw(st.sampled_from(CHECKSUMS)), over=f"{first}..{last}")]
    if draw(st.booleans()):
        trail += [f.Tail(b"\r\n")]
    covered = draw(st.sampled_from([part.name for part in trail] or ["body"]))
    length = f.Length(draw(st.sampled_from(LENGTHS)), covers=f"body..{covered}")
    at = draw(st.integers(len(head) and 1, len(head)))
    parts = [*head[:at], length, *head[at:], f.Body(), *trail]
    order = draw(st.sampled_from(["big", "little"]))
    return f.Frame(*parts, byte_order=order, max_bytes=500), header


@given(declarations(), st.lists(st.binary(max_size=60), max_size=4), st.integers(1, 80))
def test_what_is_encoded_decodes(
    declaration: tuple[f.Frame, dict[str, Any]], bodies: list[bytes], size: int
) -> None:
    """Body and header are the same, and a dump finds nothing wrong."""
    codec, header = declaration
    frames = [codec.encode(Raw(1, body), header) for body in bodies]
    came = decoded(codec.decoder(registry_of(1)), *in_pieces(b"".join(frames), size))
    assert len(came) == len(bodies)
    for (_, each), body, frame in zip(came, bodies, frames, strict=True):
        message = each
        if isinstance(each, Arrival):
            message = each.message
            assert {name: getattr(each.header, name) for name in header} == header
        assert message == body
        assert "! " not in codec.explain(frame)
