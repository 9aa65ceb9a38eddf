"""What Redis itself runs: the scripts that keep the order of a partition.

A partition is a stream, and each field of its entries has an offset there: ``p`` is a publication,
a record of ``wire.py``, and ``e`` the mark with which an epoch begins. Offsets count up from 1
without holes. What is published together is one entry, whose id is the epoch and the offset of the
last field: the three fields of ``1732662000000-7`` have the offsets 5, 6 and 7. An epoch is the
time at which it began, in ms, and later ones are greater, so that ids always grow and a reader need
only ask for what follows its last one.

A script that finds the stream behind what its caller has seen already (the data was flushed, or a
replica was promoted that had not got all) begins a new epoch.

Each script writes once at most. Redis wraps several writes of a script in MULTI and EXEC in its
append-only file; if it is killed meanwhile, it later removes only a command that is incomplete, and
what follows is in a transaction without an end, which the start after that ignores.
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
# Sets the last epoch and offset, and what is to be added: the mark of a new epoch, or nothing.
_BEGIN: Final = """
if redis.replicate_commands then redis.replicate_commands() end  -- before Redis 7
local stream = KEYS[1]
local epoch, offset, fields = 0, 0, {}
if redis.call('EXISTS', stream) == 1 then
    local info = redis.call('XINFO', 'STREAM', stream)
    for i = 1, #info, 2 do
        if info[i] == 'last-generated-id' then
            local first, second = string.match(info[i + 1], '(%d+)-(%d+)')
            epoch, offset = tonumber(first), tonumber(second)
        end
    end
end
local function id(place) return string.format('%.0f-%.0f', epoch, place) end
local seen_epoch, seen_offset = tonumber(ARGV[1]), tonumber(ARGV[2])
if epoch == 0 or epoch < seen_epoch or (epoch == seen_epoch and offset < seen_offset) then
    local now = redis.call('TIME')
    local time = tonumber(now[1]) * 1000 + math.floor(tonumber(now[2]) / 1000)
    epoch, offset = math.max(time, seen_epoch + 1, epoch + 1), 0
    fields = {'e', ''}
end
"""

#: Return the last epoch and offset, and the first entry from the id ARGV[3] on, if there is one.
RESOLVE: Final = Script(
    _BEGIN
    + """
if #fields > 0 then
    offset = 1
    redis.call('XADD', stream, id(offset), 'e', '')
end
return {epoch, offset, redis.call('XRANGE', stream, ARGV[3], '+', 'COUNT', 1)}
"""
)

#: Add publications, and return the last epoch and offset. ARGV[3]: how many publications the stream
#: keeps. ARGV[4]: empty, or, as they may have been added already, the id after which they would be:
#: then they are not added again. ARGV[5] and so on: the publications.
PUBLISH: Final = Script(
    _BEGIN
    + """
local function added()
    local highest = '+'
    while ARGV[4] ~= '' do
        local page = redis.call('XREVRANGE', stream, highest, '(' .. ARGV[4], 'COUNT', 16)
        for _, entry in ipairs(page) do
            local found = entry[2]
            if found[found[1] == 'e' and 4 or 2] == ARGV[5] then return true end
            highest = '(' .. entry[1]
        end
        if #page < 16 then break end
    end
    return false
end
if not added() then
    for i = 5, #ARGV do
        fields[#fields + 1] = 'p'
        fields[#fields + 1] = ARGV[i]
    end
end
if #fields > 0 then
    offset = offset + #fields / 2
    local retain = tonumber(ARGV[3])
    local keep, limit = 'MINID', id(offset - retain)
    if offset <= retain then keep, limit = 'MAXLEN', ARGV[3] end  -- and earlier epochs
    redis.call('XADD', stream, keep, '~', limit, id(offset), unpack(fields))
end
return {epoch, offset}
"""
)
