-- Sets the phones of records in the index. A phone that is new to a record and has a known status is added to the
-- pending set: a record that was added or renumbered after its participant opted out receives the status without further
-- action. A record that comes twice in one generation (its rows stood apart in the export) keeps the phones of both.
-- What an export that began later has said about a record takes precedence: the reconciliation's may be read for
-- minutes, while a lookup's refresh ends. No generation means not an export, but certain knowledge: it always applies.
-- An entry is the generation (shared/ledger/generations.py), directly followed by the phones, a line each.
-- Returns the number of phones that were added to the pending set.
local phones_index, records_index, statuses, pending, due,
  since  -- since when a phone that was added later is known
  = unpack(KEYS)
local project, generation, now_ms, due_ms,
  believed_ms,   -- by how many ms a later export is believed to be later
  was_complete,  -- '1' if the index was complete before, so that a phone that is new now was added since
  length, digits, period_ms  -- of generations
  = arguments(9)
-- Then per record: its id, and its phones, a line each.

local found = 0

local function without(ids, id)
  local kept = {}
  for other in string.gmatch(ids, '[^\n]+') do
    if other ~= id then kept[#kept + 1] = other end
  end
  return table.concat(kept, '\n')
end

-- The record gained a phone.
local function add(phone, id)
  local others = without(redis.call('HGET', phones_index, phone) or '', id)
  redis.call('HSET', phones_index, phone, others == '' and id or others .. '\n' .. id)
  if was_complete == '1' then redis.call('HSET', since, phone .. '|' .. id, now_ms) end
  if redis.call('HEXISTS', statuses, phone) == 1 then
    found = found + redis.call('ZADD', pending, 'NX', now_ms, phone)
  end
end

-- The record lost a phone.
local function remove(phone, id)
  redis.call('HDEL', since, phone .. '|' .. id)
  local left = without(redis.call('HGET', phones_index, phone) or '', id)
  if left == '' then redis.call('HDEL', phones_index, phone) else redis.call('HSET', phones_index, phone, left) end
end

local milliseconds = {}  -- of generations: most records have the same
local function milliseconds_of(text)
  if not milliseconds[text] then
    local sum = 0
    for digit in string.gmatch(text, '.') do sum = sum * #digits + string.find(digits, digit, 1, true) - 1 end
    milliseconds[text] = sum
  end
  return milliseconds[text]
end

-- A generation that is earlier seems to be later by years.
local function is_newer(known)
  local later = (milliseconds_of(known) - milliseconds_of(generation)) % period_ms
  return later > 0 and later <= tonumber(believed_ms)
end

local function put(id, held)
  local old, phones, before, seen = redis.call('HGET', records_index, id) or '', {}, {}, {}
  local known = string.sub(old, 1, length)
  if known ~= '' and generation ~= '' and is_newer(known) then return end
  for phone in string.gmatch(string.sub(old, length + 1), '[^\n]+') do
    if known == generation then
      phones[#phones + 1] = phone
      seen[phone] = true
    else
      before[phone] = true
    end
  end
  for phone in string.gmatch(held, '[^\n]+') do
    if not seen[phone] then
      seen[phone] = true
      phones[#phones + 1] = phone
      if before[phone] then before[phone] = nil else add(phone, id) end
    end
  end
  for phone in pairs(before) do remove(phone, id) end
  if #phones == 0 then
    redis.call('HDEL', records_index, id)
  else
    redis.call('HSET', records_index, id, generation .. table.concat(phones, '\n'))
  end
end

for id, held in rest(2) do put(id, held) end
if found > 0 then redis.call('ZADD', due, 'NX', due_ms, work('update', project)) end
return found
