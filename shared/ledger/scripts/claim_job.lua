-- Claims the background job that is to be done next, for `claimed_ms`.
-- Returns the job, or false where none is due.
local jobs = unpack(KEYS)
local now_ms, claimed_ms = arguments(2)

local first = redis.call('ZRANGEBYSCORE', jobs, '-inf', now_ms, 'LIMIT', 0, 1)
if #first == 0 then return false end
redis.call('ZADD', jobs, number(now_ms + claimed_ms), first[1])
return first[1]
