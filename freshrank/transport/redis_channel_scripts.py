"""What the parameter channel does in Redis in one step, all of it or nothing.

KEYS of every script: 1 the head, 2 the log, 3 the frame's chunks. Keys of older frames are in the
log and in the head; all of them have the same hash tag, so a Redis cluster has them in one place.
Each script returns a word, `ok` or why not, and what the refusal is about. It may come twice, where
an answer was lost. Chunks that no script named go by themselves.
"""

from typing import Final

# Deltas that a base covers and that are still within their bytes are for replicas that were away.
# After so many each, a base is less work for everybody; and dropping them takes Redis 10 ms.
_COVERED_MAX: Final = 4_096

_WRITER: Final = """
local epoch, seq = ARGV[1], tonumber(ARGV[2])
local opened = redis.call('HGET', KEYS[1], 'opened') or '0'
if opened ~= epoch then return {'epoch', opened} end
"""

_PUBLISHED: Final = """
local time = redis.call('TIME')
redis.call('HSET', KEYS[1], 'beat_at_ms', time[1] * 1000 + math.floor(time[2] / 1000))
"""

# ARGV: 1 epoch, 2 seq, 3 digest, 4 bytes, 5 chunks, 6 published_at_ms, 7 retention_bytes,
# 8 milliseconds that the base before the last is kept.
_FRAME: Final = (
    _WRITER
    + """
local id, digest, bytes, chunks = epoch .. '-' .. ARGV[2], ARGV[3], tonumber(ARGV[4]), ARGV[5]
local head = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'base_seq', 'base', 'base_before')
local is_first = head[1] ~= epoch
local function is_whole() return redis.call('HLEN', KEYS[3]) == tonumber(chunks) end
local function drop(entry)
  if entry[2][2] ~= '' then redis.call('UNLINK', entry[2][2]) end
end
local function append(frame, digest, bytes, chunks)
  redis.call('XADD', KEYS[2], id,
    'frame', frame, 'digest', digest, 'bytes', bytes, 'chunks', chunks)
  redis.call('HINCRBY', KEYS[1], 'log_bytes', bytes)
  redis.call('HSET', KEYS[1], 'epoch', epoch, 'seq', seq)
end
local function trim(base_seq)
  local left = tonumber(redis.call('HGET', KEYS[1], 'log_bytes') or '0')
  local n, before = redis.call('XLEN', KEYS[2]), left
  while n > 1 and (left > tonumber(ARGV[7]) or n > COVERED_MAX) do
    local entry = redis.call('XRANGE', KEYS[2], '-', '+', 'COUNT', 1)[1]
    if tonumber(string.match(entry[1], '%d+$')) > base_seq then break end
    redis.call('XDEL', KEYS[2], entry[1])
    drop(entry)
    n, left = n - 1, left - tonumber(entry[2][6])
  end
  if left ~= before then redis.call('HSET', KEYS[1], 'log_bytes', left) end
end
""".replace("COVERED_MAX", str(_COVERED_MAX))
)

# Again the newest delta with the same bytes: nothing to do.
DELTA: Final = (
    _FRAME
    + """
if not is_first and tonumber(head[2]) == seq then
  local entry = redis.call('XRANGE', KEYS[2], id, id)[1]
  if entry and entry[2][4] == digest then return {'ok'} end
end
if is_first or tonumber(head[2]) ~= seq - 1 then
  return {'gap', head[1] and head[1] .. '-' .. head[2] or 'nothing'}
end
if not is_whole() then return {'partial'} end
redis.call('PERSIST', KEYS[3])
append(KEYS[3], digest, bytes, chunks)
redis.call('HSET', KEYS[1], 'published_at_ms', ARGV[6])
trim(tonumber(head[3]))
"""
    + _PUBLISHED
    + "return {'ok'}"
)

# The base before stays a while for who is reading it, the one before that goes.
BASE: Final = (
    _FRAME
    + """
if not is_first and seq < tonumber(head[3]) then return {'older', head[3]} end
if head[4] == KEYS[3] then return {'ok'} end
if not is_whole() then return {'partial'} end
redis.call('PERSIST', KEYS[3])
if is_first then
  for _, entry in ipairs(redis.call('XRANGE', KEYS[2], '-', '+')) do drop(entry) end
  redis.call('DEL', KEYS[2])
  redis.call('HSET', KEYS[1], 'log_bytes', 0)
end
if is_first or seq > tonumber(head[2]) then append('', '', 0, 0) end
if head[5] then redis.call('UNLINK', head[5]) end
if head[4] then
  redis.call('PEXPIRE', head[4], ARGV[8])
  redis.call('HSET', KEYS[1], 'base_before', head[4])
end
redis.call('HSET', KEYS[1], 'base_seq', seq, 'base', KEYS[3], 'base_digest', digest,
  'base_bytes', bytes, 'base_chunks', chunks, 'published_at_ms', ARGV[6])
trim(seq)
"""
    + _PUBLISHED
    + "return {'ok'}"
)

# ARGV: 1 an epoch to stay above. Epochs count up from the time in ms at which the first was opened:
# after Redis lost its memory none comes again, whatever a trainer remembers of the last one.
OPEN: Final = """
local opened = redis.call('HGET', KEYS[1], 'opened')
if not opened then
  local time = redis.call('TIME')
  opened = time[1] * 1000 + math.floor(time[2] / 1000)
end
redis.call('HSET', KEYS[1], 'opened', math.max(tonumber(opened), tonumber(ARGV[1])) + 1)
return {'ok', redis.call('HGET', KEYS[1], 'opened')}
"""

# ARGV: 1 epoch.
BEAT: Final = _WRITER + _PUBLISHED + "return {'ok'}"

# ARGV: 1 epoch, 2 seq that a replica cannot leave. The newest that was asked for stands.
WANT: Final = """
local epoch, seq = tonumber(ARGV[1]), tonumber(ARGV[2])
local head = redis.call('HMGET', KEYS[1], 'epoch', 'seq', 'wanted_epoch', 'wanted_seq')
local function is_before(e, s)
  e, s = tonumber(e), tonumber(s)
  return e < epoch or (e == epoch and s < seq)
end
if not head[1] or is_before(head[1], head[2]) then return {'ok'} end
if not head[3] or is_before(head[3], head[4]) then
  redis.call('HSET', KEYS[1], 'wanted_epoch', ARGV[1], 'wanted_seq', ARGV[2])
end
return {'ok'}
"""
