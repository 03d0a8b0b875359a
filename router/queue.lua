#!lua name=tiergate_queue2
-- The queue of one tier, a Redis 7 function library shared by gateways and workers.
--
-- Each lane keeps one sorted set of waiting entries per tenant (score: when the request was accepted) and one set of the
-- tenants that have any (score: the service they received, divided by their weight). A claim takes the oldest entry of the
-- least served tenant, and takes it for good: whether the work arrived is for the owning gateway to find out.
-- KEYS[1] is the tier's prefix `tg:{M}:`; every key is made of it, so a call stays on one node.
--
--   q:<lane>:<tenant>  entries `id:attempt:cost:weight:allow`; they expire at their score + allow (ms)
--   act:<lane>         tenants with something waiting
--   idle:<lane>        tenants with nothing waiting that were served of late
--   m                  the tier's state, packed (state_read)
--   p:<id>:<attempt>   the sealed job: SET by the gateway beforehand, never passed through here
--   bell               channel that workers listen to
--
-- Lanes: c completion, i interactive, b batch, l last attempts. Service is in tokens: the input when claimed, output as made.

local LANES = {'c', 'i', 'b', 'l'}
local BY_PRIORITY = {'c', 'i', 'b'}
local LOWER_FIRST = {'b', 'i'}       -- the order in which turns that are owed get paid
local SHARE = {i = 1 / 8, b = 1 / 32} -- claims owed to a waiting lane for each one that went above it
local OWED_MOST = 2
local RANK = {c = 0, i = 1, l = 1, b = 2} -- a lane takes places from lanes of its rank and below

local FORGET = 65536      -- service; a counter this far behind virtual time says no more than virtual time does
local IDLE_MS = 600000
local HUNGRY_MS = 1500    -- how long a worker that found too little is told of new entries
local WINDOW_MS = 2000    -- over which claims a second are measured
local THROW_MOST = 256    -- expired entries discarded by one claim

local function now_ms()
  local t = redis.call('TIME')
  return tonumber(t[1]) * 1000 + math.floor(tonumber(t[2]) / 1000)
end

-- ---- state of the tier: since, hungry, then per lane
--   v     virtual time: service of the tenant claimed from last, before that claim (never falls)
--   n     entries waiting
--   owed  claims owed to the lane
--   rate  claims a second, of the last full window
--   count claims in the running window

local STATE = '<dddddddddddddddddddddd' -- 2 + 4 x 5

local function state_read(pre)
  local s = redis.call('GET', pre .. 'm')
  local f = s and {struct.unpack(STATE, s)} or {}
  local m = {since = f[1] or 0, hungry = f[2] or 0}
  for k, lane in ipairs(LANES) do
    local at = 5 * k - 3
    m[lane] = {v = f[at + 1] or 0, n = f[at + 2] or 0, owed = f[at + 3] or 0, rate = f[at + 4] or 0, count = f[at + 5] or 0}
  end
  return m
end

local function state_write(pre, m)
  local c, i, b, l = m.c, m.i, m.b, m.l
  redis.call('SET', pre .. 'm', struct.pack(STATE, m.since, m.hungry,
    c.v, c.n, c.owed, c.rate, c.count, i.v, i.n, i.owed, i.rate, i.count,
    b.v, b.n, b.owed, b.rate, b.count, l.v, l.n, l.owed, l.rate, l.count))
end

local function roll_window(m, now)
  local span = now - m.since
  if span < WINDOW_MS then return end
  local is_recent = span < 10 * WINDOW_MS
  for _, lane in ipairs(LANES) do
    m[lane].rate = is_recent and m[lane].count * 1000 / span or 0
    m[lane].count = 0
  end
  m.since = now
end

-- ---- tenants of a lane

local function queue_key(pre, lane, tenant) return pre .. 'q:' .. lane .. ':' .. tenant end

-- A tenant that starts to wait is lifted to the least served of those that wait, else to virtual time: absence earns nothing.
local function tenant_enter(pre, lane, tenant, v)
  local act, idle = pre .. 'act:' .. lane, pre .. 'idle:' .. lane
  local least = redis.call('ZRANGE', act, 0, 0, 'WITHSCORES')
  local own = redis.call('ZSCORE', idle, tenant)
  redis.call('ZADD', act, math.max(tonumber(own or 0), tonumber(least[2] or v)), tenant)
  if own then redis.call('ZREM', idle, tenant) end
end

