-- Takes every bucket's cost, or (one of them short) nothing at all. The arithmetic is that of core/quotas.py, which
-- also makes the states from what this answers; a test holds the two against each other step by step.
--
-- KEYS     one for each bucket; no key twice
-- ARGV     '1' takes, '0' looks; then for each bucket: kind, period in seconds, cost, limit, size
--          kind: f (fixed), w (fixed, a week), m (fixed, a month), s (sliding), b (bucket); size: of a bucket
-- answers  {1 if one was short, seconds, microseconds of the clock, then for each bucket what was counted before:
--           {used, end of the window}, {stamp, units, ...}, or {tokens owed, rest owed in token-microseconds}}
-- stored   arrays: f w m {start, end, used}; s {stamp, units, ...}; b {tokens, rest, microsecond}
--
-- Numbers are doubles, exact up to 2^53: microseconds since 1970 fit, products of them do not (see `flowed`).

local SECOND, DAY, SETBACK, SLICES, FIRST_MONDAY = 1000000, 86400, 60, 32, 4 * 86400
local floor, max, min = math.floor, math.max, math.min

local time = redis.call('TIME')
local second, micros = tonumber(time[1]), tonumber(time[2])
local now = second * SECOND + micros

-- Days since 1970 of the first of a month. Years begin in March here, so that a leap day is a year's last.
local function first_of(year, month)
  local era = floor(year / 400)
  local of_era = year - era * 400
  local days = of_era * 365 + floor(of_era / 4) - floor(of_era / 100) + floor((153 * month + 2) / 5)
  return (era * 146097 + days - 719468) * DAY
end

local function month_window()
  local days = floor(second / DAY) + 719468
  local era = floor(days / 146097)
  local of_era = days - era * 146097
  local year = floor((of_era - floor(of_era / 1460) + floor(of_era / 36524) - floor(of_era / 146096)) / 365)
  local of_year = of_era - (365 * year + floor(year / 4) - floor(year / 100))
  local month = floor((5 * of_year + 2) / 153)
  year = year + era * 400
  return first_of(year, month), first_of(month == 11 and year + 1 or year, (month + 1) % 12)
end

local function window_at(kind, period)
  if kind == 'm' then
    return month_window()
  end
  local offset = kind == 'w' and FIRST_MONDAY or 0
  local start = floor((second - offset) / period) * period + offset
  return start, start + period
end

local function settle_fixed(kind, period, held)
  local start, stop, used = held[1], held[2], held[3]
  if not start or second >= stop then
    start, stop = window_at(kind, period)
    return {start, stop, 0}
  end
  if start * SECOND - now > min(SETBACK, stop - start) * SECOND then
    start, stop = window_at(kind, period)
  end
  return {start, stop, used}
end

local function settle_stamps(period, held)
  local stamps, oldest = {}, now - period * SECOND
  for i = 1, #held, 2 do
    local at, units = min(held[i], now), held[i + 1]
    local last = #stamps
    if at > oldest then
      if held[i] > now and last > 0 and held[i - 2] > now then
        stamps[last] = stamps[last] + units
      else
        stamps[last + 1], stamps[last + 2] = at, units
      end
    end
  end
  return stamps
end

-- elapsed * limit as whole periods and a rest: digit by digit of the limit, so that no product exceeds 2^52.
local function flowed(elapsed, limit, period_us)
  local periods = floor(elapsed / period_us)
  local part = elapsed - periods * period_us
  local _, bits = math.frexp(period_us)
  local base, scale = max(2, math.ldexp(1, 51 - bits)), 1
  while scale * base <= limit do
    scale = scale * base
  end
  local tokens, rest, left = 0, 0, limit
  while scale >= 1 do
    local digit = floor(left / scale)
    left = left - digit * scale
    local sum = rest * base + part * digit
    local whole = floor(sum / period_us)
    tokens, rest, scale = tokens * base + whole, sum - whole * period_us, scale / base
  end
  return periods * limit + tokens, rest
end

