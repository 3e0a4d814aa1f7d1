"""The scripts by which all workers share in Redis what is left of a credential's limits; `headroom` runs them.

TELL notes what a reply told, ASK lets through as many of those who ask as what is left allows. Each answers with a view of
{requests left, their limit, full in ms, tokens left, their limit, full in ms, closed for ms, paced for ms}; -1 is not known.
"""

TIGHT_SHARE = 0.2
TIGHT_REQUESTS = 20

# State of a lane, times in ms: r, rl, rx (requests left, their limit or 0, when full), t, tl, tx (tokens), rn, tn (when the
# next may go), ru, tu (when one more has flowed back), b (closed until), p, pn, pu (ms between two calls, the next, until), the
# own buckets or, ora, ot, ota; v (virtual time), o (grants whose reply has not come).
_COMMON = """
local time = redis.call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
local s = {}
local raw = redis.call('HGETALL', KEYS[1])
for i = 1, #raw, 2 do s[raw[i]] = tonumber(raw[i + 1]) end
for _, d in ipairs({'r', 't'}) do
  if s[d] and now >= s[d .. 'x'] then
    s[d], s[d .. 'n'], s[d .. 'u'] = nil, nil, nil
    if d == 'r' then s.o = 0 end
  end
end
local function save()
  local flat = {}
  for k, v in pairs(s) do flat[#flat + 1] = k; flat[#flat + 1] = string.format('%.3f', v) end
  redis.call('DEL', KEYS[1])
  if #flat > 0 then redis.call('HSET', KEYS[1], unpack(flat)) end
  redis.call('PEXPIRE', KEYS[1], math.max(120000, (s.rx or 0) - now, (s.tx or 0) - now, (s.b or 0) - now))
end
local function view()
  local out = {}
  for i, k in ipairs({'r', 'rl', 'rx', 't', 'tl', 'tx', 'b', 'pu'}) do
    local v = s[k] or -1
    if v >= 0 and (k == 'rx' or k == 'tx' or k == 'b' or k == 'pu') then v = math.max(v - now, 0) end
    out[i] = math.floor(v)
  end
  return out
end
"""

# ARGV: was granted (1 or 0), left, limit, full in ms of requests, then of tokens ('' is not told), closed for ms, is a 429.
TELL = (
    _COMMON
    + """
if ARGV[1] == '1' then s.o = math.max((s.o or 0) - 1, 0) end
local a = 2
for _, d in ipairs({'r', 't'}) do
  if ARGV[a] ~= '' then
    local told = tonumber(ARGV[a])
    local level = told
    if d == 'r' then level = told - (s.o or 0) end
    if s[d] then level = math.max(level, math.min(s[d], told)) end
    s[d], s[d .. 'l'], s[d .. 'x'] = math.max(level, 0), tonumber(ARGV[a + 1]), now + tonumber(ARGV[a + 2])
    if s[d] >= 1 then s[d .. 'u'] = nil end
  end
  a = a + 3
end
if ARGV[9] == '1' then
  s.b = math.max(s.b or 0, now + tonumber(ARGV[8]))
  s.p = math.min(math.max(2 * (((s.pu or 0) > now) and s.p or 0), 100), 1000)
  s.pu = s.b + 10000
end
save()
return view()
"""
)

