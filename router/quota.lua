#!lua name=tiergate1
-- Holds of one tenant, a Redis 7 function library of the gateways. Every call is one atomic step on the keys of one tenant.
--
--   tg:{T}:s:<scope>  a scope's counters, packed (PACKED); or `?nonce` while somebody loads it from Postgres
--   tg:{T}:r:<id>     the record of an open or settled request, one line of text (RECORD)
--   tg:{T}:open       ids that have a record
--   tg:{T}:idem:<h>   `id body_hash` while a request with that Idempotency-Key runs, its stored answer later
--
-- Packed strings, because GET and SETRANGE cost a fraction of HMGET and HSET, and a field above 64 bytes would make a hash
-- three times as large. Time is this server's TIME in UTC; a window only ever rolls forward, so a clock that steps back opens
-- no second one. Money is in nano-units, whole and below 2^53.
-- Limits are not stored: the caller passes six per scope, in the order of LIMITS; -1 means none.

local SCOPE_LIFE_MS = 7 * 86400 * 1000
local ANSWER_LIFE_MS = 86400 * 1000
local RUNNING_LIFE_MS = 3600 * 1000
local LOADING_MS = 2000

-- minute minute_requests minute_tokens day day_tokens month month_tokens month_money held_requests held_tokens held_money:
-- minute, day and month by number and what was used in them; what open requests hold
local PACKED = '<ddddddddddd'
local PACKED_BYTES = 88
local LIMITS = 6 -- requests a minute, tokens a minute, open requests, tokens a day, tokens a month, money a month

local RECORD = '%s %09d %d %d %d %d %d %d %d %d %d %d %d %d %s %s %s'
local RECORD_IN = '^(%l) (%d+) (%d) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%S+) (%S+) (.*)$'
local SENT_AT = 2 -- where `sent prefilled` begins in a record; progress writes it in place

-- Number of the month (year * 12 + month - 1) of a day counted from 1970-01-01. Years are counted from 1 March, so that the
-- leap day comes last; right until 2100-02-28.
local function month_of(day)
  local d = day + 671
  local year = math.floor((4 * d + 3) / 1461)
  local in_year = d - math.floor(1461 * year / 4)
  return (1968 + year) * 12 + math.floor((5 * in_year + 2) / 153) + 2
end

local function clock()
  local t = redis.call('TIME')
  local s = tonumber(t[1])
  local day = math.floor(s / 86400)
  return {s = s, ms = s * 1000 + math.floor(tonumber(t[2]) / 1000), minute = math.floor(s / 60), day = day, month = month_of(day)}
end

-- ---- scopes

-- A scope's counters, its windows rolled to now; nil when it has not been loaded.
local function scope_read(key, now)
  local v = redis.call('GET', key)
  if not v or #v ~= PACKED_BYTES then return nil end
  local f = {struct.unpack(PACKED, v)}
  local s = {minute = f[1], minute_requests = f[2], minute_tokens = f[3], day = f[4], day_tokens = f[5], month = f[6],
    month_tokens = f[7], month_money = f[8], held_requests = f[9], held_tokens = f[10], held_money = f[11]}
  if now.minute > s.minute then s.minute, s.minute_requests, s.minute_tokens = now.minute, 0, 0 end
  if now.day > s.day then s.day, s.day_tokens, s.is_new_day = now.day, 0, true end
  if now.month > s.month then s.month, s.month_tokens, s.month_money = now.month, 0, 0 end
  return s
end

-- In place, which keeps the key's life; that is renewed once a day.
local function scope_write(key, s)
  redis.call('SETRANGE', key, 0, struct.pack(PACKED, s.minute, s.minute_requests, s.minute_tokens, s.day, s.day_tokens,
    s.month, s.month_tokens, s.month_money, s.held_requests, s.held_tokens, s.held_money))
  if s.is_new_day then redis.call('PEXPIRE', key, SCOPE_LIFE_MS) end
end

