-- Records that writes to REDCap begin, all or none: none if what is to be written is no longer among the latest changes
-- of its phone, or if the write of another change has begun in the meantime whose end nobody has checked yet.
-- KEYS: 1 intents, 2 status, 3 pending, 4 due
-- ARGV: 1 project, 2 now ms, 3 due ms, then per phone: its hash, event id, and the event whose write had begun
--       when its records were read ('' none; '-' its records were not read for its sake)
-- Returns the conflicting phones; none: it is recorded.
local function is_latest(phone, id)
  for line in string.gmatch(redis.call('HGET', KEYS[2], phone) or '', '[^\n]+') do
    if string.match(line, '^[^|]*|%u+|%d+|([^|]+)|%d+|') == id or string.match(line, '^%u+|%d+|([^|]+)|%d+$') == id then
      return true
    end
  end
  return false
end
local outdated = {}
for i = 4, #ARGV, 3 do
  local phone, id = ARGV[i], ARGV[i + 1]
  local begun = redis.call('HGET', KEYS[1], phone)
  local known = ARGV[i + 2]
  if not is_latest(phone, id) or (known ~= '-' and begun and begun ~= id and begun ~= known) then
    outdated[#outdated + 1] = phone
  end
end
if #outdated > 0 then return outdated end
for i = 4, #ARGV, 3 do
  redis.call('HSET', KEYS[1], ARGV[i], ARGV[i + 1])
  redis.call('ZADD', KEYS[3], 'NX', ARGV[2], ARGV[i])
end
redis.call('ZADD', KEYS[4], 'NX', ARGV[3], 'update|' .. ARGV[1] .. '|')
return {}
