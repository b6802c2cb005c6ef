-- Records one event, once, and makes it the phone's latest status unless a newer one is known.
-- KEYS: 1 event, 2 status, 3 pending, 4 unfinished, 5 events, 6 due, 7 counts, 8 intents, 9 queue, 10 arrived,
--       11 mark of a lookup that waits in the queue, 12 attempts
-- ARGV: 1 project, 2 event id, 3 change, 4 occurred ms, 5 received ms, 6 phone hash ('' = no phone number),
--       7 source, 8 due ms, 9 'newest' or 'oldest': which of two changes in the same millisecond came last,
--       10 prefix of event keys, 11 retention in seconds, 12 message for the queue if the event is new ('' = none),
--       13 how many ms the mark stays
-- Answers: 'known', 'stale' (an older change: superseded), 'unmatched' (no phone number) or 'new'.
local project, id, change, occurred = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local received, phone, source, due_at = tonumber(ARGV[5]), ARGV[6], ARGV[7], tonumber(ARGV[8])
local retention = tonumber(ARGV[11])

local function count(of_source, state)
  redis.call('HINCRBY', KEYS[7], project .. '|' .. of_source .. '|' .. state, 1)
end

local function record(state, reason)
  redis.call('HSET', KEYS[1], 'project', project, 'event_id', id, 'change', change, 'occurred_ms', ARGV[4],
    'received_ms', ARGV[5], 'phone', phone, 'source', source, 'state', state, 'reason', reason)
  redis.call('ZADD', KEYS[5], received, id)
  if state == 'received' then
    redis.call('ZADD', KEYS[4], received, id)
    redis.call('ZADD', KEYS[6], due_at, 'lookup|' .. project .. '|' .. id)
  else
    redis.call('HSET', KEYS[1], 'finished_ms', ARGV[5])
    redis.call('EXPIRE', KEYS[1], retention)
    count(source, state)
  end
end

-- An unfinished event that is overtaken ends here, unless its write may already have reached REDCap
-- (an intent is open): then the updater looks first.
local function supersede(old)
  local key = ARGV[10] .. old
  local state = redis.call('HGET', key, 'state')
  if (state == 'received' or state == 'pending') and redis.call('HGET', KEYS[8], phone) ~= old then
    redis.call('HSET', key, 'state', 'superseded', 'reason', 'overtaken by ' .. id, 'finished_ms', ARGV[5])
    redis.call('EXPIRE', key, retention)
    redis.call('ZREM', KEYS[4], old)
    redis.call('ZREM', KEYS[6], 'lookup|' .. project .. '|' .. old)
    redis.call('HDEL', KEYS[12], 'lookup|' .. project .. '|' .. old)
    count(redis.call('HGET', key, 'source'), 'superseded')
  end
end

-- The message log, and it alone ('oldest'), knows when Twilio called a webhook: the time of receipt is off by
-- Twilio's retries and our clock's error. So it corrects the time, and what was received in the wrong order.
local function corrected()
  local known_as = redis.call('HGET', KEYS[1], 'source')
  local current = redis.call('HGET', KEYS[2], phone)
  if not current or known_as == 'blocked_message' then return 'known' end
  local time = ARGV[4]
  -- Event Streams gave the time to the millisecond; the log cuts it to the second.
  if known_as == 'event_stream' then time = redis.call('HGET', KEYS[1], 'occurred_ms') end
  local c_change, c_occurred, c_id, c_start = string.match(current, '^(%u+)|(%d+)|([^|]+)|(%d+)$')
  if c_id == id then
    if known_as == 'webhook' then
      if change == 'START' then c_start = ARGV[4] end
      redis.call('HSET', KEYS[2], phone, table.concat({c_change, ARGV[4], id, c_start}, '|'))
    end
    return 'known'
  end
  if tonumber(time) <= tonumber(c_occurred) then return 'known' end
  supersede(c_id)
  if change == 'START' then c_start = time end
  redis.call('HSET', KEYS[2], phone, table.concat({change, time, id, c_start}, '|'))
  redis.call('PERSIST', KEYS[1])
  redis.call('HDEL', KEYS[1], 'finished_ms')
  record('received', '')
  return 'new'
end

if redis.call('EXISTS', KEYS[1]) == 1 then
  if ARGV[9] == 'oldest' and phone ~= '' then return corrected() end
  return 'known'
end
if phone == '' then
  record('no_matching_record', 'the sender is no phone number')
  return 'unmatched'
end

local last_start = change == 'START' and occurred or 0
local current = redis.call('HGET', KEYS[2], phone)
if current then
  local c_change, c_occurred, c_id, c_start = string.match(current, '^(%u+)|(%d+)|([^|]+)|(%d+)$')
  if c_id == id then return 'known' end
  c_occurred, c_start = tonumber(c_occurred), tonumber(c_start)
  -- A webhook comes now: after all that is known, also where our clock was set back or another host's is ahead.
  local comes_now = source == 'webhook' and occurred == received
  if not comes_now and (occurred < c_occurred or (occurred == c_occurred and ARGV[9] == 'oldest')) then
    record('superseded', 'older than ' .. c_id)
    -- A START that was missed between two STOPs: the time that REDCap shows may be that of the first.
    if change == 'START' and c_change == 'STOP' and occurred > c_start then
      redis.call('HSET', KEYS[2], phone, table.concat({c_change, string.format('%.0f', c_occurred), c_id, ARGV[4]}, '|'))
      redis.call('ZADD', KEYS[3], received, phone)
      redis.call('ZADD', KEYS[6], due_at, 'update|' .. project .. '|')
    end
    return 'stale'
  end
  supersede(c_id)
  last_start = math.min(math.max(last_start, c_start), occurred)
end
redis.call('HSET', KEYS[2], phone, table.concat({change, ARGV[4], id, string.format('%.0f', last_start)}, '|'))
record('received', '')
-- One lookup takes along all that have arrived: another message is needed only where none waits in the queue.
if ARGV[12] ~= '' then
  redis.call('RPUSH', KEYS[10], id)
  if redis.call('SET', KEYS[11], '1', 'NX', 'PX', ARGV[13]) then redis.call('LPUSH', KEYS[9], ARGV[12]) end
end
return 'new'