# ARGV: own rpm, tpm, concurrency (0 is none), ms that a place is kept, then tenant, call and tokens of each that asks.
# KEYS: state, virtual times by tenant, who waits, places. Answers {ms to wait, how many were granted, their calls …, view}.
ASK = (
    (
        _COMMON
        + """
local rpm, tpm, places, ttl = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3]), tonumber(ARGV[4])
local function own(name, per_minute)
  local cap = math.max(1, math.floor(per_minute / 10))
  local rate = (per_minute >= 10 and per_minute - cap or per_minute) / 60000
  local left = s[name] and math.min(cap, s[name] + (now - s[name .. 'a']) * rate) or 1
  s[name], s[name .. 'a'] = left, now
  return cap, rate
end
local rcap, rrate, tcap, trate
if rpm > 0 then rcap, rrate = own('or', rpm) end
if tpm > 0 then tcap, trate = own('ot', tpm) if not s.otb then s.ot, s.otb = tcap, 1 end end
if places > 0 then redis.call('ZREMRANGEBYSCORE', KEYS[4], '-inf', now) end
redis.call('ZREMRANGEBYSCORE', KEYS[3], '-inf', now)

local queues, names = {}, {}
for i = 5, #ARGV, 3 do
  local tenant = ARGV[i]
  if not queues[tenant] then queues[tenant] = {}; names[#names + 1] = tenant end
  table.insert(queues[tenant], {ARGV[i + 1], tonumber(ARGV[i + 2])})
end
local vt = {}
local function virtual(tenant)
  if not vt[tenant] then vt[tenant] = math.max(tonumber(redis.call('HGET', KEYS[2], tenant) or 0), s.v or 0) end
  return vt[tenant]
end
for _, tenant in ipairs(names) do redis.call('ZADD', KEYS[3], now + 1500, tenant) end
local others = {}
for _, tenant in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do
  if not queues[tenant] then others[#others + 1] = virtual(tenant) end
end

-- How long the head must wait for a level that a provider told.
local function wait_for(d, need, few)
  local left, limit, full = s[d], s[d .. 'l'] or 0, s[d .. 'x']
  if not left then return 0 end
  if left < need then
    if not s[d .. 'u'] then
      local whole = full - now
      s[d .. 'u'] = now + ((limit > left) and math.min((need - left) * whole / (limit - left), whole) or whole)
    end
    if now < s[d .. 'u'] then return s[d .. 'u'] - now end
    s[d], s[d .. 'u'] = need, nil
  end
  return math.max((s[d .. 'n'] or 0) - now, 0)
end
local function spend(d, need, few)
  local left, limit = s[d], s[d .. 'l'] or 0
  if not left then return end
  if left <= math.max(limit * SHARE, few) then
    s[d .. 'n'] = now + (s[d .. 'x'] - now) * need / math.max(left, need)
  end
  s[d] = left - need
end

local granted, wait = {}, 0
while #names > 0 do
  local best
  for i, tenant in ipairs(names) do
    if not best or virtual(tenant) < virtual(names[best]) then best = i end
  end
  local tenant = names[best]
  local head = queues[tenant][1]
  local need = head[2]
  wait = math.max((s.b or 0) - now, 0)
  if (s.pu or 0) > now then wait = math.max(wait, (s.pn or 0) - now) end
  local tokens = need
  if (s.tl or 0) > 0 then tokens = math.min(need, s.tl) end
  wait = math.max(wait, wait_for('r', 1), wait_for('t', tokens))
  if rpm > 0 and s['or'] < 1 then wait = math.max(wait, (1 - s['or']) / rrate) end
  if tpm > 0 and s.ot < math.min(need, tcap) then wait = math.max(wait, (math.min(need, tcap) - s.ot) / trate) end
  if places > 0 and redis.call('ZCARD', KEYS[4]) >= places then wait = math.max(wait, 100) end
  if wait > 0 then break end
  local turn = true
  for _, v in ipairs(others) do if v < virtual(tenant) then turn = false end end
  if not turn then wait = 50 break end
  spend('r', 1, FEW)
  spend('t', tokens, FEW * need)
  if rpm > 0 then s['or'] = s['or'] - 1 end
  if tpm > 0 then s.ot = s.ot - need end
  if places > 0 then redis.call('ZADD', KEYS[4], now + ttl, head[1]); redis.call('PEXPIRE', KEYS[4], ttl) end
  if (s.pu or 0) > now then s.pn = now + s.p end
  s.v = virtual(tenant)
  vt[tenant] = vt[tenant] + 1
  redis.call('HSET', KEYS[2], tenant, string.format('%.0f', vt[tenant]))
  redis.call('PEXPIRE', KEYS[2], 120000)
  s.o = (s.o or 0) + 1
  granted[#granted + 1] = head[1]
  table.remove(queues[tenant], 1)
  if #queues[tenant] == 0 then
    table.remove(names, best)
    redis.call('ZREM', KEYS[3], tenant)
  end
end
redis.call('PEXPIRE', KEYS[3], 5000)
save()
return {math.ceil(wait), granted, view()}
"""
    )
    .replace("SHARE", str(TIGHT_SHARE))
    .replace("FEW", str(TIGHT_REQUESTS))
)
