-- init(args): METHOD PATH BODY_BYTES KEYS_FILE. Each request carries the next key of the file; {n} in PATH counts to 999.
local requests, turn = {}, 0

function init(args)
  local method, path, size, file = args[1], args[2], tonumber(args[3]), args[4]
  local body = size > 0 and string.rep("x", size) or nil
  local number = 0
  for key in io.lines(file) do
    local headers = { ["Host"] = "api.example.com", ["Authorization"] = "Bearer " .. key }
    if body then headers["Content-Type"] = "application/octet-stream" end
    local target = path:gsub("{n}", tostring(number % 1000))
    number = number + 1
    requests[number] = wrk.format(method, target, headers, body)
  end
end

function request()
  turn = turn % #requests + 1
  return requests[turn]
end

function done(summary, latency)
  local errors = summary.errors
  io.write(string.format(
    '\n@{"requests":%d,"microseconds":%d,"bytes":%d,"refused":%d,"broken":%d,"p50":%d,"p99":%d}\n',
    summary.requests, summary.duration, summary.bytes, errors.status,
    errors.connect + errors.read + errors.write + errors.timeout,
    latency:percentile(50), latency:percentile(99)))
end
