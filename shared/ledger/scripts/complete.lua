-- Ends an event, and requests its e-mail or, if the project collects its mails, the digest.
-- KEYS: 1 event, 2 unfinished, 3 due, 4 counts, 5 intents, 6 mailing, 7 attempts, 8 gathered, 9 reviews,
--       10 changes by day, 11 latencies by week, 12 failures, 13 blocks that wait, 14 prefix of the lists by state
-- ARGV: 1 project, 2 event id, 3 phone hash, 4 state, 5 reason, 6 record ids (JSON), 7 notice ('' = none),
--       8 now ms, 9 due ms, 10 retention in seconds, 11 for how many ms notices are gathered (0 = not),
--       12 the records that were written, a line each, 13 the study's offset from UTC in ms ('' = a test, not counted),
--       14 for how many days changes are counted, 15 for how many weeks latencies are,
--       16 '1' if Twilio may have to be asked to block or unblock, 17 … the upper bounds of latencies in ms
-- Returns the notice whose e-mail is due by itself now, or ''; 'block' if Twilio is asked first, and sweep mails if
-- that takes too long.
local project, id, phone, state, notice = ARGV[1], ARGV[2], ARGV[3], ARGV[4], ARGV[7]
if redis.call('HGET', KEYS[5], phone) == id then redis.call('HDEL', KEYS[5], phone) end
redis.call('ZREM', KEYS[2], id)
redis.call('ZREM', KEYS[3], 'lookup|' .. project .. '|' .. id)
redis.call('HDEL', KEYS[7], 'lookup|' .. project .. '|' .. id)
local before = redis.call('HMGET', KEYS[1], 'state', 'source', 'noticed', 'records', 'notice', 'mailed')
if not before[1] then return '' end  -- the event's retention is over; only its status lives on
-- Finding REDCap as an earlier write left it does not undo that write.
if before[1] == 'updated' and state == 'already_current' then return '' end
if before[1] ~= state then
  redis.call('HINCRBY', KEYS[4], project .. '|' .. before[2] .. '|' .. state, 1)
end
if state == 'needs_review' then
  redis.call('ZADD', KEYS[9], 'NX', ARGV[8], id)
else
  redis.call('ZREM', KEYS[9], id)
end
set_state(KEYS[1], KEYS[14], id, state)
set_text(KEYS[1], 'reason', ARGV[5])
redis.call('HSET', KEYS[1], 'records', ARGV[6], 'finished_ms', ARGV[8])
redis.call('EXPIRE', KEYS[1], ARGV[10])

-- Adds one to a count of a day or week. With a new one, those that are too old go.
local function count(key, slot, name, oldest, seconds)
  if slot < oldest or redis.call('HINCRBY', key, string.format('%.0f|%s', slot, name), 1) > 1 then return end
  for _, field in ipairs(redis.call('HKEYS', key)) do
    if tonumber(string.match(field, '^%d+')) < oldest then redis.call('HDEL', key, field) end
  end
  redis.call('EXPIRE', key, seconds)
end

local DAY_MS, DAY_SECONDS = 86400000, 86400
local function week_of(day) return math.floor((day + 3) / 7) end  -- 1970-01-01 was a Thursday

local function bound_of(latency)
  for place = 17, #ARGV do
    if latency <= tonumber(ARGV[place]) then return ARGV[place] end
  end
  return 'more'
end

-- Once per event, whatever is replayed later.
if state == 'updated' and redis.call('HSETNX', KEYS[1], 'written_ms', ARGV[8]) == 1 and ARGV[13] ~= '' then
  local event = redis.call('HMGET', KEYS[1], 'change', 'occurred_ms')
  local day = math.floor((event[2] + ARGV[13]) / DAY_MS)
  local today = math.floor((ARGV[8] + ARGV[13]) / DAY_MS)
  count(KEYS[10], day, event[1], today - ARGV[14] + 1, ARGV[14] * DAY_SECONDS)
  if before[2] ~= 'staff' then
    local bound = bound_of(ARGV[8] - event[2])
    count(KEYS[11], week_of(day), bound, week_of(today) - ARGV[15] + 1, ARGV[15] * 7 * DAY_SECONDS)
  end
end
-- What is not in REDCap, until a later event of the same participant is.
local participant = phone ~= '' and phone or id
if state == 'failed' then
  redis.call('HSET', KEYS[12], participant, id)
elseif state == 'updated' or state == 'already_current' or redis.call('HGET', KEYS[12], participant) == id then
  redis.call('HDEL', KEYS[12], participant)
end
-- Twilio blocks by itself what it flagged as an opt-out. It is asked to unblock only if a person asked for that.
local asks_twilio = false
if ARGV[16] == '1' then
  local known = redis.call('HMGET', KEYS[1], 'change', 'blocked', 'block', 'unblock')
  local wanted = (known[1] == 'STOP' and known[2] ~= '1') or (known[1] == 'START' and known[4] == '1'
    and (state == 'updated' or state == 'already_current'))
  if wanted and (not known[3] or known[3] == 'failed' or known[3] == 'not_needed') then
    asks_twilio = true
    redis.call('HSET', KEYS[1], 'block', 'waiting', 'block_reason', '')
    redis.call('ZADD', KEYS[13], 'NX', ARGV[8], id)
    redis.call('ZADD', KEYS[3], 'NX', ARGV[9], 'block|' .. project .. '|')
  end
end
-- A mail about saved changes names every record that was written: one that follows later has a further mail.
local mailed, further = {}, false
for record in string.gmatch(before[6] or '', '[^\n]+') do mailed[record] = true end
for record in string.gmatch(ARGV[12], '[^\n]+') do
  if not mailed[record] then
    further = true
    mailed[record] = true
    before[6] = (before[6] or '') .. record .. '\n'
  end
end
if further then redis.call('HSET', KEYS[1], 'mailed', before[6]) end
-- Each kind of notice is given once per event: a later correction by the reconciliation is not a second change.
-- Whole words are compared: "saved" is also the end of "unsaved".
local noticed = string.find(' ' .. (before[3] or ''), ' ' .. notice .. ' ', 1, true)
if notice == '' or (noticed and not (notice == 'saved' and further)) then return asks_twilio and 'block' or '' end
-- A mail that is being sent now, or has reached some recipients, is another one than that about further records.
if further or before[5] ~= notice then redis.call('HINCRBY', KEYS[1], 'notice_number', 1) end
redis.call('HSET', KEYS[1], 'notice', notice, 'notice_ms', ARGV[8])
redis.call('PERSIST', KEYS[1])
redis.call('ZADD', KEYS[6], ARGV[8], id)
if tonumber(ARGV[11]) > 0 then
  redis.call('ZADD', KEYS[8], ARGV[8], id)
  redis.call('ZADD', KEYS[3], 'NX', string.format('%.0f', ARGV[8] + ARGV[11]), 'digest|' .. project .. '|')
  return asks_twilio and 'block' or ''
end
redis.call('ZADD', KEYS[3], ARGV[9], 'email|' .. project .. '|' .. id)
return asks_twilio and 'block' or notice
