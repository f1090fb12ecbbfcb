-- Warm-ups of the cache: jobs that ask a list of questions.
-- KEYS[1] hash  rag:warm:<job>        status, by, held_until_ms, started_ms, ended_ms, total, counts, error:<n>
-- KEYS[2] list  rag:warm:<job>:queue  questions that are left
-- KEYS[3] zset  rag:warm:jobs         job -> its start (ms)

-- name: acquire
-- Takes a running job that no worker has, or renews it for the worker that has it. Extends all lifetimes.
-- ARGV: worker, lease_ms (0: release it), lifetime_ms, job
-- Returns 1 if the worker has the job now, else 0.
local status, by, until_ms, started = unpack(
  redis.call('HMGET', KEYS[1], 'status', 'by', 'held_until_ms', 'started_ms'))
if status ~= 'running' then
  local ended = not status or status == 'done' or status == 'failed' or status == 'cancelled'
  if ended then redis.call('ZREM', KEYS[3], ARGV[4]) end -- any other status belongs to a later release
  return 0
end
local now = now_ms()
if by ~= ARGV[1] and (tonumber(until_ms) or 0) > now then return 0 end

redis.call('HSET', KEYS[1], 'by', ARGV[1], 'held_until_ms', int(now + tonumber(ARGV[2])))
redis.call('ZADD', KEYS[3], 'NX', started, ARGV[4]) -- Redis may have evicted the list of jobs
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[3]) end
return 1

-- name: settle
-- Counts a question as done, once however often it is settled. The last question ends the job.
-- ARGV: job, lifetime_ms, most errors to keep, question (as in the queue; '': none), error ('': none), count ...
-- Returns 1 while the job is running, else 0. A job fails if questions are missing that nobody counted.
if redis.call('HGET', KEYS[1], 'status') ~= 'running' then return 0 end

if ARGV[4] ~= '' and redis.call('LREM', KEYS[2], 1, ARGV[4]) == 1 then
  redis.call('HINCRBY', KEYS[1], 'done', 1)
  for i = 6, #ARGV do redis.call('HINCRBY', KEYS[1], ARGV[i], 1) end
  local failed = tonumber(redis.call('HGET', KEYS[1], 'failed') or 0)
  if ARGV[5] ~= '' and failed <= tonumber(ARGV[3]) then
    redis.call('HSET', KEYS[1], 'error:' .. int(failed), ARGV[5])
  end
end

local running = redis.call('EXISTS', KEYS[2])
if running == 0 then
  local total, done = unpack(redis.call('HMGET', KEYS[1], 'total', 'done'))
  local status = 'done'
  if total ~= done then
    status = 'failed'
    redis.call('HSET', KEYS[1], 'error:0', 'the questions that were left are lost')
  end
  redis.call('HSET', KEYS[1], 'status', status,
    'ended_ms', int(now_ms()))
  redis.call('ZREM', KEYS[3], ARGV[1])
end
for _, key in ipairs(KEYS) do redis.call('PEXPIRE', key, ARGV[2]) end
return running

-- name: cancel
-- Cancels a running job. Its worker notices at the next step.
-- ARGV: job
if redis.call('HGET', KEYS[1], 'status') == 'running' then
  redis.call('HSET', KEYS[1], 'status', 'cancelled',
    'ended_ms', int(now_ms()))
  redis.call('UNLINK', KEYS[2])
  redis.call('ZREM', KEYS[3], ARGV[1])
end
return 0
