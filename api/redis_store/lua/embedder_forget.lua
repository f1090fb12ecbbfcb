-- Removes something of an embedder, unless it has been used again: then it is complete as far as it was left.
-- KEYS[1] zset  rag:corpus:embedders, embedder -> its last use (ms)   KEYS[2] hash, whose field goes: rag:corpus:state, or
-- rag:doc:<id>   KEYS[3] hash  rag:doc:<id>:chunks, whose field goes   KEYS[4 ...] chunks
-- ARGV: embedder, keep_ms, field of the first hash, field of the second ('': none)
-- Returns 1, or 0 where it has been used.
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local used = redis.call('ZSCORE', KEYS[1], ARGV[1])
if not used or tonumber(used) > now - tonumber(ARGV[2]) then return 0 end
redis.call('HDEL', KEYS[2], ARGV[3])
if #KEYS > 3 then redis.call('UNLINK', unpack(KEYS, 4)) end
if ARGV[4] ~= '' then redis.call('HDEL', KEYS[3], ARGV[4]) end
return 1
