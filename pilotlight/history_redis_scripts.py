"""What `history_redis.py` and the scripts of `store_redis_scripts.py` have Redis do about a history, in Lua.

A log is a stream, whose entries have the numbers of the changes as their ids, and a hash about it: `bytes` in
it, `last:SPACE` the last change of a space, `trimmed:SPACE` up to where its changes are trimmed, and `floor`
up to where those of all others are. A value is packed as in the store, see `store_redis_scripts.py`.
"""

from typing import Final

from pilotlight.store import PLACE

_SKIPPED: Final = 10**7
"""Numbers that are left out at least where Redis may have lost the last ones: far more than it can lose."""

# Redis may lose what it has acknowledged, or all it has: where a replica takes over, where it is started
# again. It has another replication id then. No number may be given out twice: who has seen one that was lost
# would take what is new for what is known. So some are left out, also at the very beginning, as that may be
# an end. How many differs from id to id, which are of chance, for the case that the next one who takes over
# knows nothing of this one either: 4096 ways, which 2^53 has room for 400,000 times. KEYS from `at` are the
# counter; the id with which it was moved last; and the gaps, whose members are the numbers before them, and
# whose scores are the last ones that were left out. Where a counter came without an id, from an older version
# or another store, it goes on
NUMBERS: Final = f"""
local function open_numbers(at)
  local numbers = {{counter = KEYS[at], life = KEYS[at + 1], gaps = KEYS[at + 2]}}
  numbers.last = tonumber(redis.call('GET', numbers.counter) or '0')
  numbers.first = numbers.last
  local id = string.match(redis.call('INFO', 'replication'), 'master_replid:(%x+)')
  local known = redis.call('GET', numbers.life)
  if known ~= id then
    numbers.id = id
    if known or numbers.last == 0 then
      numbers.first = numbers.last + {_SKIPPED} * (1 + tonumber(string.sub(id, 1, 3), 16))
    end
  end
  return numbers
end
local function close_numbers(numbers, last)
  redis.call('SET', numbers.counter, string.format('%.0f', last))
  if numbers.id then redis.call('SET', numbers.life, numbers.id) end
  if numbers.first ~= numbers.last then
    local from, to = string.format('%.0f', numbers.last), string.format('%.0f', numbers.first)
    redis.call('ZADD', numbers.gaps, to, from)
  end
end
local function give_number(at)
  local numbers = open_numbers(at)
  close_numbers(numbers, numbers.first + 1)
  return numbers.first + 1
end
"""

# `log` is the index of the stream in KEYS, behind which is the hash; `bounds` are of changes, bytes, spaces
RECORD: Final = f"""
local function trim(stream, about, bounds)
  local changes, bytes = bounds[1] * 7 / 8, bounds[2] * 7 / 8
  local count, size = redis.call('XLEN', stream), tonumber(redis.call('HGET', about, 'bytes'))
  local trimmed, cut = {{}}, false
  while count > changes or size > bytes do
    local oldest = redis.call('XRANGE', stream, cut and '(' .. cut or '-', '+', 'COUNT', 100)
    if #oldest == 0 then break end
    for _, entry in ipairs(oldest) do
      if count <= changes and size <= bytes then break end
      cut = entry[1]
      trimmed[entry[2][2]] = string.match(cut, '^%d+')
      count, size = count - 1, size - entry[2][8]
    end
  end
  redis.call('XTRIM', stream, 'MINID', string.match(cut, '^%d+') .. '-1')
  redis.call('HSET', about, 'bytes', string.format('%.0f', size))
  for space, number in pairs(trimmed) do redis.call('HSET', about, 'trimmed:' .. space, number) end
  if redis.call('HLEN', about) > 2 * bounds[3] then
    local all, floor = redis.call('HGETALL', about), '0'
    for i = 1, #all, 2 do
      local told = all[i] == 'floor' or string.sub(all[i], 1, 8) == 'trimmed:'
      if told and tonumber(all[i + 1]) > tonumber(floor) then floor = all[i + 1] end
    end
    redis.call('DEL', about)
    redis.call('HSET', about, 'bytes', string.format('%.0f', size), 'floor', floor)
  end
end
local function record(bounds, log, number, space, key, what, packed)
  local stream, about = KEYS[log], KEYS[log + 1]
  local size = #key + math.max(#packed - 16, 0) + {PLACE}
  local text = string.format('%.0f', number)
  redis.call(
    'XADD', stream, text .. '-0', 'space', space, 'key', key, 'what', what, 'size', size, 'packed', packed
  )
  redis.call('HSET', about, 'last:' .. space, text)
  local bytes = redis.call('HINCRBY', about, 'bytes', size)
  if bytes > bounds[2] or redis.call('XLEN', stream) > bounds[1] then trim(stream, about, bounds) end
end
"""

# Answers the last number of the store, up to which one the space is trimmed (the last one, for who asks from
# within a gap), what was found of it, and up to which number that is all
CHANGES: Final = """
local space, limit, examined, most = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4]), tonumber(ARGV[5])
local last = redis.call('GET', KEYS[3]) or '0'
local trimmed = 0
for _, told in ipairs(redis.call('HMGET', KEYS[2], 'floor', 'trimmed:' .. space)) do
  trimmed = math.max(trimmed, tonumber(told or '0'))
end
local gap = redis.call('ZRANGEBYSCORE', KEYS[4], ARGV[1], '+inf', 'LIMIT', 0, 1)[1]
if gap and tonumber(gap) < tonumber(ARGV[1]) then trimmed = tonumber(last) end
local entries = redis.call('XRANGE', KEYS[1], '(' .. ARGV[1] .. '-0', '+', 'COUNT', examined)
local found, size, reached = {}, 0, last
if #entries == examined then reached = string.match(entries[examined][1], '^%d+') end
for _, entry in ipairs(entries) do
  local fields = entry[2]
  if fields[2] == space then
    local number = string.match(entry[1], '^%d+')
    found[#found + 1] = {number, fields[4], fields[6], fields[10]}
    size = size + fields[8]
    if #found == limit or size >= most then
      reached = number
      break
    end
  end
end
return {last, string.format('%.0f', trimmed), found, reached}
"""

# Answers the last change of each space; KEYS are the hashes about their logs
LATEST: Final = """
local found = {}
for i, about in ipairs(KEYS) do found[i] = redis.call('HGET', about, 'last:' .. ARGV[i]) end
return found
"""
