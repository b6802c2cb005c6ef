-- Takes one request out of the budget of a REDCap host: an exact sliding window of 60 s, by the clock of Redis, because
-- the clocks of workers differ.
-- Returns the milliseconds to wait; 0 means that the request may be made.
local window,
  pause  -- after a background request
  = unpack(KEYS)
local limit, member, pause_ms = arguments(3)  -- pause_ms: between background requests; '0': somebody waits for this one

local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', window, '-inf', now - 60000)
local used = redis.call('ZCARD', window)
if used >= tonumber(limit) then
  local oldest = redis.call('ZRANGE', window, used - limit, used - limit, 'WITHSCORES')[2]
  return tonumber(oldest) + 60000 - now + 1
end
if tonumber(pause_ms) > 0 then
  local remaining = redis.call('PTTL', pause)
  if remaining > 0 then return remaining end
  redis.call('SET', pause, '1', 'PX', pause_ms)
end
redis.call('ZADD', window, now, member)
redis.call('PEXPIRE', window, 61000)
return 0