local function scope_hold(key, s, requests, tokens, money)
  s.held_requests, s.held_tokens, s.held_money = s.held_requests + requests, s.held_tokens + tokens, s.held_money + money
  s.minute_requests = s.minute_requests + requests
  scope_write(key, s)
end

local function scope_settle(key, s, held_tokens, held_money, tokens, money)
  s.held_requests, s.held_tokens, s.held_money = s.held_requests - 1, s.held_tokens - held_tokens, s.held_money - held_money
  s.minute_tokens, s.day_tokens = s.minute_tokens + tokens, s.day_tokens + tokens
  s.month_tokens, s.month_money = s.month_tokens + tokens, s.month_money + money
  scope_write(key, s)
end

-- ---- what a demand may get
-- d: base (tokens wanted besides), need and most per choice, n choices, prices pin and pout. d.grant shrinks from `most` to the
-- least of what the limits leave; where that is less than need, d.kind and d.retry_ms name the first such limit.

local function refuse(d, kind, retry_ms)
  if not d.kind then d.kind, d.retry_ms = kind, retry_ms end
end

local function fit(d, limit, used, kind, retry_ms)
  if limit < 0 then return end
  local per_choice = math.floor((limit - used - d.base) / d.n)
  if per_choice < d.need then refuse(d, kind, d.base + d.n * d.need > limit and -1 or retry_ms) end
  d.grant = math.min(d.grant, per_choice)
end

local function fit_money(d, limit, used)
  if limit < 0 then return end
  local left = limit - used - d.base * d.pin
  local per_choice = left < 0 and -1 or (d.pout > 0 and math.floor(left / (d.n * d.pout)) or d.grant)
  if per_choice < d.need then refuse(d, 'mpo', -1) end
  d.grant = math.min(d.grant, per_choice)
end

local function fit_scope(d, s, limits, now)
  fit(d, limits[2], s.minute_tokens + s.held_tokens, 'tpm', (s.minute + 1) * 60000 - now.ms)
  fit(d, limits[4], s.day_tokens + s.held_tokens, 'tpd', -1)
  fit(d, limits[5], s.month_tokens + s.held_tokens, 'tpo', -1)
  fit_money(d, limits[6], s.month_money + s.held_money)
end

local function limits_at(ARGV, first)
  local limits = {}
  for k = 1, LIMITS do limits[k] = tonumber(ARGV[first + k - 1]) end
  return limits
end

-- ---- records

local function record_read(key)
  local v = redis.call('GET', key)
  if not v then return nil end
  local r = {}
  r.state, r.sent, r.prefilled, r.granted, r.prompt, r.held_tokens, r.held_money, r.pin, r.pout, r.t, r.at, r.p, r.c, r.m,
    r.outcome, r.gw, r.meta = string.match(v, RECORD_IN)
  for _, name in ipairs{'sent', 'granted', 'prompt', 'held_tokens', 'held_money', 'pin', 'pout', 'at', 'p', 'c', 'm'} do
    r[name] = tonumber(r[name])
  end
  return r
end

local function record_write(key, r)
  redis.call('SET', key, string.format(RECORD, r.state, r.sent, r.prefilled, r.granted, r.prompt, r.held_tokens, r.held_money,
    r.pin, r.pout, r.t, r.at, r.p, r.c, r.m, r.outcome, r.gw, r.meta))
end

