"""What Redis itself runs: the scripts that keep the order of a partition.

A partition is a stream. The id of an entry is its epoch and its offset: ``1732662000000-7``.
Offsets count up from 1 without holes; an epoch is the time at which it began, in ms, and later ones
are greater, so that ids always grow and a reader need only ask for what follows its last one.

A script that finds the stream behind what its caller has seen already (the data was flushed, or a
replica was promoted that had not got all) begins a new epoch. Its first entry is a mark, with the
field ``e``; a publication has one field, ``p``, with a record of ``wire.py``.
"""

from __future__ import annotations

import hashlib
from typing import Final

__all__ = ["PUBLISH", "RESOLVE", "Script"]


class Script:
    """A script and its digest.

    Args:
        text: in Lua.
    """

    def __init__(self, text: str) -> None:
        self.text: str = text
        # The digest is the name that Redis gives a script; nothing is protected by it.
        self.digest: str = hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


# KEYS[1]: the stream. ARGV[1], ARGV[2]: the highest epoch and offset that the caller has seen.
_BEGIN: Final = """
if redis.replicate_commands then redis.replicate_commands() end  -- before Redis 7
local stream = KEYS[1]
local epoch, offset = 0, 0
if redis.call('EXISTS', stream) == 1 then
    local info = redis.call('XINFO', 'STREAM', stream)
    for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' then
            local first, second = string.match(info[i + 1], '(%d+)-(%d+)')
            epoch, offset = tonumber(first), tonumber(second)
        end
    end
end
local function id() return string.format('%.0f-%.0f', epoch, offset) end
local seen_epoch, seen_offset = tonumber(ARGV[1]), tonumber(ARGV[2])
if epoch == 0 or epoch < seen_epoch or (epoch == seen_epoch and offset < seen_offset) then
    local now = redis.call('TIME')
    local time = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
    epoch, offset = math.max(time, seen_epoch + 1, epoch + 1), 1
    redis.call('XADD', stream, id(), 'e', '')
end
"""

#: Return epoch and offset of the last entry, and the entry ARGV[3] if it is still there.
RESOLVE: Final = Script(
    _BEGIN
    + """
return {epoch, offset, redis.call('XRANGE', stream, ARGV[3], ARGV[3])}
"""
)

#: Add publications, and return epoch and offset of the last one. KEYS[2]: holds the number of the
#: publisher's last publication, so that those of a repeated call are added once. ARGV[3]: how many
#: entries the stream keeps. ARGV[4]: the number of the first publication; the others follow.
PUBLISH: Final = Script(
    _BEGIN
    + """
local last = tonumber(redis.call('GET', KEYS[2]) or '0')
local number = tonumber(ARGV[4])
for i = 5, #ARGV do
    if number > last then
        offset = offset + 1
        redis.call('XADD', stream, 'MAXLEN', '~', ARGV[3], id(), 'p', ARGV[i])
        last = number
    end
    number = number + 1
end
redis.call('SET', KEYS[2], string.format('%.0f', last), 'EX', 86400)
return {epoch, offset}
"""
)
