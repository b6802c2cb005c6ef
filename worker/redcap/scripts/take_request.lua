-- Takes one request out of the budget of a REDCap host: an exact sliding window of 60 s, by the clock of Redis, because
-- the clocks of workers differ.
-- KEYS: 1 window, 2 the pause after a background request
-- ARGV: 1 limit, 2 member, 3 the pause in ms between background requests; '0': somebody waits for this request
-- Returns the milliseconds to wait; 0 means that the request may be made.
local window, pause_key, limit, pause = KEYS[1], KEYS[2], tonumber(ARGV[1]), tonumber(ARGV[3])
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
redis.call('ZREMRANGEBYSCORE', window, '-inf', now - 60000)
local used = redis.call('ZCARD', window)
if used >= limit then
  return tonumber(redis.call('ZRANGE', window, used - limit, used - limit, 'WITHSCORES')[2]) + 60000 - now + 1
end
if pause > 0 then
  local rest = redis.call('PTTL', pause_key)
  if rest > 0 then return rest end
  redis.call('SET', pause_key, '1', 'PX', pause)
end
redis.call('ZADD', window, now, ARGV[2])
redis.call('PEXPIRE', window, 61000)
return 0
