-- Forgets ids of events that have expired. One that was replayed or corrected late outlives its time of receipt,
-- and so does every one where the retention was shortened: as long as an event is kept, it is listed.
-- Returns: how many were forgotten.
local events = unpack(KEYS)
local event_prefix, lists,
  oldest_ms,  -- the oldest time of receipt that cannot have expired
  limit,      -- how many to look at
  turn        -- grows from call to call: of many, each call looks at the next ones
  = arguments(5)
-- Then the states that have a list of their own.

local old, most = redis.call('ZCOUNT', events, '-inf', '(' .. oldest_ms), tonumber(limit)
local turns = math.max(1, math.ceil(old / most))
local skipped = tonumber(turn) % turns * most
local ids = redis.call('ZRANGEBYSCORE', events, '-inf', '(' .. oldest_ms, 'LIMIT', skipped, most)
local forgotten = 0
for _, id in ipairs(ids) do
  if redis.call('EXISTS', event_prefix .. id) == 0 then
    forgotten = forgotten + redis.call('ZREM', events, id)
    for state in rest(1) do redis.call('ZREM', lists .. state, id) end
  end
end
return forgotten