-- A tenant whose last entry left keeps its counter only while that says more than virtual time does.
local function tenant_leave(pre, lane, tenant, score, v)
  local idle = pre .. 'idle:' .. lane
  redis.call('ZREM', pre .. 'act:' .. lane, tenant)
  redis.call('ZREMRANGEBYSCORE', idle, '-inf', '(' .. (v - FORGET))
  if score > v - FORGET then redis.call('ZADD', idle, score, tenant) end
  redis.call('PEXPIRE', idle, IDLE_MS)
end

local function tenant_serve(pre, lane, tenant, amount, v)
  if amount == 0 then return end
  if redis.call('ZADD', pre .. 'act:' .. lane, 'XX', 'INCR', amount, tenant) then return end
  local idle = pre .. 'idle:' .. lane
  if not redis.call('ZADD', idle, 'XX', 'INCR', amount, tenant) then
    redis.call('ZADD', idle, math.max(0, v - FORGET) + amount, tenant)
  end
  redis.call('PEXPIRE', idle, IDLE_MS)
end

local function serve_all(pre, m, ARGV, first)
  for a = first, #ARGV, 4 do tenant_serve(pre, ARGV[a], ARGV[a + 1], tonumber(ARGV[a + 2]), m[ARGV[a]].v) end
end

-- ---- entries

-- Takes one entry out without serving it. -> did it wait
local function entry_remove(pre, m, lane, tenant, entry)
  local queue = queue_key(pre, lane, tenant)
  if redis.call('ZREM', queue, entry) == 0 then return false end
  m[lane].n = m[lane].n - 1
  if redis.call('EXISTS', queue) == 0 then
    local score = redis.call('ZSCORE', pre .. 'act:' .. lane, tenant)
    tenant_leave(pre, lane, tenant, tonumber(score or 0), m[lane].v)
  end
  return true
end

-- Milliseconds until `ahead` entries of one tenant, and the other tenants' share meanwhile, were claimed at the present rate;
-- -1: nobody claims.
local function wait_estimate(pre, lane, at, ahead)
  local rate = math.max(at.rate, at.count * 1000 / WINDOW_MS)
  if rate <= 0 then return -1 end
  local tenants = math.max(1, redis.call('ZCARD', pre .. 'act:' .. lane))
  return math.ceil(math.min(ahead * tenants, at.n + 1) * 1000 / rate)
end

-- Which limit is reached, how many wait there; nil while there is room.
local function find_full(m, waiting, limit_tenant, limit_tier)
  if waiting >= limit_tenant then return 'tenant', waiting end
  local total = m.c.n + m.i.n + m.b.n + m.l.n
  if total >= limit_tier then return 'tier', total end
end

-- tq2_enqueue  KEYS prefix payload  ARGV lane tenant entry waited_ms limit_tenant limit_tier [old_lane old_entry]
-- waited_ms: since the request was accepted, so that a later attempt stands where the first one stood. A later attempt names
-- the entry it replaces, which is taken out if it still waits; no limit refuses it. The bell rings for hungry workers, and when
-- a tenant starts to wait: a full worker may take it nevertheless (find_entitled).
-- -> OK place waiting_in_lane expected_ms | FULL tenant|tier waiting retry_ms (the payload is deleted)
local function enqueue(KEYS, ARGV)
  local pre, lane, tenant, entry = KEYS[1], ARGV[1], ARGV[2], ARGV[3]
  local now, m = now_ms(), state_read(pre)
  local queue, at = queue_key(pre, lane, tenant), m[lane]
  roll_window(m, now)
  if ARGV[8] then entry_remove(pre, m, ARGV[7], tenant, ARGV[8]) end
  local waiting = redis.call('ZCARD', queue)
  if not ARGV[8] then
    local full, n = find_full(m, waiting, tonumber(ARGV[5]), tonumber(ARGV[6]))
    if full then
      redis.call('UNLINK', KEYS[2])
      return {'FULL', full, n, wait_estimate(pre, lane, at, math.max(1, math.floor(waiting / 8)))}
    end
  end
  at.n = at.n + redis.call('ZADD', queue, now - tonumber(ARGV[4]), entry)
  if waiting == 0 then tenant_enter(pre, lane, tenant, at.v) end
  if m.hungry > now or waiting == 0 then redis.call('PUBLISH', pre .. 'bell', lane) end
  state_write(pre, m)
  local place = redis.call('ZRANK', queue, entry)
  return {'OK', place, at.n, wait_estimate(pre, lane, at, place + 1)}
end

-- The least served tenant of a lane that waits, its score; nil: none does.
local function least_served(pre, lane)
  local least = redis.call('ZRANGE', pre .. 'act:' .. lane, 0, 0, 'WITHSCORES')
  return least[1], tonumber(least[2])
