-- A/B experiments. At most one runs. Every worker follows it by the epoch, which grows with each change.
--   hash  rag:experiments                 epoch, running, ends_ms; at:<name> -> start of an experiment (ms)
--   hash  rag:experiment:<name>           definition (JSON), started_ms, ends_ms, stopped_ms, by
--   hash  rag:experiment:<name>:figures   count -> number; workers add to it with their counters (`add_counters`)

-- name: start
-- Starts an experiment, or replaces the definition of the running one and its end.
-- KEYS[1] hash all experiments   KEYS[2] hash the experiment   KEYS[3] hash its figures
-- ARGV: name, the epoch that the caller knows, how long it lasts (ms), how long it is kept after its end (ms), channel
--       that tells the workers, definition, worker
-- Returns {'started'}, {'busy', name of the running one}, or {'changed'} if another epoch is stored.
local name, now = ARGV[1], now_ms()
local epoch, running, ends = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'running', 'ends_ms'))
epoch, running, ends = tonumber(epoch or 0), running or '', tonumber(ends or 0)
if epoch ~= tonumber(ARGV[2]) then return {'changed'} end
local is_running = running ~= '' and now < ends
if is_running and running ~= name then return {'busy', running} end
-- A running one whose definition is lost, such as by eviction, starts over.
if not is_running or redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('DEL', KEYS[2], KEYS[3])
  redis.call('HSET', KEYS[2], 'started_ms', int(now))
  redis.call('HSET', KEYS[1], 'at:' .. name, int(now))
end
ends = now + tonumber(ARGV[3])
-- The clock keeps epochs apart that were written before and after a loss of all keys.
epoch = math.max(epoch + 1, now)
redis.call('HSET', KEYS[2], 'definition', ARGV[6], 'ends_ms', int(ends), 'stopped_ms', 0, 'by', ARGV[7])
redis.call('HSET', KEYS[1], 'epoch', int(epoch), 'running', name, 'ends_ms', int(ends))
for i = 1, 2 do redis.call('PEXPIRE', KEYS[i], int(ends - now + tonumber(ARGV[4]))) end
redis.call('PUBLISH', ARGV[5], int(epoch))
return {'started'}

-- name: stop
-- Stops an experiment if it is running.
-- KEYS[1] hash all experiments   KEYS[2] hash the experiment
-- ARGV: name, how long it is kept (ms), channel that tells the workers, worker
-- Returns 1, or 0 if it was not running.
local now = now_ms()
local epoch, running, ends = unpack(redis.call('HMGET', KEYS[1], 'epoch', 'running', 'ends_ms'))
if running ~= ARGV[1] or now >= tonumber(ends or 0) then return 0 end
epoch = math.max(tonumber(epoch) + 1, now)
redis.call('HSET', KEYS[1], 'epoch', int(epoch), 'running', '')
redis.call('HSET', KEYS[2], 'stopped_ms', int(now), 'by', ARGV[4])
for i = 1, 2 do redis.call('PEXPIRE', KEYS[i], ARGV[2]) end
redis.call('PUBLISH', ARGV[3], int(epoch))
return 1
