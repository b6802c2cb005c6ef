-- Records that writes to REDCap begin, all or none: none if what is to be written is no longer among the latest changes
-- of its phone, or if the write of another change has begun in the meantime whose end nobody has checked yet.
-- Returns the conflicting phones; none: it is recorded.
local intents, status, pending, due = unpack(KEYS)
local project, now_ms, due_ms = arguments(3)
-- Then per phone: its hash, event id, and the event whose write had begun when its records were read ('' none; '-' its
-- records were not read for its sake).

local function is_latest(phone, id)
  for _, line in ipairs(status_lines(status, phone)) do
    if line.id == id then return true end
  end
  return false
end

local outdated = {}
for phone, id, known in rest(3) do
  local begun = redis.call('HGET', intents, phone)
  if not is_latest(phone, id) or (known ~= '-' and begun and begun ~= id and begun ~= known) then
    outdated[#outdated + 1] = phone
  end
end
if #outdated > 0 then return outdated end
for phone, id in rest(3) do
  redis.call('HSET', intents, phone, id)
  redis.call('ZADD', pending, 'NX', now_ms, phone)
end
redis.call('ZADD', due, 'NX', due_ms, work('update', project))
return {}
