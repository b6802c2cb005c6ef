-- Replaces statuses, each only if nobody has changed it in the meantime.
local statuses = unpack(KEYS)
-- The arguments are per phone: its hash, the old and the new text.
arguments(0)

for phone, old, new in rest(3) do
  if redis.call('HGET', statuses, phone) == old then redis.call('HSET', statuses, phone, new) end
end
