-- Forgets the pending update of a project once nothing is pending.
-- Returns: how many are pending.
local pending, due, attempts = unpack(KEYS)
local project = arguments(1)

local left = redis.call('ZCARD', pending)
if left == 0 then
  redis.call('ZREM', due, work('update', project))
  redis.call('HDEL', attempts, work('update', project))
end
return left
