-- Records one event, once, and makes it the latest change of its phone in its scope unless a newer one is known.
-- The rules are those of shared/domain/precedence.py; a property test compares the two.
-- Returns 'known', 'stale' (an older change: superseded), 'new', or 'ask': new, and the caller publishes a lookup.
local event, status, pending, unfinished, events, due, counts, intents, arrived,
  waiting_lookup,  -- exists while a lookup waits in the queue
  attempts,
  seen_starts,     -- all STARTs that were ever seen
  reviews
  = unpack(KEYS)
local project, id,
  change,            -- '' = unclear
  occurred_ms, received_ms,
  phone,             -- its hash; '' = none
  source, due_ms,
  order,             -- 'newest' or 'oldest': which of two changes in the same millisecond came last
  event_prefix,
  retention,         -- in seconds
  call,              -- name of this call; '' = the caller wants no lookup
  lookup_waits_ms,   -- for how long a lookup is believed to be in the queue
  scope,
  is_exact,          -- '1' if the time is exact
  is_blocked,        -- '1' if Twilio blocks further texts
  is_unconfirmed,    -- '1' if the time of a START has yet to be confirmed
  is_confirmation,   -- '1' if this confirms the time of a known START
  lists              -- prefix of the lists by state
  = arguments(19)
local occurred, received = tonumber(occurred_ms), tonumber(received_ms)
local newest_first, exact = order == 'oldest', is_exact == '1'
local lookup = work('lookup', project, id)

local function count(of_source, state)
  redis.call('HINCRBY', counts, project .. '|' .. of_source .. '|' .. state, 1)
end

local function write_lines(lines)
  local texts = {}
  for _, line in ipairs(lines) do
    texts[#texts + 1] = table.concat({line.scope, line.change, number(line.occurred), line.id, number(line.start),
      number(line.since), number(line.stop), line.exact and '1' or '0'}, '|')
  end
  redis.call('HSET', status, phone, table.concat(texts, '\n'))
end

local function line_of(lines, scope)
  for _, line in ipairs(lines) do
    if line.scope == scope then return line end
  end
end

local function start_ends_stop(start, stop)
  if start.exact and stop.exact then return start.occurred > stop.occurred end
  return math.floor(start.occurred / 1000) > math.floor(stop.occurred / 1000)
end

local function comes_after(new, old)
  if new.change == 'START' and old.change == 'STOP' then return start_ends_stop(new, old) end
  if new.change == 'STOP' and old.change == 'START' then return not start_ends_stop(old, new) end
  return new.occurred > old.occurred or (new.occurred == old.occurred and not newest_first)
end

-- `old` becomes what `new` makes of it.
local function replace(old, new)
  if new.change == 'START' then
    old.start = math.max(new.occurred, old.start)
  else
    local in_force = old.change == 'STOP' and old.since > 0
    old.since = in_force and math.min(old.since, new.occurred) or new.occurred
    old.start = math.min(old.start, new.occurred)
    old.stop = new.occurred
  end
  old.change, old.occurred, old.id, old.exact = new.change, new.occurred, new.id, new.exact
end

-- A change that is older than `old`. Returns whether what REDCap has to show changes.
local function add_older(old, late)
  if late.change == 'START' then
    if old.change == 'START' or late.occurred <= old.start then return false end
    old.start = late.occurred
    if old.since <= late.occurred then old.since = old.occurred end
    return true
  end
  if old.change == 'STOP' then
    if late.occurred <= old.start or late.occurred >= old.since then return false end
    old.since = late.occurred
    return true
  end
  if old.since == 0 then old.since = late.occurred end
  old.stop = math.max(old.stop, late.occurred)
  return false
end

local function record(state, reason)
  local first_received = redis.call('HGET', event, 'received_ms')
  if first_received then redis.call('HSETNX', event, 'arrived_ms', first_received) end
  redis.call('HSET', event, 'change', change, 'occurred_ms', occurred_ms, 'received_ms', received_ms, 'phone', phone,
    'source', source, 'scope', scope)
  set_text(event, 'blocked', is_blocked == '1' and '1' or '')
  set_state(event, lists, id, state)
  set_text(event, 'reason', reason)
  redis.call('ZADD', events, received, id)
  if state == 'received' then
    redis.call('ZADD', unfinished, received, id)
    redis.call('ZADD', due, due_ms, lookup)
  else
    redis.call('HSET', event, 'finished_ms', received_ms)
    redis.call('EXPIRE', event, retention)
    count(source, state)
  end
end

local function end_superseded(old, reason)
  local key = event_prefix .. old
  set_state(key, lists, old, 'superseded')
  redis.call('HSET', key, 'reason', reason, 'finished_ms', received_ms)
  redis.call('EXPIRE', key, retention)
  redis.call('ZREM', unfinished, old)
  redis.call('ZREM', due, work('lookup', project, old))
  redis.call('HDEL', attempts, work('lookup', project, old))
  count(redis.call('HGET', key, 'source'), 'superseded')
end

