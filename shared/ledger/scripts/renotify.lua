-- Makes an event's e-mail due again that was rejected, abandoned or deferred, for the recipients that have not
-- received it.
-- KEYS: 1 event, 2 due, 3 mailing, 4 attempts, 5 gathered
-- ARGV: 1 project, 2 event id, 3 now ms, 4 due ms, 5 '1' if the project sends digests
-- Returns: 'email' or 'digest', what to publish; '' if the mail was sent, or waits for a digest's regular time.
local project, id = ARGV[1], ARGV[2]
local stored = redis.call('HMGET', KEYS[1], 'notice', 'noticed', 'mail')
local notice, noticed, outcome = stored[1], stored[2] or '', stored[3] or ''
local digest = 'digest|' .. project .. '|'
local gathered = redis.call('ZSCORE', KEYS[5], id)
if gathered and redis.call('HEXISTS', KEYS[4], digest) == 0 then return '' end
if not notice then
  notice = string.match(noticed, '(%S+) $')
  if not notice or outcome == 'sent' then return '' end
  redis.call('HSET', KEYS[1], 'notice', notice, 'noticed', string.sub(noticed, 1, -#notice - 2))
end
redis.call('HSET', KEYS[1], 'notice_ms', ARGV[3])
redis.call('HDEL', KEYS[1], 'mail_rejected')
redis.call('PERSIST', KEYS[1])
redis.call('ZADD', KEYS[3], ARGV[3], id)
if gathered or (ARGV[5] == '1' and notice ~= 'unsaved') then
  redis.call('ZADD', KEYS[5], 'NX', ARGV[3], id)
  redis.call('ZADD', KEYS[2], ARGV[4], digest)
  return 'digest'
end
local due = 'email|' .. project .. '|' .. id
redis.call('HDEL', KEYS[4], due)
redis.call('ZADD', KEYS[2], ARGV[4], due)
return 'email'
