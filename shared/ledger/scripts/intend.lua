-- Notes that writes to REDCap begin, all or none: none where what is to be written is no longer the latest change of
-- its phone, or where the write of another change has begun meanwhile, whose end nobody has looked at yet.
-- KEYS: 1 intents, 2 status, 3 pending, 4 due
-- ARGV: 1 project, 2 now ms, 3 due ms, then per phone: its hash, event id, '1' if the begun writes of it are known
-- Answers: the phones that stand in the way; none: it is noted.
local outdated = {}
for i = 4, #ARGV, 3 do
  local phone, id = ARGV[i], ARGV[i + 1]
  local status, begun = redis.call('HGET', KEYS[2], phone), redis.call('HGET', KEYS[1], phone)
  local latest = status and string.match(status, '^%u+|%d+|([^|]+)|')
  if latest ~= id or (ARGV[i + 2] == '1' and begun and begun ~= id) then outdated[#outdated + 1] = phone end
end
if #outdated > 0 then return outdated end
for i = 4, #ARGV, 3 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('ZADD', KEYS[3], 'NX', ARGV[2], ARGV[i])
end
redis.call('ZADD', KEYS[4], 'NX', ARGV[3], 'update|' .. ARGV[1] .. '|')
return {}
