-- Sets an ended event back to 'received', to be looked up again.
-- Returns: 1, or 0 where there is no such event or its sender is no phone number.
local event, unfinished, due, attempts, events = unpack(KEYS)
local project, id, now_ms, due_ms, lists = arguments(5)  -- lists: prefix of the lists by state

local phone = redis.call('HGET', event, 'phone')
if not phone or phone == '' then return 0 end
redis.call('HSETNX', event, 'arrived_ms', redis.call('HGET', event, 'received_ms'))
redis.call('HSET', event, 'received_ms', now_ms)
redis.call('HDEL', event, 'finished_ms', 'reason')
set_state(event, lists, id, 'received')
redis.call('PERSIST', event)
redis.call('ZADD', unfinished, now_ms, id)
redis.call('ZADD', events, now_ms, id)
redis.call('HDEL', attempts, work('lookup', project, id))
redis.call('ZADD', due, due_ms, work('lookup', project, id))
return 1
