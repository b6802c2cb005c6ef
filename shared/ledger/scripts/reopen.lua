-- Sets an ended event back to 'received', to be looked up again.
-- KEYS: 1 event, 2 unfinished, 3 due, 4 attempts, 5 events
-- ARGV: 1 project, 2 event id, 3 now ms, 4 due ms, 5 prefix of the lists by state
-- Returns: 1, or 0 where there is no such event or its sender is no phone number.
local phone = redis.call('HGET', KEYS[1], 'phone')
if not phone or phone == '' then return 0 end
local due = 'lookup|' .. ARGV[1] .. '|' .. ARGV[2]
redis.call('HSETNX', KEYS[1], 'arrived_ms', redis.call('HGET', KEYS[1], 'received_ms'))
redis.call('HSET', KEYS[1], 'received_ms', ARGV[3])
redis.call('HDEL', KEYS[1], 'finished_ms', 'reason')
set_state(KEYS[1], ARGV[5], ARGV[2], 'received')
redis.call('PERSIST', KEYS[1])
redis.call('ZADD', KEYS[2], ARGV[3], ARGV[2])
redis.call('ZADD', KEYS[5], ARGV[3], ARGV[2])
redis.call('HDEL', KEYS[4], due)
redis.call('ZADD', KEYS[3], ARGV[4], due)
return 1