-- ---- the calls. KEYS are always: open record idem scope...   (idem: the tenant's `idem:-` when the client sent no key)

local FIRST_SCOPE = 4

-- What the tightest limits leave for the rate headers: requests and tokens, -1 where nothing limits.
local function lesser(a, limit, used)
  if limit < 0 then return a end
  local left = math.max(0, limit - used)
  return (a < 0 or left < a) and left or a
end

local function left_over(left, s, limits)
  left.requests = lesser(left.requests, limits[1], s.minute_requests)
  left.tokens = lesser(left.tokens, limits[2], s.minute_tokens + s.held_tokens)
  left.tokens = lesser(left.tokens, limits[4], s.day_tokens + s.held_tokens)
  left.tokens = lesser(left.tokens, limits[5], s.month_tokens + s.held_tokens)
end

local function miss(key, index, nonce, now)
  redis.call('SET', key, '?' .. nonce, 'NX', 'PX', LOADING_MS)
  return {'MISS', index, string.sub(redis.call('GET', key), 2), now.s}
end

-- tg1_hold  ARGV id gw prompt want n need price_in price_out nonce body_hash meta, then six limits per scope
-- want: tokens per choice; need: the fewest that will do.
-- -> OK granted now_ms requests_left tokens_left | SAME granted (a repeated call) | MISS scope_index nonce now_s
--  | IDEM value | NO scope_index kind retry_ms (-1: not before the window rolls, or never)
local function hold(KEYS, ARGV)
  local old = record_read(KEYS[2])
  if old then return {'SAME', old.granted} end
  local has_idem = ARGV[10] ~= ''
  local stored = has_idem and redis.call('GET', KEYS[3])
  if stored then return {'IDEM', stored} end

  local now, scopes, left = clock(), {}, {requests = -1, tokens = -1}
  local prompt, n = tonumber(ARGV[3]), tonumber(ARGV[5])
  local d = {base = prompt, grant = tonumber(ARGV[4]), n = n, need = tonumber(ARGV[6]), pin = tonumber(ARGV[7]),
    pout = tonumber(ARGV[8])}
  local refused_by
  for i = FIRST_SCOPE, #KEYS do
    local index = i - FIRST_SCOPE
    local s, limits = scope_read(KEYS[i], now), limits_at(ARGV, 12 + index * LIMITS)
    if not s then return miss(KEYS[i], index, ARGV[9], now) end
    if limits[1] >= 0 and s.minute_requests >= limits[1] then refuse(d, 'rpm', (s.minute + 1) * 60000 - now.ms) end
    if limits[3] >= 0 and s.held_requests >= limits[3] then refuse(d, 'conc', 1000) end
    fit_scope(d, s, limits, now)
    if d.kind and not refused_by then refused_by = index end
    left_over(left, s, limits)
    scopes[i] = s
  end
  if refused_by then return {'NO', refused_by, d.kind, d.retry_ms} end

  local tokens, money = prompt + n * d.grant, prompt * d.pin + n * d.grant * d.pout
  for i = FIRST_SCOPE, #KEYS do scope_hold(KEYS[i], scopes[i], 1, tokens, money) end
  redis.call('SADD', KEYS[1], ARGV[1])
  record_write(KEYS[2], {state = 'o', sent = 0, prefilled = 0, granted = d.grant, prompt = prompt, held_tokens = tokens,
    held_money = money, pin = d.pin, pout = d.pout, t = now.ms, at = 0, p = 0, c = 0, m = 0, outcome = '-', gw = ARGV[2],
    meta = ARGV[11]})
  if has_idem then redis.call('SET', KEYS[3], ARGV[1] .. ' ' .. ARGV[10], 'PX', RUNNING_LIFE_MS) end
  return {'OK', d.grant, now.ms, left.requests, left.tokens}
end

-- tg1_extend  ARGV from slice n, then six limits per scope
-- Up to `slice` tokens per choice on top of `from`, as many as there is room for, at least one. The record has another grant
-- than `from`: the call was made before. -> OK granted | NO scope_index kind retry_ms | GONE (no open record, or a scope lost)
local function extend(KEYS, ARGV)
  local r = record_read(KEYS[2])
  if not r or r.state ~= 'o' then return {'GONE'} end
  if r.granted ~= tonumber(ARGV[1]) then return {'OK', r.granted} end
  local now, scopes, n = clock(), {}, tonumber(ARGV[3])
  local d = {base = 0, grant = tonumber(ARGV[2]), n = n, need = 1, pin = r.pin, pout = r.pout}
  for i = FIRST_SCOPE, #KEYS do
    local index = i - FIRST_SCOPE
    local s = scope_read(KEYS[i], now)
    if not s then return {'GONE'} end
    fit_scope(d, s, limits_at(ARGV, 4 + index * LIMITS), now)
    if d.kind then return {'NO', index, d.kind, d.retry_ms} end
    scopes[i] = s
  end
  local tokens, money = n * d.grant, n * d.grant * r.pout
  for i = FIRST_SCOPE, #KEYS do scope_hold(KEYS[i], scopes[i], 0, tokens, money) end
  r.granted, r.held_tokens, r.held_money = r.granted + d.grant, r.held_tokens + tokens, r.held_money + money
  record_write(KEYS[2], r)
  return {'OK', r.granted}
end

-- tg1_load  KEYS scope  ARGV nonce minute requests tokens day tokens month tokens money
-- The counters that Postgres had after the MISS that handed out this nonce. A nonce dies with the data it belongs to, so
-- nothing older than a loss is ever loaded. -> OK | LATE
local function load(KEYS, ARGV)
  if redis.call('GET', KEYS[1]) ~= '?' .. ARGV[1] then return 'LATE' end
  redis.call('SET', KEYS[1], struct.pack(PACKED, ARGV[2], ARGV[3], ARGV[4], ARGV[5], ARGV[6], ARGV[7], ARGV[8], ARGV[9],
    0, 0, 0), 'PX', SCOPE_LIFE_MS)
  return 'OK'
end

-- The first settler decides; what was held goes, what was used counts.
local function settle_now(r, KEYS, ARGV)
  local now = clock()
  local p, c, m = tonumber(ARGV[1]), tonumber(ARGV[2]), tonumber(ARGV[3])
  if p < 0 then
    p, c = r.prefilled == '1' and r.prompt or 0, r.sent
    m = p * r.pin + c * r.pout
  end
  for i = FIRST_SCOPE, #KEYS do
    local s = scope_read(KEYS[i], now)
    if s then scope_settle(KEYS[i], s, r.held_tokens, r.held_money, p + c, m) end
  end
  r.state, r.at, r.p, r.c, r.m, r.outcome = 's', now.ms, p, c, m, ARGV[4]
  if ARGV[6] ~= '' then
    redis.call('SET', KEYS[3], ARGV[6], 'PX', ANSWER_LIFE_MS)
  elseif string.sub(KEYS[3], -2) ~= ':-' then
    redis.call('DEL', KEYS[3])
  end
end

-- tg1_settle  ARGV prompt completion money outcome drop answer
-- prompt -1: with what the record knows, for whoever finds a lost request. drop 1: its row is committed, forget the record.
-- -> OK at_ms prompt completion money outcome (a later caller gets the same) | GONE
local function settle(KEYS, ARGV)
  local r = record_read(KEYS[2])
  if not r then return {'GONE'} end
  local is_drop, was_open = ARGV[5] == '1', r.state == 'o'
  if was_open then settle_now(r, KEYS, ARGV) end
  if is_drop then
    redis.call('SREM', KEYS[1], string.match(KEYS[2], '[^:]+$'))
    redis.call('DEL', KEYS[2])
  elseif was_open then
    record_write(KEYS[2], r)
  end
  return {'OK', r.at, r.p, r.c, r.m, r.outcome}
end

-- tg1_progress  KEYS record...  ARGV `sent prefilled` of each: nine digits, a space, 0 or 1
-- -> number of records that are not open (any more)
local function progress(KEYS, ARGV)
  local gone = 0
  for i = 1, #KEYS do
    if redis.call('GETRANGE', KEYS[i], 0, 0) == 'o' then
      redis.call('SETRANGE', KEYS[i], SENT_AT, ARGV[i])
    else
      gone = gone + 1
    end
  end
  return gone
end

-- What gives memory back must also run when Redis has none left.
redis.register_function('tg1_hold', hold)
redis.register_function('tg1_extend', extend)
redis.register_function('tg1_load', load)
redis.register_function{function_name = 'tg1_settle', callback = settle, flags = {'allow-oom'}}
redis.register_function{function_name = 'tg1_progress', callback = progress, flags = {'allow-oom'}}
