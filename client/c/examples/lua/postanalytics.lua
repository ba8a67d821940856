--- The client of postanalytics for LuaJIT: OpenResty, Kong, APISIX, and NGINX with libnginx-mod-http-lua.
--
-- docs/c.md has the NGINX configuration. One client for each worker, made after fork: in init_worker_by_lua. Nothing here
-- yields, so it may be called in every phase, log_by_lua too.
local ffi = require "ffi"

-- From postanalytics.h, which says what the fields mean.
ffi.cdef [[
typedef struct pa_client pa_client;
typedef struct pa_bytes { const char *data; size_t length; } pa_bytes;
typedef struct pa_config {
  size_t struct_size;
  const char *const *servers; size_t servers_length;
  const uint8_t *node_id; const char *node_name;
  uint64_t queue_bytes, batch_bytes, batch_records_max, batch_records_aim;
  uint64_t linger_us_min, linger_us_max, connect_timeout_ms, record_time_limit_ms;
  uint32_t replay, reserved;
} pa_config;
typedef struct pa_hit {
  size_t struct_size;
  pa_bytes point, payload;
  uint32_t rule_id; uint16_t attack_type; uint8_t severity, reserved;
} pa_hit;
typedef struct pa_request {
  size_t struct_size;
  uint8_t client_ip[16], request_id[16];
  int32_t application; uint32_t flags;
  uint64_t event_us, tenant, request_bytes, response_bytes;
  uint32_t response_us, detection_us;
  uint16_t server_port, status;
  uint8_t method, scheme, http_version, reserved;
  pa_bytes host, path, query, user_agent, referer, session, user, raw_headers, raw_body;
  const pa_hit *hits; size_t hits_length;
  const void *extensions; size_t extensions_length;
} pa_request;
typedef struct pa_stats {
  size_t struct_size;
  uint64_t tnt_errors, offered, accepted, refused, refused_full, refused_too_large, refused_other;
  uint64_t acked, lost, in_doubt, queued, in_flight, queue_bytes;
} pa_stats;
const char *pa_last_error(void);
int pa_ip_parse(const char *text, uint8_t *ip);
int pa_ip_from_bytes(const uint8_t *bytes, size_t length, uint8_t *ip);
int pa_method(pa_bytes name);
int pa_client_new(const pa_config *config, pa_client **client);
int pa_client_send(const pa_client *client, const pa_request *request);
int pa_client_flush(const pa_client *client, uint64_t timeout_ms);
int pa_client_stats(const pa_client *client, pa_stats *stats);
void pa_client_free(pa_client *client);
int pa_denylist_lookup(const pa_client *client, const uint8_t *ip, int32_t application);
]]

local library = ffi.load("libpostanalytics_client.so.0")
local lists = { "denylist", "graylist" }
local texts = { "host", "path", "query", "user_agent", "referer", "session", "user", "raw_headers", "raw_body" }
local numbers = { "application", "flags", "event_us", "tenant", "request_bytes", "response_bytes", "response_us",
    "detection_us", "server_port", "status", "scheme", "http_version" }

local Client = {}
Client.__index = Client
local module = {}

local function check(code)
    if code < 0 then return nil, ffi.string(library.pa_last_error()) end
    return true
end

-- 4 or 16 bytes, as in ngx.var.binary_remote_addr, or a text. No text of an address has 4 bytes; one of 16 holds ":" or
-- letters of an address only, where bytes hold that by a chance of one in 10^19.
local function put_ip(ip, place)
    if #ip == 4 or (#ip == 16 and ip:find("[^%x:.]")) then
        return check(library.pa_ip_from_bytes(ffi.cast("const uint8_t *", ip), #ip, place))
    end
    return check(library.pa_ip_parse(ip, place))
end

--- Makes a client. options: servers (a list of "HOST:PORT"), node_name, queue_bytes. nil and a text if it fails.
function module.new(options)
    local names = options.servers or {}
    local servers = ffi.new("const char *[?]", #names + 1, names)
    local config = ffi.new("pa_config", { struct_size = ffi.sizeof("pa_config") })
    config.servers, config.servers_length = servers, #names
    config.node_name = options.node_name
    config.queue_bytes = options.queue_bytes or 0
    local place = ffi.new("pa_client *[1]")
    local ok, why = check(library.pa_client_new(config, place))
    if not ok then return nil, why end
    local client = ffi.gc(place[0], library.pa_client_free)
    return setmetatable({ client = client, request = ffi.new("pa_request"), ip = ffi.new("uint8_t[16]") }, Client)
end

--- Sends a request: a table with ip, method and the fields of pa_request; hits is a list of tables with type, severity,
-- rule_id, point and payload. Never waits. nil and a text if it was not taken.
function Client:send(fields)
    local request = self.request
    ffi.fill(request, ffi.sizeof(request))
    request.struct_size, request.application = ffi.sizeof(request), -1
    local ok, why = put_ip(fields.ip, request.client_ip)
    if not ok then return nil, why end
    for _, name in ipairs(numbers) do
        if fields[name] then request[name] = fields[name] end
    end
    for _, name in ipairs(texts) do
        local text = fields[name]
        if text then request[name].data, request[name].length = text, #text end
    end
    if fields.method then request.method = library.pa_method({ fields.method, #fields.method }) end
    local found = fields.hits or {}
    local hits = ffi.new("pa_hit[?]", #found + 1)
    for number, hit in ipairs(found) do
        local place, point, payload = hits[number - 1], hit.point or "", hit.payload or ""
        place.struct_size = ffi.sizeof("pa_hit")
        place.attack_type, place.severity, place.rule_id = hit.type or 0, hit.severity or 0, hit.rule_id or 0
        place.point.data, place.point.length = point, #point
        place.payload.data, place.payload.length = payload, #payload
    end
    request.hits, request.hits_length = hits, #found
    return check(library.pa_client_send(self.client, request))
end

--- "denylist", "graylist" or nil: what to do with requests of this address.
function Client:lookup(ip, application)
    if not put_ip(ip, self.ip) then return nil end
    return lists[library.pa_denylist_lookup(self.client, self.ip, application or -1)]
end

--- Waits until everything sent so far is settled. It blocks the worker: for tests.
function Client:flush(timeout_ms)
    return check(library.pa_client_flush(self.client, timeout_ms))
end

--- The counters, as numbers.
function Client:stats()
    local stats = ffi.new("pa_stats", { struct_size = ffi.sizeof("pa_stats") })
    local ok, why = check(library.pa_client_stats(self.client, stats))
    if not ok then return nil, why end
    local of = {}
    for _, name in ipairs { "tnt_errors", "offered", "accepted", "refused", "acked", "lost", "in_doubt", "queued", "in_flight" } do
        of[name] = tonumber(stats[name])
    end
    return of
end

return module
