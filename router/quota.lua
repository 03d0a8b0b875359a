#!lua name=tiergate3
-- Holds of one tenant, a Redis 7 function library of the gateways. Every call is one atomic step on the keys of one tenant.
--
--   tg:{T}:s:<scope>  a scope's counters, packed (PACKED); or `?nonce` while somebody loads it from Postgres
--   tg:{T}:r:<id>     the record of an open or settled request, one line of text (RECORD)
--   tg:{T}:open       ids that have a record
--   tg:{T}:idem:<h>   `id body_hash` while a request with that Idempotency-Key runs, its stored answer later (idem_read)
--   tg:{T}:poison:<h> a body that killed its workers: refused while this stands; SET by the gateway
--
-- Packed strings, because GET and SETRANGE cost a fraction of HMGET and HSET, and a field above 64 bytes would make a hash
-- three times as large. Time is this server's TIME in UTC; a window only ever rolls forward, so a clock that steps back opens
-- no second one. Money is in nano-units, whole and below 2^53.
-- Limits are not stored: the caller passes six per scope, in the order of LIMITS; -1 means none.

local SCOPE_LIFE_MS = 7 * 86400 * 1000
local ANSWER_LIFE_MS = 86400 * 1000
local RUNNING_LIFE_MS = 3600 * 1000
local ANSWER_COMES_MS = 10000
local LOADING_MS = 2000

-- minute minute_requests minute_tokens day day_tokens month month_tokens month_money held_requests held_tokens held_money:
-- minute, day and month by number and what was used in them; what open requests hold
local PACKED = '<ddddddddddd'
local PACKED_BYTES = 88
local LIMITS = 6 -- requests a minute, tokens a minute, open requests, tokens a day, tokens a month, money a month

local RECORD = '%s %09d %d %d %d %d %d %d %d %d %d %d %d %d %s %s %s'
local RECORD_IN = '^(%l) (%d+) (%d) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%d+) (%S+) (%S+) (.*)$'
local SENT_AT = 2 -- where `sent prefilled` begins in a record; progress writes it in place
local NOT_ACCEPTED = 2 -- as `prefilled`: held, and nobody has said yet that the request was accepted; its first progress does

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

-- Tokens and money that were counted wrongly at `at`, in the windows of then that still run.
local function scope_right(key, s, at, tokens, money)
  local day = math.floor(at / 86400000)
  if math.floor(at / 60000) == s.minute then s.minute_tokens = s.minute_tokens + tokens end
  if day == s.day then s.day_tokens = s.day_tokens + tokens end
  if month_of(day) == s.month then s.month_tokens, s.month_money = s.month_tokens + tokens, s.month_money + money end
  scope_write(key, s)
end

-- ---- what a demand may get
-- d: base (tokens wanted besides), need and most per choice, n choices, prices pin and pout. d.grant shrinks from `most` to the
-- least of what the limits leave, d.bound is the kind that shrank it; where that is less than need, d.no is the first such limit.

local function refuse(d, kind, retry_ms, limit, used, demand)
  if not d.no then d.no = {kind = kind, retry_ms = retry_ms, limit = limit, used = used, demand = demand} end
end

local function grant(d, per_choice, kind)
  if per_choice < d.grant then d.grant, d.bound = per_choice, kind end
end

local function fit(d, limit, used, kind, retry_ms)
  if limit < 0 then return end
  local per_choice, demand = math.floor((limit - used - d.base) / d.n), d.base + d.n * d.need
  if per_choice < d.need then refuse(d, kind, demand > limit and -1 or retry_ms, limit, used, demand) end
  grant(d, per_choice, kind)
end

local function fit_money(d, limit, used)
  if limit < 0 then return end
  local left = limit - used - d.base * d.pin
  local per_choice = left < 0 and -1 or (d.pout > 0 and math.floor(left / (d.n * d.pout)) or d.grant)
  if per_choice < d.need then refuse(d, 'mpo', -1, limit, used, d.base * d.pin + d.n * d.need * d.pout) end
  grant(d, per_choice, 'mpo')
end

local function fit_scope(d, s, limits, now)
  fit(d, limits[2], s.minute_tokens + s.held_tokens, 'tpm', (s.minute + 1) * 60000 - now.ms)
  fit(d, limits[4], s.day_tokens + s.held_tokens, 'tpd', -1)
  fit(d, limits[5], s.month_tokens + s.held_tokens, 'tpo', -1)
  fit_money(d, limits[6], s.month_money + s.held_money)
end

-- Requests a minute and open requests: one more of each.
local function fit_request(d, s, limits, now)
  local per_minute, open = limits[1], limits[3]
  if per_minute >= 0 and s.minute_requests >= per_minute then
    refuse(d, 'rpm', per_minute > 0 and (s.minute + 1) * 60000 - now.ms or -1, per_minute, s.minute_requests, 1)
  end
  if open >= 0 and s.held_requests >= open then refuse(d, 'conc', open > 0 and 1000 or -1, open, s.held_requests, 1) end
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

