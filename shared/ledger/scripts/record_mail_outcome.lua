-- Marks an event's e-mail as sent (or abandoned), unless another one became due in the meantime.
-- KEYS: 1 event, 2 due, 3 mailing, 4 attempts
-- ARGV: 1 project, 2 event id, 3 notice, 4 outcome, 5 retention in seconds, 6 the notice's number, 7 now ms
-- Returns 1, or 0 if another mail is due.
if redis.call('EXISTS', KEYS[1]) == 0 then return 0 end
local noticed = redis.call('HGET', KEYS[1], 'noticed') or ''
redis.call('HSET', KEYS[1], 'noticed', noticed .. ARGV[3] .. ' ', 'mail', ARGV[4])
if ARGV[4] == 'sent' then redis.call('HSET', KEYS[1], 'notified_ms', ARGV[7]) end
local due_now = redis.call('HMGET', KEYS[1], 'notice', 'notice_number')
if due_now[1] ~= ARGV[3] or (due_now[2] or '') ~= ARGV[6] then return 0 end
-- Recipients that are done are remembered while others may be tried again.
if ARGV[4] == 'sent' then redis.call('HDEL', KEYS[1], 'mail_accepted', 'mail_rejected') end
local due = 'email|' .. ARGV[1] .. '|' .. ARGV[2]
redis.call('HDEL', KEYS[1], 'notice', 'notice_ms')
redis.call('ZREM', KEYS[2], due)
redis.call('ZREM', KEYS[3], ARGV[2])
redis.call('HDEL', KEYS[4], due)
redis.call('EXPIRE', KEYS[1], ARGV[5])
return 1
