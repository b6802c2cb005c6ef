-- Marks an event's e-mail as sent (or abandoned), unless another one became due in the meantime.
-- Returns 1, or 0 if another mail is due.
local event, due, mailing, attempts = unpack(KEYS)
local project, id, notice, outcome, retention, notice_number, now_ms = arguments(7)  -- retention: in seconds

if redis.call('EXISTS', event) == 0 then return 0 end
local noticed = redis.call('HGET', event, 'noticed') or ''
redis.call('HSET', event, 'noticed', noticed .. notice .. ' ', 'mail', outcome)
if outcome == 'sent' then redis.call('HSET', event, 'notified_ms', now_ms) end
local due_now = redis.call('HMGET', event, 'notice', 'notice_number')
if due_now[1] ~= notice or (due_now[2] or '') ~= notice_number then return 0 end
-- Recipients that are done are remembered while others may be tried again.
if outcome == 'sent' then redis.call('HDEL', event, 'mail_accepted', 'mail_rejected') end
redis.call('HDEL', event, 'notice', 'notice_ms')
redis.call('ZREM', due, work('email', project, id))
redis.call('ZREM', mailing, id)
redis.call('HDEL', attempts, work('email', project, id))
redis.call('EXPIRE', event, retention)
return 1
