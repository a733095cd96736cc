"""What `store_redis.py` has Redis do in one step each, in Lua.

Mostly, ARGV[1] is the time that replaces Redis' own, or empty. A value is packed behind its version (8 bytes)
and its end (a double; 0 for never).
"""

from typing import Final

from pilotlight.history_redis_scripts import NUMBERS, RECORD
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
# takes some where a value is kept, and none where all that happens is that room is made. Where there is a
# history, a deletion has a number of its own
WRITE: Final = (
    _NOW
    + _OWN
    + _SIZES
    + NUMBERS
    + RECORD
    + """
local found = other(KEYS[5], ARGV[2])
if found then return {'lost', found} end
local expiring, sizes, spaces = KEYS[4], KEYS[6], KEYS[7]
local bounds = {tonumber(ARGV[4]), tonumber(ARGV[5]), tonumber(ARGV[6])}
local numbers = open_numbers(1)
local next, standing, versions, steps, kept = numbers.first, {}, {}, {}, false
local function number()
  next = next + 1
  return next
end
for at = 7, #ARGV, 9 do
  local step = {
    place = tonumber(ARGV[at]), key = ARGV[at + 1], value = ARGV[at + 2], what = ARGV[at + 3],
    ttl = tonumber(ARGV[at + 5]), expires = tonumber(ARGV[at + 6]),
    log = tonumber(ARGV[at + 7]), space = ARGV[at + 8]
  }
  local expect = ARGV[at + 4]
  local name = step.place .. ':' .. step.key
  local found, expired = standing[name], false
  if not found then
    local packed = redis.call('HGET', KEYS[step.place + 1], step.key)
    found = 0
    if alive(packed) then
      found = struct.unpack('>i8', packed)
    elseif packed then
      expired = true
    end
  end
  if expect ~= '' and tonumber(expect) ~= found then
    return {'conflict', (at - 7) / 9, found}
  end
  if step.what == 'check' then
    versions[#versions + 1] = found
  else
    if expired and step.log > 0 then step.expiry = number() end
    if step.what == 'put' then
      step.version = number()
      kept = true
    elseif found ~= 0 and step.log > 0 then
      step.deletion = number()
    end
    standing[name] = step.version or 0
    versions[#versions + 1] = step.version or 0
    steps[#steps + 1] = step
  end
end
if kept then close_numbers(numbers, next) end
claim(KEYS[5], ARGV[2], ARGV[3])
for _, step in ipairs(steps) do
  local order, values, key = KEYS[step.place], KEYS[step.place + 1], step.key
  local mark = struct.pack('>I4', #order) .. order .. key
  redis.call('ZREM', expiring, mark)
  shrink(sizes, spaces, order, values, key)
  if step.expiry then record(bounds, step.log, step.expiry, step.space, key, 'expired', '') end
  if step.version then
    local expires = step.expires or 0
    if step.ttl then expires = now + step.ttl end
    if expires ~= 0 then
      redis.call('ZADD', expiring, string.format('%.17g', expires), mark)
    end
    local packed = struct.pack('>i8d', step.version, expires) .. step.value
    redis.call('ZADD', order, 0, key)
    redis.call('HSET', values, key, packed)
    redis.call('HINCRBY', sizes, order, taken(values, key))
    redis.call('ZADD', spaces, 0, order)
    if step.log > 0 then record(bounds, step.log, step.version, step.space, key, 'put', packed) end
  else
    redis.call('ZREM', order, key)
    redis.call('HDEL', values, key)
    if step.deletion then record(bounds, step.log, step.deletion, step.space, key, 'deleted', '') end
  end
end
if next ~= numbers.first and not kept then close_numbers(numbers, next) end
return {'written', versions}
"""
)

# Answers some of what has expired
EXPIRED: Final = (
    _NOW
    + """
return redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', string.format('%.17g', now), 'LIMIT', 0, ARGV[2])
"""
)

# ARGV[2] to [4] are the bounds of the log, ARGV[5] the space; KEYS[6] to [8] are for numbers where there is a
# history, behind them its stream and the hash about it
SWEEP: Final = (
    _NOW
    + _SIZES
    + NUMBERS
    + RECORD
    + """
local expiring, order, values, sizes, spaces = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local bounds = {tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])}
for i = 6, #ARGV do
  local mark = ARGV[i]
  local key = string.sub(mark, 5 + #order)
  local score = redis.call('ZSCORE', expiring, mark)
  if score and tonumber(score) <= now then
    redis.call('ZREM', expiring, mark)
    local packed = redis.call('HGET', values, key)
    if packed and not alive(packed) then
      shrink(sizes, spaces, order, values, key)
      redis.call('ZREM', order, key)
      redis.call('HDEL', values, key)
      if KEYS[6] then record(bounds, 9, give_number(6), ARGV[5], key, 'expired', '') end
    end
  end
end
"""
)

# KEYS[5] to [7] are for numbers where there is a history, [8] is the hash about the log, ARGV[1] the space
DROP: Final = (
    NUMBERS
    + """
local order, values, sizes, spaces = KEYS[1], KEYS[2], KEYS[3], KEYS[4]
redis.call('UNLINK', order, values)
redis.call('HDEL', sizes, order)
redis.call('ZREM', spaces, order)
if KEYS[5] then
  local at = string.format('%.0f', give_number(5))
  redis.call('HSET', KEYS[8], 'trimmed:' .. ARGV[1], at, 'last:' .. ARGV[1], at)
end
"""
)

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

# From here on there is a history, which a version that knows of none would leave holes in
_HAVE_A_HISTORY: Final = ""

# Each leads from the schema of its number, counted from 1, to the next one, whole or not at all; another
# process may have been quicker. KEYS are schema, sizes, spaces
STEPS: Final = tuple(
    f"""
if redis.call('GET', KEYS[1]) ~= '{number}' then return end
{step}
redis.call('SET', KEYS[1], '{number + 1}')
"""
    for number, step in enumerate((_NAME_SPACES, _HAVE_A_HISTORY), 1)
)