end

local function equally_served(pre, lane, score, most)
  return score and redis.call('ZRANGE', pre .. 'act:' .. lane, score, score, 'BYSCORE', 'LIMIT', 0, most) or {}
end

-- Pops the oldest entry of a tenant that waits. -> it, or nil: it had expired and is thrown away, its gateway's timer has told
-- the client
local function pop(pre, lane, at, now, tenant, score)
  local queue = queue_key(pre, lane, tenant)
  local head = redis.call('ZPOPMIN', queue)
  local id, attempt, cost, weight, allow = string.match(head[1] or '', '^([^:]+):(%d+):(%d+):([%d.]+):(%d+)$')
  local entered = tonumber(head[2])
  local is_live = id and entered + tonumber(allow) > now
  if head[1] then at.n = at.n - 1 end
  if is_live then
    at.v = math.max(at.v, score)
    score = tonumber(redis.call('ZINCRBY', pre .. 'act:' .. lane, math.max(1, tonumber(cost)) / tonumber(weight), tenant))
  end
  if redis.call('EXISTS', queue) == 0 then tenant_leave(pre, lane, tenant, score, at.v) end
  return is_live and {lane, tenant, id, attempt, weight, now - entered} or nil
end

-- The lane of the next claim: last attempts first, then a lower lane that is owed a turn, then by priority.
local function choose(m, room)
  if room.l > 0 and m.l.n > 0 then return 'l' end
  for _, lane in ipairs(LOWER_FIRST) do
    if m[lane].n == 0 then
      m[lane].owed = 0
    elseif m[lane].owed >= 1 and room[lane] > 0 then
      return lane
    end
  end
  for _, lane in ipairs(BY_PRIORITY) do
    if room[lane] > 0 and m[lane].n > 0 then return lane end
  end
end

-- Books a claim: the lane's own turn is paid, each lane below it is owed its share.
local function book(m, lane)
  m[lane].count = m[lane].count + 1
  if m[lane].owed >= 1 then m[lane].owed = m[lane].owed - 1 end
  local is_below = false
  for _, other in ipairs(BY_PRIORITY) do
    if is_below then m[other].owed = math.min(OWED_MOST, m[other].owed + SHARE[other]) end
    is_below = is_below or other == lane
  end
end

-- ---- a full worker

-- Places of each tenant at the worker, as its claim says.
local function seats_read(ARGV, first)
  local seats = {c = {}, i = {}, b = {}, l = {}}
  for a = first, #ARGV, 4 do seats[ARGV[a]][ARGV[a + 1]] = tonumber(ARGV[a + 3]) end
  return seats
end

local function seat_add(seats, lane, tenant, n) seats[lane][tenant] = (seats[lane][tenant] or 0) + n end

-- Who has the most places among the lanes that this one may take from. -> lane, tenant, places
local function most_seated(seats, lane)
  local of, who, most = nil, nil, 0
  for _, other in ipairs(LANES) do
    for tenant, n in pairs(RANK[other] >= RANK[lane] and seats[other] or {}) do
      if n > most then of, who, most = other, tenant, n end
    end
  end
  return of, who, most
end

-- Who may start although the worker is full: the least served tenant of a lane, if another one has so many places that it keeps
-- as many as that one then has. Of equally served ones any that may; of the lanes the highest.
-- -> lane, tenant, score, and lane, tenant of who gives a place up; nil: nobody
local function find_entitled(pre, m, seats, room, most_tied)
  for _, lane in ipairs({'l', 'c', 'i', 'b'}) do
    local of, who, most = most_seated(seats, lane)
    if most >= 2 and m[lane].n > 0 and (lane ~= 'l' or room.l > 0) then
      local _, score = least_served(pre, lane)
      for _, tenant in ipairs(equally_served(pre, lane, score, most_tied)) do
        if (seats[lane][tenant] or 0) + 2 <= most then return lane, tenant, score, of, who end
      end
    end
  end
end

-- How many tenants wait, per lane they wait in.
local function count_waiting_tenants(pre)
  local n = 0
  for _, lane in ipairs(LANES) do n = n + redis.call('ZCARD', pre .. 'act:' .. lane) end
  return n
end

