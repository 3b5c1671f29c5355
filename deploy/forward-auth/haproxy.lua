-- Asks the sidecar about a request: `http-request lua.sidecar` in haproxy.cfg. It sets txn.sidecar_allows to true only
-- if the sidecar allows the request; haproxy.cfg refuses everything else, so an error in this script lets nothing pass.
local address, milliseconds = os.getenv("SIDECAR_ADDRESS"), tonumber(os.getenv("SIDECAR_TIMEOUT"))

-- Headers of the connection or of the body, which is not sent to the sidecar; and headers that are set below.
local not_sent = {
    ["host"] = true, ["connection"] = true, ["keep-alive"] = true, ["proxy-connection"] = true, ["te"] = true,
    ["trailer"] = true, ["upgrade"] = true, ["expect"] = true, ["content-length"] = true, ["transfer-encoding"] = true,
    ["x-forwarded-method"] = true, ["x-forwarded-uri"] = true, ["x-forwarded-host"] = true, ["x-forwarded-for"] = true,
}
-- HAProxy writes these itself.
local not_passed_on = {
    ["connection"] = true, ["keep-alive"] = true, ["content-length"] = true, ["transfer-encoding"] = true,
}
-- Identity headers, and headers for the client. haproxy.cfg reads them as txn.sidecar.x_auth_subject.
local told = {
    "x-auth-subject", "x-auth-scopes", "x-auth-key-id", "x-request-id",
    "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset", "ratelimit", "ratelimit-policy",
}

-- HAProxy counts values from 0, and Lua from 1.
local function values(found)
    local all = {}
    for i = 0, #found do
        if found[i] ~= nil then all[#all + 1] = found[i] end
    end
    return all
end

local function question(txn)
    local headers = {}
    local received = txn.http:req_get_headers()
    for name, found in pairs(received) do
        if not not_sent[name] then headers[name] = values(found) end
    end
    headers["x-forwarded-method"] = {txn.f:method()}
    headers["x-forwarded-uri"] = {txn.f:url()}
    headers["x-forwarded-host"] = received["host"] and values(received["host"])
    headers["x-forwarded-for"] = {txn.f:src()}
    return headers
end

local function refuse(txn, answer)
    local reply = txn:reply({status = answer.status, reason = answer.reason})
    for name, found in pairs(answer.headers) do
        if not not_passed_on[name] then
            for _, value in ipairs(values(found)) do reply:add_header(name, value) end
        end
    end
    if txn.f:method() ~= "HEAD" then reply:set_body(answer.body) end
    txn:done(reply)
end

core.register_action("sidecar", {"http-req"}, function(txn)
    local answer = core.httpclient():get({
        url = "http://" .. address .. "/caddy", headers = question(txn), timeout = milliseconds,
    })
    -- If the sidecar does not answer, HAProxy itself makes a 503 or a 504; that is passed on, too.
    if answer == nil or answer.status == nil or answer.status < 200 then return end
    if answer.status ~= 200 then return refuse(txn, answer) end
    for _, name in ipairs(told) do
        local found = answer.headers[name] and values(answer.headers[name])[1]
        if found ~= nil and found ~= "" then txn:set_var("txn.sidecar." .. name:gsub("-", "_"), found) end
    end
    txn:set_var("txn.sidecar_allows", true)
end, 0)
