-- Counts a question of a warm-up, once, whoever settles it; the last one ends the warm-up.
-- KEYS[1] hash  rag:warm:<job>   KEYS[2] list  rag:warm:<job>:queue   KEYS[3] zset  rag:warm:jobs, job -> its start (ms)
-- ARGV: job, lifetime_ms, most errors kept, question (as in the queue; empty: none), error (empty: none), count ...
-- Returns 1 while the warm-up goes on, else 0. One whose questions are gone uncounted has failed.
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 0 end

if ARGV[4] ~= '' and redis.call('LREM', KEYS[2], 1, ARGV[4]) == 1 then
  redis.call('HINCRBY', KEYS[1], 'done', 1)
  for i = 6, #ARGV do redis.call('HINCRBY', KEYS[1], ARGV[i], 1) end
  local failed = tonumber(redis.call('HGET', KEYS[1], 'failed') or 0)
  if ARGV[5] ~= '' and failed <= tonumber(ARGV[3]) then
    redis.call('HSET', KEYS[1], 'error:' .. string.format('%d', failed), ARGV[5])
  end
end

local going_on = redis.call('EXISTS', KEYS[2])
if going_on == 0 then
  local time = redis.call('TIME')
  local total, done = unpack(redis.call('HMGET', KEYS[1], 'total', 'done'))
  local status = 'done'
  if total ~= done then
    status = 'failed'
    redis.call('HSET', KEYS[1], 'error:0', 'the questions that were left are lost')
  end
  redis.call('HSET', KEYS[1], 'status', status,
    'ended_ms', string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000)))
  redis.call('ZREM', KEYS[3], ARGV[1])
end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[2]) end
return going_on