-- tq2_claim  KEYS prefix  ARGV max more room_c room_i room_b room_l, then for each tenant and lane: lane tenant amount places
-- max: entries for free places and one to be at hand; more: beyond them, for tenants that are entitled to a place of another
-- one. room_l is 1 while the worker runs no last attempt, else 0; amount: tokens made since the last claim, over the weight.
-- -> thrown, tenants that wait (0 where more is 0), {lane tenant id attempt weight waited_ms} ...
-- thrown > 0 and no entry: ask again at once
local function claim(KEYS, ARGV)
  local pre, now, max, more = KEYS[1], now_ms(), tonumber(ARGV[1]), tonumber(ARGV[2])
  local m, seats, got, thrown = state_read(pre), seats_read(ARGV, 7), {}, 0
  local room = {c = tonumber(ARGV[3]), i = tonumber(ARGV[4]), b = tonumber(ARGV[5]), l = math.min(1, tonumber(ARGV[6]))}
  local parties = (#ARGV - 6) / 4
  local function serve(lane, tenant, score) -- -> did it get anything
    local entry = pop(pre, lane, m[lane], now, tenant, score)
    got[#got + 1] = entry
    thrown = thrown + (entry and 0 or 1)
    if not entry then return false end
    room[lane] = room[lane] - 1
    book(m, lane)
    return true
  end
  roll_window(m, now)
  serve_all(pre, m, ARGV, 7)
  while #got < max and thrown < THROW_MOST do
    local lane = choose(m, room)
    if not lane then
      m.hungry = now + HUNGRY_MS
      break
    end
    local tenant, score = least_served(pre, lane)
    if not tenant then
      m[lane].n = 0
    elseif serve(lane, tenant, score) and #got < max then
      seat_add(seats, lane, tenant, 1) -- the last one is to be at hand
    end
  end
  while more > 0 and thrown < THROW_MOST do
    local lane, tenant, score, of, who = find_entitled(pre, m, seats, room, parties + #got + 1)
    if not lane then break end
    if serve(lane, tenant, score) then
      seat_add(seats, lane, tenant, 1)
      seat_add(seats, of, who, -1)
      more = more - 1
    end
  end
  state_write(pre, m)
  return {thrown, tonumber(ARGV[2]) > 0 and count_waiting_tenants(pre) or 0, unpack(got)}
end

-- tq2_charge  KEYS prefix  ARGV lane tenant amount places ...  -> number of charges. For a worker that has room for nothing.
local function charge(KEYS, ARGV)
  serve_all(KEYS[1], state_read(KEYS[1]), ARGV, 1)
  return #ARGV / 4
end

-- tq2_cancel  KEYS prefix payload...  ARGV lane tenant entry ...  -> number of entries that still waited
local function cancel(KEYS, ARGV)
  local pre, m, n = KEYS[1], state_read(KEYS[1]), 0
  for k = 1, #ARGV / 3 do
    if entry_remove(pre, m, ARGV[3 * k - 2], ARGV[3 * k - 1], ARGV[3 * k]) then
      redis.call('UNLINK', KEYS[k + 1])
      n = n + 1
    end
  end
  if n > 0 then state_write(pre, m) end
  return n
end

-- tq2_look  KEYS prefix  ARGV most  -> {lane tenant waiting oldest_ms service_ahead} ..., per lane the least served first
-- most 0: no tenants, but {lane waiting} of every lane.
local function look(KEYS, ARGV)
  local pre, now, m, out = KEYS[1], now_ms(), state_read(KEYS[1]), {}
  for _, lane in ipairs(ARGV[1] == '0' and LANES or {}) do out[#out + 1] = {lane, m[lane].n} end
  for _, lane in ipairs(ARGV[1] ~= '0' and LANES or {}) do
    local tenants = redis.call('ZRANGE', pre .. 'act:' .. lane, 0, tonumber(ARGV[1]) - 1, 'WITHSCORES')
    for a = 1, #tenants, 2 do
      local queue = queue_key(pre, lane, tenants[a])
      local oldest = redis.call('ZRANGE', queue, 0, 0, 'WITHSCORES')
      out[#out + 1] = {lane, tenants[a], redis.call('ZCARD', queue), now - tonumber(oldest[2] or now),
        math.floor(tonumber(tenants[a + 1]) - m[lane].v)}
    end
  end
  return out
end

-- What gives memory back must also run when Redis has none left.
redis.register_function('tq2_enqueue', enqueue)
redis.register_function{function_name = 'tq2_claim', callback = claim, flags = {'allow-oom'}}
redis.register_function{function_name = 'tq2_charge', callback = charge, flags = {'allow-oom'}}
redis.register_function{function_name = 'tq2_cancel', callback = cancel, flags = {'allow-oom'}}
redis.register_function{function_name = 'tq2_look', callback = look, flags = {'no-writes'}}
