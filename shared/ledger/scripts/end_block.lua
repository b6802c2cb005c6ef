-- Records how far the block of an event at Twilio has come.
-- KEYS: 1 event, 2 waiting, 3 failed, 4 due, 5 attempts, 6 blocks in force
-- ARGV: 1 project, 2 event id, 3 state, 4 reason, 5 now ms, 6 due ms, 7 '1' if the numbers are unblocked,
--       then the numbers that Twilio has blocked, or unblocked
local id, state, now, due = ARGV[2], ARGV[3], ARGV[5], 'block|' .. ARGV[1] .. '|'
if redis.call('EXISTS', KEYS[1]) == 1 then
  redis.call('HSET', KEYS[1], 'block', state, 'block_reason', ARGV[4])
  if state == 'blocked' or state == 'unblocked' then redis.call('HSET', KEYS[1], 'block_ms', now) end
else
  state = ''  -- the event's retention is over
end
for i = 8, #ARGV do
  if ARGV[7] == '1' then
    redis.call('HDEL', KEYS[6], ARGV[i])
  else
    redis.call('HSET', KEYS[6], ARGV[i], now)
  end
end
if state == 'waiting' then
  redis.call('ZADD', KEYS[2], 'NX', now, id)
  redis.call('ZADD', KEYS[4], 'NX', ARGV[6], due)
else
  redis.call('ZREM', KEYS[2], id)
end
if state == 'failed' then
  redis.call('ZADD', KEYS[3], 'NX', now, id)
else
  redis.call('ZREM', KEYS[3], id)
end
if redis.call('ZCARD', KEYS[2]) == 0 then
  redis.call('ZREM', KEYS[4], due)
  redis.call('HDEL', KEYS[5], due)
end
