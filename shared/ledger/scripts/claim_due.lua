-- Takes the pieces of work that are overdue and sets each one's next time, so that none is lost if this
-- process dies here, and none is published every minute while its queue is long.
-- Returns: the members, "kind|project|event id".
local due, attempts = unpack(KEYS)
local now_ms, limit, first_pause_ms, longest_pause_ms = arguments(4)

local members = redis.call('ZRANGEBYSCORE', due, '-inf', now_ms, 'LIMIT', 0, limit)
for _, member in ipairs(members) do
  local attempt = redis.call('HINCRBY', attempts, member, 1)
  local pause = math.min(tonumber(first_pause_ms) * 2 ^ (attempt - 1), tonumber(longest_pause_ms))
  redis.call('ZADD', due, number(tonumber(now_ms) + pause), member)
end
return members
