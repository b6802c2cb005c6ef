-- Forgets the pending update of a project once nothing is pending.
-- KEYS: 1 pending, 2 due, 3 attempts
-- ARGV: 1 project
-- Returns: how many are pending.
local left = redis.call('ZCARD', KEYS[1])
if left == 0 then
  redis.call('ZREM', KEYS[2], 'update|' .. ARGV[1] .. '|')
  redis.call('HDEL', KEYS[3], 'update|' .. ARGV[1] .. '|')
end
return left
