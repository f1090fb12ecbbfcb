-- Single flight: one worker generates an answer (the leader), others receive it through Redis (the followers).
-- A scope and a digest identify a flight:
--   hash    rag:flight:{<scope>:<digest>}          leader, fence, began_ms, asked_ms, priority;
--                                                  follower:<worker> -> end of its lease (ms)
--   stream  rag:flight:{<scope>:<digest>}:words    what the leader has published: fence, body
--   hash    rag:flight:{<scope>:<digest>}:refresh  leader, fence, began_ms: the exclusive lead of a refresh
--   hash    rag:cache:<scope>:<digest>             the stored answer; this feature only reads it
--   hash    rag:invalidated                        invalidation tag -> when it was set (ms); only read here
-- A lead's fence is unique: the time it began (us) and the worker.
-- PUBLISH <prefix><worker>: 'more <flight>' to a follower; 'followed <flight>', 'left <flight>' or 'promoted <flight>'
-- (a user follows a batch flight) to the leader

local micros = now_us()
local now = math.floor(micros / 1000)
local FOLLOWER = 'follower:'

-- Returns the workers that follow a flight. Drops those whose lease has expired.
local function followers(flight)
  local found, fields = {}, redis.call('HGETALL', flight)
  for i = 1, #fields, 2 do
    if string.sub(fields[i], 1, #FOLLOWER) == FOLLOWER then
      if tonumber(fields[i + 1]) > now then
        found[#found + 1] = string.sub(fields[i], #FOLLOWER + 1)
      else
        redis.call('HDEL', flight, fields[i])
      end
    end
  end
  return found
end

local function is_leader(flight, fence) return redis.call('HGET', flight, 'fence') == fence end

-- Adds messages to a flight's stream and wakes its followers. Returns how many follow. With no followers, adds nothing.
local function publish(flight, stream, name, channel, fence, lifetime_ms, bodies)
  local found = followers(flight)
  if #found == 0 then return 0 end
  for _, body in ipairs(bodies) do redis.call('XADD', stream, '*', 'fence', fence, 'body', body) end
  redis.call('PEXPIRE', stream, lifetime_ms)
  for _, worker in ipairs(found) do redis.call('PUBLISH', channel .. worker, 'more ' .. name) end
  return #found
end

-- name: join
-- Takes the lead of a flight that has no leader; otherwise becomes a follower, or renews that.
-- KEYS[1] hash the flight   KEYS[2] hash the stored answer   KEYS[3] hash rag:invalidated
-- ARGV: worker, lease_ms, channel prefix, <scope>:<digest>, asked_ms (0: ignore the stored answer),
--       not_before_ms: ignore a leader that asked then or earlier, since its answer has been invalidated; below 0: the
--       worker does not know, and any invalidation counts,
--       priority
-- Returns {'lead' | 'follow' | 'stored', fence, and for a follower the end of its lease, different each time}
local flight, worker, lease = KEYS[1], ARGV[1], tonumber(ARGV[2])
local asked, not_before, priority = tonumber(ARGV[5]), tonumber(ARGV[6]), ARGV[7]
if asked > 0 and tonumber(redis.call('HGET', KEYS[2], 'created_ms') or 0) >= asked then return {'stored', ''} end
local leader, fence, begun, led_as, led_ms =
  unpack(redis.call('HMGET', flight, 'leader', 'fence', 'asked_ms', 'priority', 'began_ms'))
begun = tonumber(begun or 0)
if leader and not_before < 0 then
  local tags = redis.call('HGETALL', KEYS[3])
  for i = 1, #tags, 2 do
    if tags[i] ~= 'began' then not_before = math.max(not_before, tonumber(tags[i + 1])) end
  end
  if begun == 0 then begun = tonumber(led_ms or 0) end -- a leader that did not know either
end
local outdated = not_before > 0 and begun <= not_before
if leader and leader ~= worker and not outdated then
  local last = tonumber(redis.call('HGET', flight, FOLLOWER .. worker) or 0)
  local lease_end = int(math.max(now + lease, last + 1))
  redis.call('HSET', flight, FOLLOWER .. worker, lease_end)
  redis.call('PUBLISH', ARGV[3] .. leader, 'followed ' .. ARGV[4])
  if priority == 'user' and led_as == 'batch' then redis.call('PUBLISH', ARGV[3] .. leader, 'promoted ' .. ARGV[4]) end
  return {'follow', fence, lease_end}
end
fence = int(micros) .. '-' .. worker
redis.call('HSET', flight, 'leader', worker, 'fence', fence, 'began_ms', int(now), 'asked_ms', int(asked),
  'priority', priority)
redis.call('HDEL', flight, FOLLOWER .. worker)
redis.call('PEXPIRE', flight, lease)
return {'lead', fence}

-- name: publish
-- Publishes messages to the followers.
-- KEYS[1] hash the flight   KEYS[2] stream its messages
-- ARGV: fence, channel prefix, <scope>:<digest>, lifetime_ms of the stream, body ...
-- Returns how many follow, or -1 if the lead is lost.
if not is_leader(KEYS[1], ARGV[1]) then return -1 end
return publish(KEYS[1], KEYS[2], ARGV[3], ARGV[2], ARGV[1], ARGV[4], {unpack(ARGV, 5)})

-- name: end
-- Publishes the leader's last message and ends the flight. The stream stays for the followers.
-- KEYS[1] hash the flight   KEYS[2] stream its messages
-- ARGV: fence, channel prefix, <scope>:<digest>, lifetime_ms of the stream, body
-- Returns 1, or 0 if the lead is lost.
if not is_leader(KEYS[1], ARGV[1]) then return 0 end
publish(KEYS[1], KEYS[2], ARGV[3], ARGV[2], ARGV[1], ARGV[4], {ARGV[5]})
redis.call('UNLINK', KEYS[1])
return 1

-- name: abandon
-- Ends a flight whose leader has no callers left, unless others follow it.
-- KEYS[1] hash the flight   KEYS[2] stream its messages
-- ARGV: fence
-- Returns how many follow.
if not is_leader(KEYS[1], ARGV[1]) then return 0 end
local found = followers(KEYS[1])
if #found == 0 then redis.call('UNLINK', KEYS[1], KEYS[2]) end
return #found

-- name: leave
-- Stops following and notifies the leader, unless the worker has renewed its lease since.
-- KEYS[1] hash the flight
-- ARGV: worker, end of the lease, channel prefix, <scope>:<digest>
-- Returns 1, or 0 if the lease was renewed.
if redis.call('HGET', KEYS[1], FOLLOWER .. ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('HDEL', KEYS[1], FOLLOWER .. ARGV[1])
local leader = redis.call('HGET', KEYS[1], 'leader')
if leader then redis.call('PUBLISH', ARGV[3] .. leader, 'left ' .. ARGV[4]) end
return 1

-- name: renew
-- Renews a lead. Restores a missing one (FLUSHALL) if the leader was never away for longer than a lease.
-- KEYS[1] hash the flight
-- ARGV: worker, lease_ms, fence, 1 if it may be restored
-- Returns how many follow, or -1 if the lead is lost.
local flight, fence = KEYS[1], redis.call('HGET', KEYS[1], 'fence')
if fence and fence ~= ARGV[3] then return -1 end
if not fence then
  if ARGV[4] ~= '1' then return -1 end
  redis.call('HSET', flight, 'leader', ARGV[1], 'fence', ARGV[3], 'began_ms', int(now))
end
redis.call('PEXPIRE', flight, ARGV[2])
return #followers(flight)

-- name: exclusive
-- Takes the lead of work that has no followers, if no worker has it.
-- KEYS[1] hash the refresh
-- ARGV: worker, lease_ms
-- Returns the fence, or '' if another worker has the lead.
if redis.call('EXISTS', KEYS[1]) == 1 then return '' end
local fence = int(micros) .. '-' .. ARGV[1]
redis.call('HSET', KEYS[1], 'leader', ARGV[1], 'fence', fence, 'began_ms', int(now))
redis.call('PEXPIRE', KEYS[1], ARGV[2])
return fence

-- name: release
-- Renews or releases an exclusive lead.
-- KEYS[1] hash the refresh
-- ARGV: fence, lease_ms (0: release it)
-- Returns 1, or 0 if the lead is lost.
if not is_leader(KEYS[1], ARGV[1]) then return 0 end
if ARGV[2] == '0' then return redis.call('UNLINK', KEYS[1]) end
return redis.call('PEXPIRE', KEYS[1], ARGV[2])
