"""What `store_redis.py` has Redis do in one step each, in Lua.

Mostly, ARGV[1] is the time that replaces Redis' own, or empty. A value is packed behind its version (8 bytes)
and its end (a double; 0 for never).
"""

from typing import Final

from pilotlight.store import PLACE

_NOW: Final = """
local now = tonumber(ARGV[1])
if not now then
  local time = redis.call('TIME')
  now = time[1] + time[2] / 1000000
end
local function alive(packed)
  if not packed then return false end
  local _, expires = struct.unpack('>i8d', packed)
  return expires == 0 or expires > now
end
"""

GET: Final = (
    _NOW
    + """
local packed = redis.call('HGET', KEYS[1], ARGV[2])
return alive(packed) and packed or false
"""
)

# Answers what it has found, and the key behind which to go on where it has not seen all
SCAN: Final = (
    _NOW
    + """
local limit, examined = tonumber(ARGV[4]), tonumber(ARGV[5])
local members = redis.call('ZRANGEBYLEX', KEYS[1], ARGV[2], ARGV[3], 'LIMIT', 0, math.min(examined, limit))
local found = {}
for _, member in ipairs(members) do
  local packed = redis.call('HGET', KEYS[2], member)
  if alive(packed) then
    found[#found + 1] = member
    found[#found + 1] = packed
  end
end
local resume = false
if #members == math.min(examined, limit) then resume = members[#members] end
return {found, resume}
"""
)

# Whose the claim is, where that is another one; and that it is ours for so many seconds more
_OWN: Final = """
local function other(key, owner)
  local found = owner ~= '' and redis.call('GET', key)
  return found and found ~= owner and found
end
local function claim(key, owner, seconds)
  if owner ~= '' and redis.call('EXPIRE', key, seconds) == 0 then
    redis.call('SET', key, owner, 'EX', seconds)
  end
end
"""

CLAIMED: Final = (
    _OWN
    + """
local found = other(KEYS[1], ARGV[1])
if not found then claim(KEYS[1], ARGV[1], ARGV[2]) end
return found
"""
)

GIVEN_UP: Final = "if redis.call('GET', KEYS[1]) == ARGV[1] then redis.call('DEL', KEYS[1]) end"

# What an entry counts for in `Store.size`, and that it counts no more
_SIZES: Final = f"""
local function taken(values, key)
  local packed = redis.call('HSTRLEN', values, key)
  if packed == 0 then return 0 end
  return #key + packed - 16 + {PLACE}
end
local function shrink(sizes, spaces, order, values, key)
  local size = taken(values, key)
  if size > 0 and redis.call('HINCRBY', sizes, order, -size) == 0 then
    redis.call('HDEL', sizes, order)
    redis.call('ZREM', spaces, order)
  end
end
"""

# First all is judged, each write as those before it would leave things; only then anything is changed. A full
# Redis refuses what takes memory, but in a script only its first command that changes something. So that one
# takes some where a value is kept, and none where all that happens is that room is made
WRITE: Final = (
    _NOW
    + _OWN
    + _SIZES
    + """
local found = other(KEYS[3], ARGV[2])
if found then return {'lost', found} end
local counter, expiring, sizes, spaces = KEYS[1], KEYS[2], KEYS[4], KEYS[5]
local last = tonumber(redis.call('GET', counter) or '0')
local next, standing, versions = last, {}, {}
local count = (#ARGV - 3) / 7
for i = 0, count - 1 do
  local at = 4 + i * 7
  local place, key, kept, expect = tonumber(ARGV[at]), ARGV[at + 1], ARGV[at + 3], ARGV[at + 4]
  local name = place .. ':' .. key
  local found = standing[name]
  if not found then
    local packed = redis.call('HGET', KEYS[place + 1], key)
    found = 0
    if alive(packed) then found = struct.unpack('>i8', packed) end
  end
  if expect ~= '' and tonumber(expect) ~= found then
    return {'conflict', i, found}
  end
  if kept == '1' then
    next = next + 1
    standing[name] = next
    versions[i + 1] = next
  else
    standing[name] = 0
    versions[i + 1] = 0
  end
end
if next ~= last then redis.call('SET', counter, string.format('%.0f', next)) end
claim(KEYS[3], ARGV[2], ARGV[3])
for i = 0, count - 1 do
  local at = 4 + i * 7
  local place, key, ttl = tonumber(ARGV[at]), ARGV[at + 1], tonumber(ARGV[at + 5])
  local order, values = KEYS[place], KEYS[place + 1]
  local mark = struct.pack('>I4', #order) .. order .. key
  redis.call('ZREM', expiring, mark)
  shrink(sizes, spaces, order, values, key)
  if versions[i + 1] == 0 then
    redis.call('ZREM', order, key)
    redis.call('HDEL', values, key)
  else
    local expires = tonumber(ARGV[at + 6]) or 0
    if ttl then expires = now + ttl end
    if expires ~= 0 then
      redis.call('ZADD', expiring, string.format('%.17g', expires), mark)
    end
    redis.call('ZADD', order, 0, key)
    redis.call('HSET', values, key, struct.pack('>i8d', versions[i + 1], expires) .. ARGV[at + 2])
    redis.call('HINCRBY', sizes, order, taken(values, key))
    redis.call('ZADD', spaces, 0, order)
  end
end
return {'written', versions}
"""
)

SWEEP: Final = (
    _NOW
    + _SIZES
    + """
local expiring, order, values, sizes, spaces = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
for i = 2, #ARGV do
  local mark = ARGV[i]
  local key = string.sub(mark, 5 + #order)
  local score = redis.call('ZSCORE', expiring, mark)
  if score and tonumber(score) <= now then
    redis.call('ZREM', expiring, mark)
    if not alive(redis.call('HGET', values, key)) then
      shrink(sizes, spaces, order, values, key)
      redis.call('ZREM', order, key)
      redis.call('HDEL', values, key)
    end
  end
end
"""
)

DROP: Final = """
local order, values, sizes, spaces = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
redis.call('UNLINK', order, values)
redis.call('HDEL', sizes, order)
redis.call('ZREM', spaces, order)
"""

# Answers what a part of the spaces takes, and the one behind which to go on where it has not seen all
SIZE: Final = """
local sizes, spaces, examined = KEYS[1], KEYS[2], tonumber(ARGV[3])
local names = redis.call('ZRANGEBYLEX', spaces, ARGV[1], ARGV[2], 'LIMIT', 0, examined)
local total = 0
for _, name in ipairs(names) do
  total = total + tonumber(redis.call('HGET', sizes, name) or 0)
end
return {total, #names == examined and names[#names]}
"""

_NAME_SPACES: Final = """
for _, order in ipairs(redis.call('HKEYS', KEYS[2])) do
  redis.call('ZADD', KEYS[3], 0, order)
end
"""

# Each leads from the schema of its number, counted from 1, to the next one, whole or not at all; another
# process may have been quicker. KEYS are schema, sizes, spaces
STEPS: Final = tuple(
    f"""
if redis.call('GET', KEYS[1]) ~= '{number}' then return end
{step}
redis.call('SET', KEYS[1], '{number + 1}')
"""
    for number, step in enumerate((_NAME_SPACES,), 1)
)
