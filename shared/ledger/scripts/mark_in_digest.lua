-- Takes events from those that wait for a digest: it has named them, or they are forgotten. The next one's time goes
-- by the oldest that is left.
local gathered, due, attempts = unpack(KEYS)
local project, gather_ms = arguments(2)  -- gather_ms: '' = leave the next one's time as it is
-- Then the event ids.

local digest = work('digest', project)
for id in rest(1) do redis.call('ZREM', gathered, id) end
local oldest = redis.call('ZRANGE', gathered, 0, 0, 'WITHSCORES')[2]
if oldest and gather_ms == '' then return 1 end
redis.call('HDEL', attempts, digest)
if oldest then
  redis.call('ZADD', due, number(oldest + gather_ms), digest)
else
  redis.call('ZREM', due, digest)
end
return 1
