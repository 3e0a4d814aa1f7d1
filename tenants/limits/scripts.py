"""What Redis decides by itself, by its own clock.

Rates are GCRA, one theoretical arrival time (TAT) a bucket; places are a sorted set by expiry. A bucket that Redis does not
know is full, unless it has forgotten everything (`limit:born`) less than a burst ago: then it is empty.
"""

BORN = "limit:born"

# KEYS: born, then for each call its rates' buckets and its places, in the order of the arguments.
# ARGV: calls, then for each: id, milliseconds to live, rates, places; per rate: refill a minute, burst, cost, shadow;
# per place: limit, shadow.
# Answers per call: {what, which, wait in microseconds, {shadows that would have refused}, {left, microseconds until full, …}}
# where what is 0 passes, 1 later, 2 never, 3 no place.
TAKE = """
local t = redis.call('TIME')
local now, minute = t[1] * 1000000 + t[2], 60000000
local born = tonumber(redis.call('GET', KEYS[1]))
if not born then
  born = now
  redis.call('SET', KEYS[1], string.format('%.0f', now))
end
local k, a, out = 2, 2, {}
for call = 1, tonumber(ARGV[1]) do
  local id, ttl, rates, places = ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), tonumber(ARGV[a + 3])
  a = a + 4
  local what, which, wait, shadows, left = 0, 0, 0, {}, {}
  local tats, limits, bursts, skipped = {}, {}, {}, {}
  for i = 1, rates do
    local limit, burst, cost = tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
    local is_shadow = ARGV[a + 3] == '1'
    a = a + 4
    local room = burst * minute / limit
    local tat = tonumber(redis.call('GET', KEYS[k + i - 1]))
    if not tat then tat = (now - born < room) and (born + room) or now end
    if tat < now then tat = now end
    limits[i], bursts[i], left[i] = limit, room, tat
    tats[i] = tat + cost * minute / limit
    local late = tats[i] - room - now
    if cost > burst or late > 0 then
      if is_shadow then
        shadows[#shadows + 1], skipped[i] = i, true
      elseif cost > burst then
        what, which, wait = 2, i, 0
      elseif what ~= 2 and late > wait then
        what, which, wait = 1, i, math.ceil(late)
      end
    end
  end
  for i = 1, places do
    local limit, is_shadow, key = tonumber(ARGV[a]), ARGV[a + 1] == '1', KEYS[k + rates + i - 1]
    a = a + 2
    redis.call('ZREMRANGEBYSCORE', key, '-inf', now)
    if redis.call('ZCARD', key) >= limit then
      if is_shadow then
        shadows[#shadows + 1], skipped[rates + i] = rates + i, true
      elseif what == 0 then
        what, which, wait = 3, rates + i, 1000000
      end
    end
  end
  if what == 0 then
    for i = 1, rates do
      if not skipped[i] then
        left[i] = tats[i]
        redis.call('SET', KEYS[k + i - 1], string.format('%.0f', tats[i]), 'PX', math.ceil((tats[i] - now) / 1000) + 1000)
      end
    end
    for i = 1, places do
      local key = KEYS[k + rates + i - 1]
      if not skipped[rates + i] then
        redis.call('ZADD', key, string.format('%.0f', now + ttl * 1000), id)
        redis.call('PEXPIRE', key, ttl)
      end
    end
  else
    shadows = {}
  end
  local told = {}
  for i = 1, rates do
    told[2 * i - 1] = math.max(math.floor((bursts[i] - (left[i] - now)) * limits[i] / minute + 0.000001), 0)
    told[2 * i] = math.ceil(left[i] - now)
  end
  out[call] = {what, which, wait, shadows, told}
  k = k + rates + places
end
return out
"""

# How long ago a call was let pass that this Redis does not know of. KEYS: born. ARGV: seconds.
BEGIN = """
local t = redis.call('TIME')
redis.call('SET', KEYS[1], string.format('%.0f', t[1] * 1000000 + t[2] - tonumber(ARGV[1]) * 1000000), 'NX')
"""

# KEYS: born, then for each call: its word that it was corrected, its rates' buckets, its places.
# ARGV: calls, then for each: id, rates, places, seconds to remember; per rate: refill a minute, burst, difference in tokens.
# Places are given back as often as asked, a rate is corrected once. What Redis has forgotten is never corrected to be looser.
GIVE_BACK = """
local t = redis.call('TIME')
local now, minute = t[1] * 1000000 + t[2], 60000000
local born = tonumber(redis.call('GET', KEYS[1])) or now
local k, a = 2, 2
for call = 1, tonumber(ARGV[1]) do
  local id, rates, places, remember = ARGV[a], tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), ARGV[a + 3]
  a = a + 4
  local once = rates > 0 and redis.call('SET', KEYS[k], '1', 'NX', 'EX', remember)
  for i = 1, rates do
    local limit, burst, difference = tonumber(ARGV[a]), tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2])
    local key = KEYS[k + i]
    a = a + 3
    local tat = tonumber(redis.call('GET', key))
    if once and (tat or difference > 0) then
      local room = burst * minute / limit
      if not tat then tat = (now - born < room) and (born + room) or now end
      if tat < now then tat = now end
      tat = tat + difference * minute / limit
      if tat <= now then
        redis.call('SET', key, string.format('%.0f', now), 'PX', 1000)
      else
        redis.call('SET', key, string.format('%.0f', tat), 'PX', math.ceil((tat - now) / 1000) + 1000)
      end
    end
  end
  for i = 1, places do redis.call('ZREM', KEYS[k + rates + i], id) end
  k = k + 1 + rates + places
end
"""
