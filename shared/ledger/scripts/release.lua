-- Removes a phone from the pending set, unless its latest changes are others than were written.
-- KEYS: 1 status, 2 pending, 3 due
-- ARGV: 1 project, 2 phone hash, 3 the status as it was read, 4 now ms, 5 due ms
local status = redis.call('HGET', KEYS[1], ARGV[2])
if not status or status == ARGV[3] then
  redis.call('ZREM', KEYS[2], ARGV[2])
else
  -- A newer change exists. If another worker wrote it before our (stale) write, REDCap now shows the older value:
  -- check the phone again.
  redis.call('ZADD', KEYS[2], 'NX', ARGV[4], ARGV[2])
  redis.call('ZADD', KEYS[3], 'NX', ARGV[5], 'update|' .. ARGV[1] .. '|')
end
return 1
