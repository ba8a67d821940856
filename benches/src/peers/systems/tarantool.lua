-- The ring of records that a user would keep in Tarantool, as fast as Lua can do it: arguments are port, rows, folder,
-- `indexed` or `plain`.
--
-- A record arrives as an encoded tuple whose first field, the key, is a placeholder. The procedure writes the slot of the
-- ring there and hands the bytes to box_replace, the C function that space:replace ends in. Building Lua tables from
-- the fields and encoding them again, as space:insert does, takes twice the time. Replacing a slot evicts the oldest record.
local port, rows, folder, indexed = arg[1], tonumber(arg[2]), arg[3], arg[4] == 'indexed'

box.cfg{
    listen = '127.0.0.1:' .. port,
    wal_mode = 'none',
    checkpoint_interval = 0,
    memtx_memory = math.max(rows * 1500, 256 * 1024 * 1024),
    net_msg_max = 16384,
    readahead = 1024 * 1024,
    work_dir = folder,
    log = folder .. '/tarantool.log',
    feedback_enabled = false,
}
box.schema.user.grant('guest', 'super')
local space = box.schema.space.create('records')
space:create_index('primary', {type = 'TREE', parts = {{1, 'unsigned'}}})
if indexed then
    space:create_index('source', {type = 'TREE', unique = false, parts = {{3, 'string'}}})
end

local ffi = require('ffi')
ffi.cdef[[int box_replace(uint32_t space_id, const char *tuple, const char *tuple_end, struct tuple **result);]]
local box_replace, copy = ffi.C.box_replace, ffi.copy
local begin, commit = box.begin, box.commit
local band, rshift, sub = bit.band, bit.rshift, string.sub
local buffer = ffi.new('char[?]', 65536)
local key_bytes = ffi.cast('uint8_t *', buffer)
local id, taken, per_source = space.id, 0, {}

function store(batch)
    begin()
    for i = 1, #batch do
        local tuple = batch[i]
        local key = taken % rows
        taken = taken + 1
        copy(buffer, tuple, #tuple)
        -- 0x9f, then the key as 0xce and four bytes.
        key_bytes[2] = rshift(key, 24)
        key_bytes[3] = band(rshift(key, 16), 255)
        key_bytes[4] = band(rshift(key, 8), 255)
        key_bytes[5] = band(key, 255)
        if box_replace(id, buffer, buffer + #tuple, nil) ~= 0 then
            box.rollback()
            box.error()
        end
        -- The key, then the 16 bytes of the id, then those of the source.
        local source = sub(tuple, 25, 40)
        per_source[source] = (per_source[source] or 0) + 1
    end
    commit()
end

-- The space's number, and the counters per source: how many, and their sum.
function totals()
    local sources, sum = 0, 0
    for _, count in pairs(per_source) do
        sources, sum = sources + 1, sum + count
    end
    return id, sources, sum
end
