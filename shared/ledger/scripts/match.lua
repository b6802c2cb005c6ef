-- Notes the records of an event that was looked up, and asks for its phone's status to be written.
-- KEYS: 1 event, 2 pending, 3 due, 4 attempts
-- ARGV: 1 project, 2 event id, 3 record ids (JSON), 4 now ms, 5 due ms
-- Returns 1, or 0 if the event has ended in the meantime.
local state = redis.call('HGET', KEYS[1], 'state')
redis.call('ZREM', KEYS[3], 'lookup|' .. ARGV[1] .. '|' .. ARGV[2])
redis.call('HDEL', KEYS[4], 'lookup|' .. ARGV[1] .. '|' .. ARGV[2])
if state ~= 'received' and state ~= 'pending' then return 0 end
redis.call('HSET', KEYS[1], 'state', 'pending', 'records', ARGV[3])
redis.call('ZADD', KEYS[2], 'NX', ARGV[4], redis.call('HGET', KEYS[1], 'phone'))
redis.call('ZADD', KEYS[3], 'NX', ARGV[5], 'update|' .. ARGV[1] .. '|')
return 1
