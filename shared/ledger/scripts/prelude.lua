-- Precedes every script.
-- A script begins by naming its keys and arguments, in any order of its own: Python passes them by these names
-- (shared/ledger/lua_script.py). Arguments of which there may be any number follow the named ones.

local first_of_rest

-- Returns the named arguments of a script, as many as it has names for.
local function arguments(number)
  first_of_rest = number + 1
  return unpack(ARGV, 1, number)
end

-- Iterates over the arguments that follow the named ones, `size` at a time.
local function rest(size)
  local place = first_of_rest - size
  return function()
    place = place + size
    if place <= #ARGV then return unpack(ARGV, place, place + size - 1) end
  end
end

-- A piece of due work: an update, a digest and blocks have no event id.
local function work(kind, project, id) return kind .. '|' .. project .. '|' .. (id or '') end

-- A time in ms, as text without an exponent.
local function number(value) return string.format('%.0f', value) end

-- Sets an event's state, and lists the event by it. `lists` is the prefix of the lists. Events that were `updated` have
-- none, as most end so, nor have unfinished ones, which have a list of their own.
local function set_state(event, lists, id, state)
  local before = redis.call('HGET', event, 'state')
  if before and before ~= state then redis.call('ZREM', lists .. before, id) end
  redis.call('HSET', event, 'state', state)
  if state ~= 'updated' and state ~= 'received' then
    redis.call('ZADD', lists .. state, redis.call('HGET', event, 'received_ms'), id)
  end
end

-- An empty text takes no memory.
local function set_text(event, name, text)
  if text == '' then redis.call('HDEL', event, name) else redis.call('HSET', event, name, text) end
end

-- Returns the latest changes of a phone, a line per scope. A line of version 1 has no scope.
local function status_lines(status, phone)
  local lines = {}
  for line in string.gmatch(redis.call('HGET', status, phone) or '', '[^\n]+') do
    local s, c, o, i, l, f, p, e =
      string.match(line, '^([^|]*)|(%u+)|(%d+)|([^|]+)|(%d+)|(%d+)|(%d+)|([01])$')
    if not s then
      s, e = '', '0'
      c, o, i, l = string.match(line, '^(%u+)|(%d+)|([^|]+)|(%d+)$')
      f = c == 'STOP' and o or '0'
      p = f
    end
    lines[#lines + 1] = {scope = s, change = c, occurred = tonumber(o), id = i, start = tonumber(l),
      since = tonumber(f), stop = tonumber(p), exact = e == '1'}
  end
  return lines
end