local function settle_debt(period, limit, held)
  local tokens, rest, at = held[1] or 0, held[2] or 0, held[3] or now
  if now <= at or limit <= 0 or tokens + rest == 0 then
    return {tokens, rest, now}
  end
  local tokens_back, rest_back = flowed(now - at, limit, period * SECOND)
  tokens, rest = tokens - tokens_back, rest - rest_back
  if rest < 0 then
    tokens, rest = tokens - 1, rest + period * SECOND
  end
  if tokens < 0 then
    tokens, rest = 0, 0
  end
  return {tokens, rest, now}
end

local function units_of(stamps)
  local used = 0
  for i = 2, #stamps, 2 do
    used = used + stamps[i]
  end
  return used
end

local function is_short(one)
  if one.kind == 's' then
    return units_of(one.count) + one.cost > one.limit
  elseif one.kind == 'b' then
    return one.count[1] + (one.count[2] > 0 and 1 or 0) + one.cost > one.size
  end
  return one.count[3] + one.cost > one.limit
end

local function add(one)
  local count = one.count
  if one.kind == 's' then
    local slice, last = one.period * SECOND / SLICES, #count
    if last > 0 and floor(count[last - 1] / slice) == floor(now / slice) then
      count[last - 1], count[last] = now, count[last] + one.cost
    else
      count[last + 1], count[last + 2] = now, one.cost
    end
  elseif one.kind == 'b' then
    count[1] = count[1] + one.cost
  else
    count[3] = count[3] + one.cost
  end
end

-- Milliseconds after which what is stored counts for nothing, whatever was asked meanwhile.
local function lifetime(one)
  local count, period_us = one.count, one.period * SECOND
  if one.kind == 's' then
    return floor((count[#count - 1] + period_us - now) / 1000) + 1
  elseif one.kind == 'b' then
    return one.limit > 0 and min(floor((count[1] + 1) / one.limit * period_us / 1000) + 1000, 2 ^ 42) or period_us / 1000
  end
  return floor((count[2] * SECOND - now) / 1000) + min(SETBACK, count[2] - count[1]) * 1000 + 1
end

local function is_nothing(one)
  if one.kind == 's' then
    return #one.count == 0
  elseif one.kind == 'b' then
    return one.count[1] + one.count[2] == 0
  end
  return one.count[3] == 0
end

local function answer_of(one, refused)
  local count = one.count
  if one.kind == 's' then
    -- Where it passes, nobody asks when which unit comes back.
    return refused and count or #count > 0 and {count[#count - 1], units_of(count)} or {}
  elseif one.kind == 'b' then
    return {count[1], count[2]}
  end
  return {count[3], count[2]}
end

local function settled(one, stored)
  local known, held = pcall(cmsgpack.unpack, stored or '\144')
  held = known and type(held) == 'table' and held or {}
  if one.kind == 's' then
    return settle_stamps(one.period, held)
  elseif one.kind == 'b' then
    return settle_debt(one.period, one.limit, held)
  end
  return settle_fixed(one.kind, one.period, held)
end

local stored, buckets, refused = redis.call('MGET', unpack(KEYS)), {}, false
for i = 1, #KEYS do
  local at = 5 * i - 3
  local one = {kind = ARGV[at], period = tonumber(ARGV[at + 1]), cost = tonumber(ARGV[at + 2])}
  one.limit, one.size = tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  one.count = settled(one, stored[i])
  refused = is_short(one) or refused
  buckets[i] = one
end

local takes = ARGV[1] == '1'
local answer = {refused and 1 or 0, second, micros}
for i = 1, #KEYS do
  local one = buckets[i]
  answer[i + 3] = answer_of(one, refused or not takes)
  if takes and not refused then
    add(one)
  end
  local new = not is_nothing(one) and cmsgpack.pack(one.count) or false
  if new and new ~= stored[i] then
    redis.call('SET', KEYS[i], new, 'PX', string.format('%.0f', max(1, lifetime(one))))
  elseif not new and stored[i] then
    redis.call('DEL', KEYS[i])
  end
end
return answer
