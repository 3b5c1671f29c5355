-- init(args): REQUESTS_FILE FIRST. The file has each request after a line with its length; they are sent in turn.
-- "{fresh}" becomes sixteen digits that no earlier request had; FIRST is the number to count them from.
local requests, turn, number = {}, 0, 0

-- A string, or a table of pieces, of which every second one is to be made anew.
local function parsed(text)
  local pieces, from = {}, 1
  while true do
    local first, last = text:find("{fresh}", from, true)
    if not first then break end
    pieces[#pieces + 1] = text:sub(from, first - 1)
    pieces[#pieces + 1] = ""
    from = last + 1
  end
  if #pieces == 0 then return text end
  pieces[#pieces + 1] = text:sub(from)
  return pieces
end

function init(args)
  local file = assert(io.open(args[1], "rb"))
  number = tonumber(args[2])
  for length in function() return file:read("*l") end do
    requests[#requests + 1] = parsed(file:read(tonumber(length)))
  end
  file:close()
end

function request()
  turn = turn % #requests + 1
  local wanted = requests[turn]
  if type(wanted) == "string" then return wanted end
  number = number + 1
  -- The first half looks random, the second counts. Both stay below 2^53, where numbers are exact.
  local fresh = string.format("%08x%08x", number % 1048576 * 2654435761 % 4294967296, number)
  for place = 2, #wanted, 2 do wanted[place] = fresh end
  return table.concat(wanted)
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n@{"requests":%d,"microseconds":%d,"bytes":%d,"refused":%d,"broken":%d,"p50":%d,"p99":%d}\n',
    summary.requests, summary.duration, summary.bytes, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
