-- Lists events by their state, if it has a list.
-- Returns how many events were listed.
local events = unpack(KEYS)
local event_prefix, lists, states = arguments(3)  -- lists: prefix of the lists; states: those that have one, a line each
-- Then the event ids.

local listed, count = {}, 0
for state in string.gmatch(states, '[^\n]+') do listed[state] = true end
for id in rest(1) do
  local state, received = redis.call('HGET', event_prefix .. id, 'state'), redis.call('ZSCORE', events, id)
  if received and listed[state] then
    redis.call('ZADD', lists .. state, received, id)
    count = count + 1
  end
end
return count
