-- Takes events from those that wait for a digest: it has named them, or they are forgotten. The next one's time goes
-- by the oldest that is left.
-- KEYS: 1 gathered, 2 due, 3 attempts
-- ARGV: 1 project, 2 for how many ms notices are gathered ('' = leave the next one's time as it is), then the
--       event ids
local due = 'digest|' .. ARGV[1] .. '|'
for i = 3, #ARGV do redis.call('ZREM', KEYS[1], ARGV[i]) end
local oldest = redis.call('ZRANGE', KEYS[1], 0, 0, 'WITHSCORES')[2]
if oldest and ARGV[2] == '' then return 1 end
redis.call('HDEL', KEYS[3], due)
if oldest then
  redis.call('ZADD', KEYS[2], string.format('%.0f', oldest + ARGV[2]), due)
else
  redis.call('ZREM', KEYS[2], due)
end
return 1