-- For the rate headers: limit, what it leaves and ms until its window rolls, of the limit that leaves least; limit -1: none.
local function tighten(a, limit, used, reset_ms)
  local left = math.max(0, limit - used)
  if limit < 0 or (a.limit >= 0 and left >= a.left) then return end
  a.limit, a.left, a.reset_ms = limit, left, reset_ms
end

local function month_left_ms(now)
  local day = now.day
  while month_of(day) == now.month do day = day + 1 end
  return day * 86400000 - now.ms
end

local function scope_rates(requests, tokens, s, limits, now)
  local minute_ms, held = (now.minute + 1) * 60000 - now.ms, s.held_tokens
  tighten(requests, limits[1], s.minute_requests, minute_ms)
  tighten(tokens, limits[2], s.minute_tokens + held, minute_ms)
  tighten(tokens, limits[4], s.day_tokens + held, (now.day + 1) * 86400000 - now.ms)
  if limits[5] >= 0 then tighten(tokens, limits[5], s.month_tokens + held, month_left_ms(now)) end
end

-- Appends six numbers to an answer: of requests, then of tokens.
local function put_rates(answer, scopes, limits, now)
  local requests, tokens = {limit = -1, left = 0, reset_ms = 0}, {limit = -1, left = 0, reset_ms = 0}
  for i, s in ipairs(scopes) do scope_rates(requests, tokens, s, limits[i], now) end
  for _, r in ipairs{requests, tokens} do
    for _, v in ipairs{r.limit, r.left, r.reset_ms} do answer[#answer + 1] = v end
  end
  return answer
end

local function miss(key, index, nonce, now)
  redis.call('SET', key, '?' .. nonce, 'NX', 'PX', LOADING_MS)
  return {'MISS', index, string.sub(redis.call('GET', key), 2), now.s}
end

-- What stands under an Idempotency-Key: `id body_hash` while its request runs, `=id body_hash LF answer` later.
local function idem_read(key, body_hash)
  local v = redis.call('GET', key)
  if not v then return nil end
  local done, hash, at = string.match(v, '^(=?)%S+ (%S*)()')
  if hash ~= body_hash then return {'IDEM', 'OTHER'} end
  return done == '=' and {'IDEM', 'DONE', string.sub(v, at + 1)} or {'IDEM', 'OPEN'}
end

local function is_idem(key) return string.sub(key, -2) ~= ':-' end

-- Is it still this request's, and open?
local function idem_is_own(key, id) return redis.call('GETRANGE', key, 0, #id) == id .. ' ' end

-- Milliseconds for which this body is refused, because it killed its workers; nil: it is not.
local function poisoned_ms(open_key, body_hash)
  if body_hash == '' then return nil end
  local left = redis.call('PTTL', string.sub(open_key, 1, -5) .. 'poison:' .. body_hash)
  return left > 0 and left or nil
end

-- tg3_hold  ARGV id gw prompt want n need price_in price_out nonce body_hash meta, then six limits per scope
-- want: tokens per choice; need: the fewest that will do; rates: put_rates.
-- -> OK granted now_ms bound rates (bound: the kind that shrank the grant, or '') | SAME granted (a repeated call)
--  | MISS scope_index nonce now_s | IDEM OPEN | IDEM OTHER (another body) | IDEM DONE answer | POISON ms
--  | NO scope_index kind retry_ms limit used demand rates (retry -1: not before the window rolls, or never)
local function hold(KEYS, ARGV)
  local old = record_read(KEYS[2])
  if old then return {'SAME', old.granted} end
  local poison_ms = poisoned_ms(KEYS[1], ARGV[10])
  if poison_ms then return {'POISON', poison_ms} end
  local other = is_idem(KEYS[3]) and idem_read(KEYS[3], ARGV[10])
  if other then return other end

  local now, scopes, limits = clock(), {}, {}
  local prompt, n = tonumber(ARGV[3]), tonumber(ARGV[5])
  local d = {base = prompt, grant = tonumber(ARGV[4]), n = n, need = tonumber(ARGV[6]), pin = tonumber(ARGV[7]),
    pout = tonumber(ARGV[8]), bound = ''}
  for i = FIRST_SCOPE, #KEYS do
    local index = i - FIRST_SCOPE
    local s, l = scope_read(KEYS[i], now), limits_at(ARGV, 12 + index * LIMITS)
    if not s then return miss(KEYS[i], index, ARGV[9], now) end
    fit_request(d, s, l, now)
    fit_scope(d, s, l, now)
    if d.no and not d.no.scope then d.no.scope = index end
    scopes[index + 1], limits[index + 1] = s, l
  end
  if d.no then
    local no = d.no
    return put_rates({'NO', no.scope, no.kind, no.retry_ms, no.limit, no.used, no.demand}, scopes, limits, now)
  end

  local tokens, money = prompt + n * d.grant, prompt * d.pin + n * d.grant * d.pout
  for i, s in ipairs(scopes) do scope_hold(KEYS[FIRST_SCOPE + i - 1], s, 1, tokens, money) end
  redis.call('SADD', KEYS[1], ARGV[1])
  record_write(KEYS[2], {state = 'o', sent = 0, prefilled = NOT_ACCEPTED, granted = d.grant, prompt = prompt, held_tokens = tokens,
    held_money = money, pin = d.pin, pout = d.pout, t = now.ms, at = 0, p = 0, c = 0, m = 0, outcome = '-', gw = ARGV[2],
    meta = ARGV[11]})
  if is_idem(KEYS[3]) then redis.call('SET', KEYS[3], ARGV[1] .. ' ' .. ARGV[10], 'PX', RUNNING_LIFE_MS) end
  return put_rates({'OK', d.grant, now.ms, d.bound}, scopes, limits, now)
end

-- tg3_extend  ARGV from slice n, then six limits per scope
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
    if d.no then return {'NO', index, d.no.kind, d.no.retry_ms, d.no.limit, d.no.used, d.no.demand} end
    scopes[i] = s
  end
  local tokens, money = n * d.grant, n * d.grant * r.pout
  for i = FIRST_SCOPE, #KEYS do scope_hold(KEYS[i], scopes[i], 0, tokens, money) end
  r.granted, r.held_tokens, r.held_money = r.granted + d.grant, r.held_tokens + tokens, r.held_money + money
  record_write(KEYS[2], r)
  return {'OK', r.granted}
end

-- tg3_load  KEYS scope  ARGV nonce minute requests tokens day tokens month tokens money
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
  local id = string.match(KEYS[2], '[^:]+$')
  if is_idem(KEYS[3]) and idem_is_own(KEYS[3], id) then
    redis.call('PEXPIRE', KEYS[3], ARGV[6] == '1' and ANSWER_COMES_MS or 0)
  end
end

-- What a stranger settled with the record's values while the owner, who could not reach us, committed a row with its own.
local function right(r, KEYS, ARGV)
  local now, tokens, money = clock(), tonumber(ARGV[1]) + tonumber(ARGV[2]) - r.p - r.c, tonumber(ARGV[3]) - r.m
  if tokens == 0 and money == 0 then return end
  for i = FIRST_SCOPE, #KEYS do
    local s = scope_read(KEYS[i], now)
    if s then scope_right(KEYS[i], s, r.at, tokens, money) end
  end
end

-- tg3_settle  ARGV prompt completion money outcome drop answer_comes
-- prompt -1: with what the record knows, for whoever finds a lost request. drop 1: its row, with these values, is committed:
-- the counters follow it, and the record goes.
-- answer_comes 1: tg3_answer will follow; otherwise the Idempotency-Key is free again.
-- -> OK at_ms prompt completion money outcome (a later caller gets the same) | GONE
local function settle(KEYS, ARGV)
  local r = record_read(KEYS[2])
  if not r then return {'GONE'} end
  local is_drop, was_open = ARGV[5] == '1', r.state == 'o'
  if was_open then settle_now(r, KEYS, ARGV) end
  if is_drop then
    if not was_open then right(r, KEYS, ARGV) end
    redis.call('SREM', KEYS[1], string.match(KEYS[2], '[^:]+$'))
    redis.call('DEL', KEYS[2])
  elseif was_open then
    record_write(KEYS[2], r)
  end
  return {'OK', r.at, r.p, r.c, r.m, r.outcome}
end

-- tg3_release  KEYS as settle
-- Undoes a hold whose request was never accepted, so that it leaves no row. -> OK | GONE (no record, or it was accepted)
local function release(KEYS)
  local r = record_read(KEYS[2])
  if not r or r.state ~= 'o' or tonumber(r.prefilled) ~= NOT_ACCEPTED then return {'GONE'} end
  settle_now(r, KEYS, {0, 0, 0, '-', '1', '0'})
  redis.call('SREM', KEYS[1], string.match(KEYS[2], '[^:]+$'))
  redis.call('DEL', KEYS[2])
  return {'OK'}
end

-- tg3_answer  KEYS idem  ARGV id answer
-- Stores the answer that later requests with this Idempotency-Key get; '': there is none, the key is free. -> OK | LATE
local function answer(KEYS, ARGV)
  if not idem_is_own(KEYS[1], ARGV[1]) then return 'LATE' end
  if ARGV[2] == '' then
    redis.call('DEL', KEYS[1])
  else
    redis.call('SET', KEYS[1], '=' .. redis.call('GET', KEYS[1]) .. '\n' .. ARGV[2], 'PX', ANSWER_LIFE_MS)
  end
  return 'OK'
end

-- tg3_progress  KEYS record...  ARGV `sent prefilled` of each: nine digits, a space, 0 or 1
-- The first one of a request, sent before it is enqueued, also says that it was accepted.
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
redis.register_function('tg3_hold', hold)
redis.register_function('tg3_extend', extend)
redis.register_function('tg3_load', load)
redis.register_function('tg3_answer', answer)
redis.register_function{function_name = 'tg3_settle', callback = settle, flags = {'allow-oom'}}
redis.register_function{function_name = 'tg3_release', callback = release, flags = {'allow-oom'}}
redis.register_function{function_name = 'tg3_progress', callback = progress, flags = {'allow-oom'}}
