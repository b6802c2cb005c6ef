-- Makes an event's e-mail due again that was rejected, abandoned or deferred, for the recipients that have not
-- received it.
-- Returns: 'email' or 'digest', what to publish; '' if the mail was sent, or waits for a digest's regular time.
local event, due, mailing, attempts, gathered = unpack(KEYS)
local project, id, now_ms, due_ms, sends_digests = arguments(5)  -- sends_digests: '1' if the project does

local stored = redis.call('HMGET', event, 'notice', 'noticed', 'mail')
local notice, noticed, outcome = stored[1], stored[2] or '', stored[3] or ''
local digest = work('digest', project)
local waits_since = redis.call('ZSCORE', gathered, id)
if waits_since and redis.call('HEXISTS', attempts, digest) == 0 then return '' end
if not notice then
  notice = string.match(noticed, '(%S+) $')
  if not notice or outcome == 'sent' then return '' end
  redis.call('HSET', event, 'notice', notice, 'noticed', string.sub(noticed, 1, -#notice - 2))
end
redis.call('HSET', event, 'notice_ms', now_ms)
redis.call('HDEL', event, 'mail_rejected')
redis.call('PERSIST', event)
redis.call('ZADD', mailing, now_ms, id)
if waits_since or (sends_digests == '1' and notice ~= 'unsaved') then
  redis.call('ZADD', gathered, 'NX', now_ms, id)
  redis.call('ZADD', due, due_ms, digest)
  return 'digest'
end
redis.call('HDEL', attempts, work('email', project, id))
redis.call('ZADD', due, due_ms, work('email', project, id))
return 'email'
