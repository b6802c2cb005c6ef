-- Claims the background job that is to be done next.
-- KEYS: 1 background jobs
-- ARGV: 1 now ms, 2 for how many ms nobody else claims it
-- Returns the job, or false where none is due.
local first = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, 1)
if #first == 0 then return false end
redis.call('ZADD', KEYS[1], string.format('%.0f', ARGV[1] + ARGV[2]), first[1])
return first[1]
