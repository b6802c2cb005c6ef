-- Removes a phone from the pending set, unless its latest changes are others than were written.
local statuses, pending, due = unpack(KEYS)
local project, phone, written, now_ms, due_ms = arguments(5)  -- written: the status as it was read

local status = redis.call('HGET', statuses, phone)
if not status or status == written then
  redis.call('ZREM', pending, phone)
else
  -- A newer change exists. If another worker wrote it before our (stale) write, REDCap now shows the older value:
  -- check the phone again.
  redis.call('ZADD', pending, 'NX', now_ms, phone)
  redis.call('ZADD', due, 'NX', due_ms, work('update', project))
end
return 1
