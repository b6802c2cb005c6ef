-- Forgets ids of events that have expired. One that was replayed or corrected late outlives its time of receipt,
-- and so does every one where the retention was shortened: as long as an event is kept, it is listed.
-- KEYS: 1 events, then the lists by state
-- ARGV: 1 prefix of event keys, 2 oldest time of receipt that cannot have expired, in ms, 3 how many to look at,
--       4 a number that grows from call to call: of many, each call looks at the next ones
-- Returns: how many were forgotten.
local old, most = redis.call('ZCOUNT', KEYS[1], '-inf', '(' .. ARGV[2]), tonumber(ARGV[3])
local turns = math.max(1, math.ceil(old / most))
local skipped = tonumber(ARGV[4]) % turns * most
local ids = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', '(' .. ARGV[2], 'LIMIT', skipped, most)
local forgotten = 0
for _, id in ipairs(ids) do
  if redis.call('EXISTS', ARGV[1] .. id) == 0 then
    forgotten = forgotten + redis.call('ZREM', KEYS[1], id)
    for list = 2, #KEYS do redis.call('ZREM', KEYS[list], id) end
  end
end
return forgotten
