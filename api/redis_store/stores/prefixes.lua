-- The prompts that each backend has read last, as chains of digests.
--   string  rag:prefix                       the key of the digests, in hex, the same for the fleet
--   hash    rag:prefix:<backend>             '<model> <last digest>' -> '<used_ms> <blocks of the prompt> <chain>'
--   zset    rag:bulkhead:{<backend>}         ticket -> end of its lease (ms); read only
--   zset    rag:bulkhead:{<backend>}:queue   ticket -> 0; read only

-- shared
local DIGEST = 16 -- hex digits

-- Returns how many digests two chains have in common. A digest covers all before it, so halving finds the last one.
local function in_common(one, other)
  local low, high = 0, math.floor(math.min(#one, #other) / DIGEST)
  while low < high do
    local middle = math.floor((low + high + 1) / 2)
    local from, to = (middle - 1) * DIGEST + 1, middle * DIGEST
    if one:sub(from, to) == other:sub(from, to) then low = middle else high = middle - 1 end
  end
  return low
end

-- Reads a remembered prompt: when it was last used, its number of blocks without the answer's, and its chain.
local function remembered(value)
  local used, blocks, chain = value:match('^(%d+) (%d+) (%x+)$')
  return tonumber(used or 0), tonumber(blocks or 0), chain or ''
end

-- name: agree
-- KEYS[1] string the key of the digests   ARGV: the worker's key, lifetime_ms
-- Returns the fleet's key: the worker's, unless there is one.
local known = redis.call('GET', KEYS[1]) or ARGV[1]
redis.call('SET', KEYS[1], known, 'PX', ARGV[2])
return known

-- name: look_up
-- Compares a prompt with those that the backends have read.
-- KEYS: the hash of each backend, then perhaps the permits and the queue of each
-- ARGV: chain, prompts that a backend has room for, milliseconds in which a prompt counts as in use, number of backends
-- Returns for each backend {blocks in common, 1 if they include a whole earlier prompt else 0, prompts in use,
-- calls running and waiting, or -1 if unknown}.
local mine, room, recent, backends = ARGV[1], tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local now, found = now_ms(), {}
for i = 1, backends do
  local blocks, continues, in_use = 0, 0, 0
  local all = redis.call('HGETALL', KEYS[i])
  for at = 2, #all, 2 do
    local used, own, chain = remembered(all[at])
    if used > now - recent then in_use = in_use + 1 end
    local common = in_common(chain, mine)
    if common > 0 and common >= own then continues = 1 end
    blocks = math.max(blocks, common)
  end
  local calls, permits = -1, KEYS[backends + 2 * i - 1]
  if permits then calls = redis.call('ZCOUNT', permits, now, '+inf') + redis.call('ZCARD', KEYS[backends + 2 * i]) end
  found[i] = {blocks, continues, math.min(in_use, room), calls}
end
return found

-- name: calls
-- Counts the calls to a backend.
-- KEYS[1] zset its permits   KEYS[2] zset its queue
-- Returns how many run and wait.
return redis.call('ZCOUNT', KEYS[1], now_ms(), '+inf') + redis.call('ZCARD', KEYS[2])

-- name: record
-- Notes that a backend has read a prompt. It replaces the prompt that it continues, or else the one used least
-- recently.
-- KEYS[1] string the key of the digests   KEYS[2] hash the backend
-- ARGV: the worker's key, model, chain, blocks of the prompt, prompts that the backend has room for, lifetime_ms,
--       1 if the backend has forgotten all other prompts of the model else 0
-- Returns the fleet's key. With another key, nothing is noted.
local key, model, mine = ARGV[1], ARGV[2], ARGV[3]
local known = redis.call('GET', KEYS[1])
redis.call('SET', KEYS[1], known or key, 'PX', ARGV[6])
if known and known ~= key then return known end

local best, replaced, kept = -1, nil, {}
local all = redis.call('HGETALL', KEYS[2])
for i = 1, #all, 2 do
  local field, used, own, chain = all[i], remembered(all[i + 1])
  if ARGV[7] == '1' and field:sub(1, #model + 1) == model .. ' ' then
    redis.call('HDEL', KEYS[2], field)
  else
    kept[#kept + 1] = {used, field}
    local common = in_common(chain, mine)
    if common > 0 and common >= own and common > best then best, replaced = common, field end
  end
end
table.sort(kept, function(one, other)
  if one[2] == replaced or other[2] == replaced then return one[2] == replaced and other[2] ~= replaced end
  if one[1] ~= other[1] then return one[1] < other[1] end
  return one[2] < other[2]
end)
local surplus = math.max(#kept + 1 - tonumber(ARGV[5]), replaced and 1 or 0)
for i = 1, surplus do redis.call('HDEL', KEYS[2], kept[i][2]) end
local value = int(now_ms()) .. ' ' .. ARGV[4] .. ' ' .. mine
redis.call('HSET', KEYS[2], model .. ' ' .. mine:sub(-DIGEST), value)
redis.call('PEXPIRE', KEYS[2], ARGV[6])
return key

-- name: forget
-- Forgets the prompts of models that a backend no longer has in memory.
-- KEYS[1] hash the backend   ARGV: the models; none: all models
if #ARGV == 0 then return redis.call('DEL', KEYS[1]) end
local all = redis.call('HGETALL', KEYS[1])
for i = 1, #all, 2 do
  for _, model in ipairs(ARGV) do
    if all[i]:sub(1, #model + 1) == model .. ' ' then redis.call('HDEL', KEYS[1], all[i]) end
  end
end
return 0

-- name: count
-- KEYS: hashes, one for each backend
-- Returns how many prompts are remembered of each.
local counts = {}
for i, key in ipairs(KEYS) do counts[i] = #redis.call('HGETALL', key) / 2 end
return counts
