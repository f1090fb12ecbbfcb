-- Permits and places in line go back, and the next are served. Keys, ARGV[1..3]: see bulkhead_common.lua.
-- ARGV[4..]: ticket, held_ms (-1: no call was made), reason of a rejection or '', and so on
-- Returns the tickets that hold a permit from now on
drop_ended()
for i = 4, #ARGV, 3 do
  local ticket, held, reason = ARGV[i], tonumber(ARGV[i + 1]), ARGV[i + 2]
  redis.call('ZREM', KEYS[1], ticket)
  dequeue(ticket)
  if held >= 0 then
    local service = tonumber(redis.call('HGET', KEYS[4], 'service_ms') or 0)
    if service > 0 then held = service + (held - service) * SMOOTHING end
    note('service_ms', string.format('%.3f', held))
    count('served', 1)
  end
  if reason ~= '' then count('rejected_' .. reason, 1) end
end
return hand_out()