-- An unfinished event that is overtaken ends here, unless its write may already have reached REDCap
-- (an intent is open): then the updater checks first.
local function supersede(old)
  local state = redis.call('HGET', event_prefix .. old, 'state')
  if (state == 'received' or state == 'pending') and redis.call('HGET', intents, phone) ~= old then
    end_superseded(old, 'overtaken by ' .. id)
  end
end

local function request_update()
  redis.call('ZADD', pending, received, phone)
  redis.call('ZADD', due, due_ms, work('update', project))
end

-- Makes `new` the latest change of its scope. Returns nil if it is, else the line of a newer change.
local function apply(new, of_scope, comes_now)
  local lines = status_lines(status, phone)
  local line = line_of(lines, of_scope)
  if not line then
    local stop = new.change == 'STOP' and new.occurred or 0
    lines[#lines + 1] = {scope = of_scope, change = new.change, occurred = new.occurred, id = new.id,
      start = new.change == 'START' and new.occurred or 0, since = stop, stop = stop, exact = new.exact}
  elseif line.id == new.id then
    return line
  elseif comes_now or comes_after(new, line) then
    supersede(line.id)
    replace(line, new)
  else
    if add_older(line, new) then request_update() end
    write_lines(lines)
    return line
  end
  write_lines(lines)
end

-- Only Twilio knows when a START was sent that came by webhook.
local function confirm(known_scope, time, time_exact)
  redis.call('HSET', event, 'timed', '1', 'occurred_ms', number(time))
  local newer = apply({change = change, occurred = time, id = id, exact = time_exact}, known_scope, false)
  if newer and newer.id ~= id then
    end_superseded(id, 'older than ' .. newer.id)
    return 'stale'
  end
  return 'new'
end

-- Only the message log has Twilio's time of a webhook (the time of receipt includes retries and clock error), so it
-- may correct the stored time and the order of changes.
local function corrected()
  local known = redis.call('HMGET', event, 'source', 'occurred_ms', 'state', 'timed', 'scope', 'change')
  if known[1] == 'blocked_message' or known[1] == 'staff' or known[6] ~= change then return 'known' end
  local from_events, known_scope = known[1] == 'event_stream', known[5] or ''
  local time, time_exact = from_events and tonumber(known[2]) or occurred, from_events or exact
  local is_unfinished = known[3] == 'received' or known[3] == 'pending'
  if change == 'START' and known[1] == 'webhook' and not known[4] then
    return is_unfinished and confirm(known_scope, time, time_exact) or 'known'
  end
  local lines = status_lines(status, phone)
  local line = line_of(lines, known_scope)
  if not line then return 'known' end
  if line.id == id then
    if known[1] == 'webhook' and change == 'STOP' then
      if line.since == line.occurred then line.since = time end
      line.occurred, line.stop = time, time
      write_lines(lines)
    end
    return 'known'
  end
  -- A START that was handled never counts again; one that was only overtaken by a wrong time was not handled.
  if change == 'START' and known[3] ~= 'superseded' then return 'known' end
  local new = {change = change, occurred = time, id = id, exact = time_exact}
  if not comes_after(new, line) then return 'known' end
  supersede(line.id)
  replace(line, new)
  write_lines(lines)
  redis.call('PERSIST', event)
  redis.call('HDEL', event, 'finished_ms')
  record('received', '')
  redis.call('HSET', event, 'scope', known_scope, 'timed', '1')
  return 'new'
end

local stored_change = redis.call('HGET', event, 'change')
if stored_change and (stored_change ~= '' or change == '') then
  -- The same call again: its connection was lost before the answer came.
  if call ~= '' and redis.call('GET', waiting_lookup) == call then return 'ask' end
  if (newest_first or is_confirmation == '1') and phone ~= '' and change ~= '' then return corrected() end
  return 'known'
end
if stored_change then  -- what was unclear is decided now
  redis.call('PERSIST', event)
  redis.call('HDEL', event, 'finished_ms', 'notice')
  redis.call('ZREM', reviews, id)
elseif change == 'START' then
  -- A request that is repeated after its event's retention is not a new wish.
  if redis.call('ZADD', seen_starts, 'NX', received, id) == 0 then return 'known' end
end

local unconfirmed = is_unconfirmed == '1'
if phone ~= '' and change ~= '' and not unconfirmed then
  -- A webhook comes now: after all that is known, even if our clock was set back or another host's is ahead. Not so a
  -- START: if in doubt, the opt-out stays.
  local comes_now = source == 'webhook' and occurred == received and change == 'STOP'
  local newer = apply({change = change, occurred = occurred, id = id, exact = exact}, scope, comes_now)
  if newer and newer.id == id then return 'known' end
  if newer then
    record('superseded', 'older than ' .. newer.id)
    return 'stale'
  end
end
record('received', '')
if call == '' then return 'new' end
-- One lookup includes all that have arrived: another message is needed only if none waits in the queue.
redis.call('RPUSH', arrived, id)
if not redis.call('SET', waiting_lookup, call, 'NX', 'PX', lookup_waits_ms) then return 'new' end
-- Sweep finds it soon if the caller ends before it has published, or cannot publish.
redis.call('ZADD', due, received + lookup_waits_ms, lookup)
return 'ask'
