-- Notes which schema the keys have from now on, where that is for this worker to say.
-- KEYS[1] hash  rag:corpus:schema, version, since_ms, by, release
-- ARGV: major, minor, 1 where no worker of an older major lives, worker, release
-- Returns the version that holds. A minor only ever grows: the newest whose fields may be there.
local major, minor, alone = tonumber(ARGV[1]), tonumber(ARGV[2]), ARGV[3] == '1'
local version = redis.call('HGET', KEYS[1], 'version')
if version then
  local held, held_minor = version:match('^(%d+)%.(%d+)$')
  held, held_minor = tonumber(held), tonumber(held_minor)
  if not held or major < held then return version end
  if major == held and minor <= held_minor then return version end
  if major > held and not alone then return version end
elseif not alone then
  return ''
end
local time = redis.call('TIME')
version = ARGV[1] .. '.' .. ARGV[2]
redis.call('HSET', KEYS[1], 'version', version, 'by', ARGV[4], 'release', ARGV[5],
  'since_ms', string.format('%d', time[1] * 1000 + math.floor(time[2] / 1000)))
return version
