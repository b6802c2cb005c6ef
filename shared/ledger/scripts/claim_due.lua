-- Takes the pieces of work that are overdue and sets each one's next time, so that none is lost if this
-- process dies here, and none is published every minute while its queue is long.
-- KEYS: 1 due, 2 attempts
-- ARGV: 1 now ms, 2 limit, 3 first pause ms, 4 longest pause ms
-- Returns: the members, "kind|project|event id".
local members = redis.call('ZRANGEBYSCORE', KEYS[1], '-inf', ARGV[1], 'LIMIT', 0, ARGV[2])
for _, member in ipairs(members) do
  local attempt = redis.call('HINCRBY', KEYS[2], member, 1)
  local pause = math.min(tonumber(ARGV[3]) * 2 ^ (attempt - 1), tonumber(ARGV[4]))
  redis.call('ZADD', KEYS[1], string.format('%.0f', tonumber(ARGV[1]) + pause), member)
end
return members
