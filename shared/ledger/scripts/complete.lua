-- Ends an event, and requests its e-mail or, if the project collects its mails, the digest.
-- Returns the notice whose e-mail is due by itself now, or ''; 'block' if Twilio is asked first, and sweep mails if
-- that takes too long.
local event, unfinished, due, counts, intents, mailing, attempts, gathered, reviews,
  change_counts,  -- by day
  latencies,      -- by week
  failures, blocks_waiting
  = unpack(KEYS)
local project, id, phone, state, reason,
  records,         -- JSON
  notice,          -- '' = none
  now_ms, due_ms,
  retention,       -- in seconds
  gather_ms,       -- for how long notices are gathered; 0 = not
  written,         -- the records that were written, a line each
  offset_ms,       -- of the study from UTC; '' = a test, which is not counted
  days_counted, weeks_counted,
  may_ask_twilio,  -- '1' if Twilio may have to be asked to block or unblock
  lists            -- prefix of the lists by state
  = arguments(17)
-- Then the upper bounds of latencies in ms.

if redis.call('HGET', intents, phone) == id then redis.call('HDEL', intents, phone) end
redis.call('ZREM', unfinished, id)
redis.call('ZREM', due, work('lookup', project, id))
redis.call('HDEL', attempts, work('lookup', project, id))
local before = redis.call('HMGET', event, 'state', 'source', 'noticed', 'records', 'notice', 'mailed')
if not before[1] then return '' end  -- the event's retention is over; only its status lives on
-- Finding REDCap as an earlier write left it does not undo that write.
if before[1] == 'updated' and state == 'already_current' then return '' end
if before[1] ~= state then
  redis.call('HINCRBY', counts, project .. '|' .. before[2] .. '|' .. state, 1)
end
if state == 'needs_review' then
  redis.call('ZADD', reviews, 'NX', now_ms, id)
else
  redis.call('ZREM', reviews, id)
end
set_state(event, lists, id, state)
set_text(event, 'reason', reason)
redis.call('HSET', event, 'records', records, 'finished_ms', now_ms)
redis.call('EXPIRE', event, retention)

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
  for bound in rest(1) do
    if latency <= tonumber(bound) then return bound end
  end
  return 'more'
end

-- Once per event, whatever is replayed later.
if state == 'updated' and redis.call('HSETNX', event, 'written_ms', now_ms) == 1 and offset_ms ~= '' then
  local text = redis.call('HMGET', event, 'change', 'occurred_ms')
  local day = math.floor((text[2] + offset_ms) / DAY_MS)
  local today = math.floor((now_ms + offset_ms) / DAY_MS)
  count(change_counts, day, text[1], today - days_counted + 1, days_counted * DAY_SECONDS)
  if before[2] ~= 'staff' then
    local bound = bound_of(now_ms - text[2])
    count(latencies, week_of(day), bound, week_of(today) - weeks_counted + 1, weeks_counted * 7 * DAY_SECONDS)
  end
end
-- What is not in REDCap, until a later event of the same participant is.
local participant = phone ~= '' and phone or id
if state == 'failed' then
  redis.call('HSET', failures, participant, id)
elseif state == 'updated' or state == 'already_current' or redis.call('HGET', failures, participant) == id then
  redis.call('HDEL', failures, participant)
end
-- Twilio blocks by itself what it flagged as an opt-out. It is asked to unblock only if a person asked for that.
local asks_twilio = false
if may_ask_twilio == '1' then
  local known = redis.call('HMGET', event, 'change', 'blocked', 'block', 'unblock')
  local wanted = (known[1] == 'STOP' and known[2] ~= '1') or (known[1] == 'START' and known[4] == '1'
    and (state == 'updated' or state == 'already_current'))
  if wanted and (not known[3] or known[3] == 'failed' or known[3] == 'not_needed') then
    asks_twilio = true
    redis.call('HSET', event, 'block', 'waiting', 'block_reason', '')
    redis.call('ZADD', blocks_waiting, 'NX', now_ms, id)
    redis.call('ZADD', due, 'NX', due_ms, work('block', project))
  end
end
-- A mail about saved changes names every record that was written: one that follows later has a further mail.
local mailed, further = {}, false
for record in string.gmatch(before[6] or '', '[^\n]+') do mailed[record] = true end
for record in string.gmatch(written, '[^\n]+') do
  if not mailed[record] then
    further = true
    mailed[record] = true
    before[6] = (before[6] or '') .. record .. '\n'
  end
end
if further then redis.call('HSET', event, 'mailed', before[6]) end
-- Each kind of notice is given once per event: a later correction by the reconciliation is not a second change.
-- Whole words are compared: "saved" is also the end of "unsaved".
local noticed = string.find(' ' .. (before[3] or ''), ' ' .. notice .. ' ', 1, true)
if notice == '' or (noticed and not (notice == 'saved' and further)) then return asks_twilio and 'block' or '' end
-- A mail that is being sent now, or has reached some recipients, is another one than that about further records.
if further or before[5] ~= notice then redis.call('HINCRBY', event, 'notice_number', 1) end
redis.call('HSET', event, 'notice', notice, 'notice_ms', now_ms)
redis.call('PERSIST', event)
redis.call('ZADD', mailing, now_ms, id)
if tonumber(gather_ms) > 0 then
  redis.call('ZADD', gathered, now_ms, id)
  redis.call('ZADD', due, 'NX', number(now_ms + gather_ms), work('digest', project))
  return asks_twilio and 'block' or ''
end
redis.call('ZADD', due, due_ms, work('email', project, id))
return asks_twilio and 'block' or notice
