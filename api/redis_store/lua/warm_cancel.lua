-- Ends a warm-up that goes on: whoever holds it finds that out at its next step.
-- KEYS[1] hash  rag:warm:<job>   KEYS[2] list  rag:warm:<job>:queue   KEYS[3] zset  rag:warm:jobs, job -> its start (ms)
-- ARGV: job
if redis.call('HGET', KEYS[1], 'status') == 'running' then
  local time = redis.call('TIME')
  redis.call('HSET', KEYS[1], 'status', 'cancelled',
    'ended_ms', string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000)))
  redis.call('UNLINK', KEYS[2])
  redis.call('ZREM', KEYS[3], ARGV[1])
end
return 0
