-- Records how far the block of an event at Twilio has come.
local event, waiting, failed, due, attempts, blocks = unpack(KEYS)
local project, id, state, reason, now_ms, due_ms, unblocked = arguments(7)  -- unblocked: '1' if the numbers are, else ''
-- Then the numbers that Twilio has blocked, or unblocked.

local block = work('block', project)
if redis.call('EXISTS', event) == 1 then
  redis.call('HSET', event, 'block', state, 'block_reason', reason)
  if state == 'blocked' or state == 'unblocked' then redis.call('HSET', event, 'block_ms', now_ms) end
else
  state = ''  -- the event's retention is over
end
for phone_and_scope in rest(1) do
  if unblocked == '1' then
    redis.call('HDEL', blocks, phone_and_scope)
  else
    redis.call('HSET', blocks, phone_and_scope, now_ms)
  end
end
if state == 'waiting' then
  redis.call('ZADD', waiting, 'NX', now_ms, id)
  redis.call('ZADD', due, 'NX', due_ms, block)
else
  redis.call('ZREM', waiting, id)
end
if state == 'failed' then
  redis.call('ZADD', failed, 'NX', now_ms, id)
else
  redis.call('ZREM', failed, id)
end
if redis.call('ZCARD', waiting) == 0 then
  redis.call('ZREM', due, block)
  redis.call('HDEL', attempts, block)
end
