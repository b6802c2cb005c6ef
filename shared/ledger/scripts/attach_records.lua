-- Notes the records of an event that was looked up, and asks for its phone's status to be written.
-- Returns 1, or 0 if the event has ended in the meantime.
local event, pending, due, attempts = unpack(KEYS)
local project, id, records, now_ms, due_ms = arguments(5)  -- records: JSON

local state = redis.call('HGET', event, 'state')
redis.call('ZREM', due, work('lookup', project, id))
redis.call('HDEL', attempts, work('lookup', project, id))
if state ~= 'received' and state ~= 'pending' then return 0 end
redis.call('HSET', event, 'state', 'pending', 'records', records)
redis.call('ZADD', pending, 'NX', now_ms, redis.call('HGET', event, 'phone'))
redis.call('ZADD', due, 'NX', due_ms, work('update', project))
return 1
