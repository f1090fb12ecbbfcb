-- Takes a warm-up that goes on and that nobody holds, or renews it for the worker that does. Lifetimes begin anew.
-- KEYS[1] hash  rag:warm:<job>   KEYS[2] list  rag:warm:<job>:queue   KEYS[3] zset  rag:warm:jobs, job -> its start (ms)
-- ARGV: worker, lease_ms (0: gives it up), lifetime_ms, job
-- Returns 1 when it is this worker's, else 0.
local status, by, until_ms, started = unpack(
  redis.call('HMGET', KEYS[1], 'status', 'by', 'held_until_ms', 'started_ms'))
if status ~= 'running' then
  local ended = not status or status == 'done' or status == 'failed' or status == 'cancelled'
  if ended then redis.call('ZREM', KEYS[3], ARGV[4]) end -- any other is a later release's affair
  return 0
end
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if by ~= ARGV[1] and (tonumber(until_ms) or 0) > now then return 0 end

redis.call('HSET', KEYS[1], 'by', ARGV[1], 'held_until_ms', string.format('%d', now + tonumber(ARGV[2])))
redis.call('ZADD', KEYS[3], 'NX', started, ARGV[4]) -- Redis may have evicted the list of all
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[3]) end
return 1
