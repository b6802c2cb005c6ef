-- Counts what is waiting, of many projects in one round trip.
-- Returns per project: its name, events that have not ended, ms of the oldest, phones to be written, e-mails that are
--   due, changes that wait for a digest, events that wait for a decision, ms of the oldest, phones in the index, blocks
--   at Twilio that wait and that failed, and of the reconciliation: ms of the last success and failure, refused and
--   delivered texts, texts delivered although Twilio was asked to block, and the share of the log (text, or empty).
local projects, attempts = unpack(KEYS)
local prefix = arguments(1)  -- of all keys
-- Then the configured projects.

local names, seen = {}, {}
for name in rest(1) do names[#names + 1] = name end
for _, name in ipairs(redis.call('HKEYS', projects)) do names[#names + 1] = name end
local function key(kind, name) return prefix .. ':' .. kind .. ':' .. name end
local function count(kind, name) return redis.call('ZCARD', key(kind, name)) end
local function whole(text) return tonumber(text) or 0 end
local function oldest(kind, name, size)
  return size > 0 and whole(redis.call('ZRANGE', key(kind, name), 0, 0, 'WITHSCORES')[2]) or 0
end
local found = {}
for _, name in ipairs(names) do
  if not seen[name] then
    seen[name] = true
    local unfinished, reviews, gathered = count('unfinished', name), count('reviews', name), count('gathered', name)
    -- E-mails in a digest are due from sweep's first attempt on.
    local is_due = gathered > 0 and redis.call('HEXISTS', attempts, work('digest', name)) == 1
    local last = redis.call('HMGET', key('reconciled', name), 'success_ms', 'failure_ms', 'refused', 'delivered',
      'block_faults', 'log_covered')
    found[#found + 1] = {
      name, unfinished, oldest('unfinished', name, unfinished), count('pending', name),
      count('mailing', name) - (is_due and 0 or gathered), gathered, reviews, oldest('reviews', name, reviews),
      redis.call('HLEN', key('index', name) .. ':phones'), count('blocks-waiting', name), count('blocks-failed', name),
      whole(last[1]), whole(last[2]), whole(last[3]), whole(last[4]), whole(last[5]), last[6] or '',
    }
  end
end
return found
