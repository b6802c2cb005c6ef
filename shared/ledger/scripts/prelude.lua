-- Precedes every script.

-- Sets an event's state, and lists the event by it. `index` is the prefix of the lists. Events that were `updated` have
-- none, as most end so, nor have unfinished ones, which have a list of their own.
local function set_state(event, index, id, state)
  local before = redis.call('HGET', event, 'state')
  if before and before ~= state then redis.call('ZREM', index .. before, id) end
  redis.call('HSET', event, 'state', state)
  if state ~= 'updated' and state ~= 'received' then
    redis.call('ZADD', index .. state, redis.call('HGET', event, 'received_ms'), id)
  end
end

-- An empty text takes no memory.
local function set_text(event, name, text)
  if text == '' then redis.call('HDEL', event, name) else redis.call('HSET', event, name, text) end
end

