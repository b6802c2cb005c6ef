-- Ends an event, takes its phone from the pending set if nothing newer came, and asks for the e-mail or, where
-- the project gathers its mails, for the digest.
-- KEYS: 1 event, 2 status, 3 pending, 4 unfinished, 5 due, 6 counts, 7 intents, 8 mailing, 9 attempts, 10 gathered
-- ARGV: 1 project, 2 event id, 3 phone hash, 4 state, 5 reason, 6 record ids (JSON), 7 notice ('' = none),
--       8 now ms, 9 due ms, 10 retention in seconds, 11 the status as it was read ('' = leave pending alone),
--       12 for how many ms notices are gathered (0 = not)
-- Answers: the notice whose e-mail is due by itself now, or ''.
local project, id, phone, state, notice = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[7]
if ARGV[11] ~= '' then
  if redis.call('HGET', KEYS[2], phone) == ARGV[11] then
    redis.call('ZREM', KEYS[3], phone)
  elseif redis.call('HEXISTS', KEYS[2], phone) == 1 then
    -- Something newer came. Should another updater have written that before this one's write went out (a lost
    -- lock), REDCap now shows the older: look again.
    redis.call('ZADD', KEYS[3], 'NX', ARGV[8], phone)
    redis.call('ZADD', KEYS[5], 'NX', ARGV[9], 'update|' .. project .. '|')
  end
end
if redis.call('HGET', KEYS[7], phone) == id then redis.call('HDEL', KEYS[7], phone) end
redis.call('ZREM', KEYS[4], id)
redis.call('ZREM', KEYS[5], 'lookup|' .. project .. '|' .. id)
redis.call('HDEL', KEYS[9], 'lookup|' .. project .. '|' .. id)
local before = redis.call('HMGET', KEYS[1], 'state', 'source', 'noticed', 'records', 'notice')
if not before[1] then return '' end  -- the event's retention is over; only its status lives on
-- Finding REDCap as an earlier write left it does not unsay that write.
if before[1] == 'updated' and state == 'already_current' then return '' end
if before[1] ~= state then
  redis.call('HINCRBY', KEYS[6], project .. '|' .. before[2] .. '|' .. state, 1)
end
redis.call('HSET', KEYS[1], 'state', state, 'reason', ARGV[5], 'records', ARGV[6], 'finished_ms', ARGV[8])
redis.call('EXPIRE', KEYS[1], ARGV[10])
-- Each kind of notice is given once per event: a later correction by the nightly run is no second change.
-- Whole words are compared: "saved" is also the end of "unsaved".
if notice == '' or string.find(' ' .. (before[3] or ''), ' ' .. notice .. ' ', 1, true) then return '' end
redis.call('HSET', KEYS[1], 'notice', notice, 'notice_ms', ARGV[8])
redis.call('PERSIST', KEYS[1])
redis.call('ZADD', KEYS[8], ARGV[8], id)
if tonumber(ARGV[12]) > 0 then
  redis.call('ZADD', KEYS[10], ARGV[8], id)
  redis.call('ZADD', KEYS[5], 'NX', string.format('%.0f', ARGV[8] + ARGV[12]), 'digest|' .. project .. '|')
  return ''
end
redis.call('ZADD', KEYS[5], ARGV[9], 'email|' .. project .. '|' .. id)
return notice
