/* Lua for redis.c; see redis_scripts.h.
 *
 * Keys, all below "{inferd}:":
 *   job:ID          hash: a job's record                keys              hash: a job's key -> the last job of that key
 *   jobs            sorted set of ids by creation       status:N, model:M the same, of one status, of one model
 *   changed         ids by their last change            leases            running ids by the end of their lease
 *   token           counter of fencing tokens           lease:K, value:K  with a time to live
 *   session:O\nID   hash with a time to live            sessions          "O\nID" by the end of their time
 *   sessions:O      ids of one owner by last change */
#include "store/redis_scripts.h"

#define NOW \
    "local P = '" REDIS_PREFIX "'\n" \
    "local time = redis.call('TIME')\n" \
    "local now = time[1] * 1000 + math.floor(time[2] / 1000)\n"

/* show: a job as redis.c reads it. move: into another status, with all that hangs on it. */
#define JOBS \
    NOW "local function job(id) return P .. 'job:' .. id end\n" \
        "local function show(id, more)\n" \
        "  return redis.call('HMGET', job(id), 'id', 'status', 'progress', 'created_ms', 'changed_ms', 'finished_ms', 'token',\n" \
        "    'claims', 'cancel', 'owner', 'model', 'error', 'request', 'detail', more or 'none')\n" \
        "end\n" \
        "local function tell(id) redis.call('PUBLISH', '" REDIS_CHANNEL "', id) end\n" \
        "local function touch(id)\n" \
        "  redis.call('HSET', job(id), 'changed_ms', now)\n" \
        "  redis.call('ZADD', P .. 'changed', now, id)\n" \
        "end\n" \
        "local function move(id, to)\n" \
        "  local was = redis.call('HMGET', job(id), 'status', 'created_ms')\n" \
        "  redis.call('ZREM', P .. 'status:' .. was[1], id)\n" \
        "  redis.call('ZADD', P .. 'status:' .. to, was[2], id)\n" \
        "  redis.call('HSET', job(id), 'status', to, 'finished_ms', to > 1 and now or 0)\n" \
        "  if to ~= 1 then\n" \
        "    redis.call('HSET', job(id), 'owner', '')\n" \
        "    redis.call('ZREM', P .. 'leases', id)\n" \
        "  end\n" \
        "  touch(id)\n" \
        "end\n"

/* key, model, request, id, same_ms, active_max -> {created, job} or FULL */
const char *const redis_job_create =
    JOBS "local key, model, request, id, same, most = unpack(ARGV)\n"
         "local old = redis.call('HGET', P .. 'keys', key)\n"
         "if old then\n"
         "  local v = redis.call('HMGET', job(old), 'status', 'finished_ms')\n"
         "  local status = tonumber(v[1])\n"
         "  if status and (status < 2 or (status == 2 and tonumber(same) > 0 and tonumber(v[2]) > now - same)) then\n"
         "    return {0, show(old)}\n"
         "  end\n"
         "end\n"
         "if redis.call('ZCARD', P .. 'status:0') + redis.call('ZCARD', P .. 'status:1') >= tonumber(most) then\n"
         "  return {ok = 'FULL'}\n"
         "end\n"
         "redis.call('HSET', job(id), 'id', id, 'key', key, 'model', model, 'request', request, 'status', 0, 'progress', 0,\n"
         "  'created_ms', now, 'changed_ms', now, 'finished_ms', 0, 'token', 0, 'claims', 0, 'cancel', 0, 'owner', '',\n"
         "  'error', '', 'detail', '', 'files', '')\n"
         "redis.call('HSET', P .. 'keys', key, id)\n"
         "redis.call('ZADD', P .. 'jobs', now, id)\n"
         "redis.call('ZADD', P .. 'status:0', now, id)\n"
         "redis.call('ZADD', P .. 'model:' .. model, now, id)\n"
         "redis.call('ZADD', P .. 'changed', now, id)\n"
         "tell(id)\n"
         "return {1, show(id)}\n";

/* id -> job or NONE */
const char *const redis_job_get = JOBS "if redis.call('EXISTS', job(ARGV[1])) == 0 then return {ok = 'NONE'} end\n"
                                       "return show(ARGV[1], 'files')\n";

/* status or -1, model or '', since_ms, limit -> jobs, newest first. Where little has changed since then, that is sorted by ids,
 * which rise with creation; else the smallest set is gone through from its newest on. */
const char *const redis_job_list =
    JOBS "local status, model, since, limit = ARGV[1], ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[4])\n"
         "local sets, out = {}, {}\n"
         "if status ~= '-1' then sets[#sets + 1] = P .. 'status:' .. status end\n"
         "if model ~= '' then sets[#sets + 1] = P .. 'model:' .. model end\n"
         "if #sets == 0 then sets[1] = P .. 'jobs' end\n"
         "local function keep(marks, scores, least)\n"
         "  for i = 1, #marks do marks[i] = marks[i] and scores[i] and tonumber(scores[i]) >= least end\n"
         "end\n"
         "local function take(ids, skip)\n"
         "  local marks = {}\n"
         "  for i = 1, #ids do marks[i] = true end\n"
         "  for i = 1, #sets do\n"
         "    if i ~= skip then keep(marks, redis.call('ZMSCORE', sets[i], unpack(ids)), 0) end\n"
         "  end\n"
         "  if since > 0 then keep(marks, redis.call('ZMSCORE', P .. 'changed', unpack(ids)), since) end\n"
         "  for i = 1, #ids do\n"
         "    if marks[i] and #out < limit then out[#out + 1] = show(ids[i]) end\n"
         "  end\n"
         "end\n"
         "if since > 0 and redis.call('ZCOUNT', P .. 'changed', since, '+inf') <= 1000 then\n"
         "  local ids = redis.call('ZRANGEBYSCORE', P .. 'changed', since, '+inf')\n"
         "  table.sort(ids, function(a, b) return a > b end)\n"
         "  if #ids > 0 then take(ids) end\n"
         "  return out\n"
         "end\n"
         "local least = 1\n"
         "if #sets == 2 and redis.call('ZCARD', sets[2]) < redis.call('ZCARD', sets[1]) then least = 2 end\n"
         "local at, step = 0, #sets == 1 and since == 0 and math.min(limit, 1000) or 500\n"
         "while #out < limit do\n"
         "  local ids = redis.call('ZREVRANGE', sets[least], at, at + step - 1)\n"
         "  if #ids == 0 then break end\n"
         "  take(ids, least)\n"
         "  at = at + #ids\n"
         "end\n"
         "return out\n";

/* owner, lease_ms, limit (0 = only count) -> {queued, running, job or nothing} */
const char *const redis_job_claim =
    JOBS "local owner, lease, limit = unpack(ARGV)\n"
         "local got = {}\n"
         "while tonumber(limit) > 0 do\n"
         "  local id = redis.call('ZRANGE', P .. 'status:0', 0, 0)[1]\n"
         "  local left = redis.call('ZRANGEBYSCORE', P .. 'leases', '-inf', now, 'LIMIT', 0, 1)[1]\n"
         "  if left and (not id or left < id) then id = left end\n"
         "  if not id then break end\n"
         "  if redis.call('HGET', job(id), 'cancel') == '1' then\n"
         "    move(id, 4)\n"
         "    tell(id)\n"
         "  else\n"
         "    move(id, 1)\n"
         "    redis.call('HSET', job(id), 'owner', owner, 'token', redis.call('INCR', P .. 'token'))\n"
         "    redis.call('HINCRBY', job(id), 'claims', 1)\n"
         "    redis.call('ZADD', P .. 'leases', now + lease, id)\n"
         "    tell(id)\n"
         "    got = show(id)\n"
         "    break\n"
         "  end\n"
         "end\n"
         "return {redis.call('ZCARD', P .. 'status:0'), redis.call('ZCARD', P .. 'status:1'), got}\n";

/* id, token, status, progress, detail, files, error, lease_ms -> {status, cancel, progress, changed_ms} or FENCED */
const char *const redis_job_update = JOBS "local id, token, to, progress, detail, files, error, lease = unpack(ARGV)\n"
                                          "local v = redis.call('HMGET', job(id), 'status', 'token', 'cancel', 'progress')\n"
                                          "if v[1] ~= '1' or v[2] ~= token then return {ok = 'FENCED'} end\n"
                                          "to = tonumber(to)\n"
                                          "if v[3] == '1' and to ~= 1 then to = 4 end\n"
                                          "if tonumber(v[4]) > tonumber(progress) then progress = v[4] end\n"
                                          "redis.call('HSET', job(id), 'progress', progress, 'error', error)\n"
                                          "if detail ~= '' then redis.call('HSET', job(id), 'detail', detail) end\n"
                                          "if files ~= '' then redis.call('HSET', job(id), 'files', files) end\n"
                                          "if to == 1 then\n"
                                          "  redis.call('ZADD', P .. 'leases', now + lease, id)\n"
                                          "  touch(id)\n"
                                          "else\n"
                                          "  move(id, to)\n"
                                          "end\n"
                                          "tell(id)\n"
                                          "return {to, v[3], progress, now}\n";

/* id -> job or NONE */
const char *const redis_job_cancel =
    JOBS "local id = ARGV[1]\n"
         "local status = redis.call('HGET', job(id), 'status')\n"
         "if not status then return {ok = 'NONE'} end\n"
         "if tonumber(status) < 2 then\n"
         "  redis.call('HSET', job(id), 'cancel', 1)\n"
         "  local lease = redis.call('ZSCORE', P .. 'leases', id)\n"
         "  if status == '0' or not lease or tonumber(lease) < now then move(id, 4) else touch(id) end\n"
         "  tell(id)\n"
         "end\n"
         "return show(id, 'files')\n";

/* owner -> count */
const char *const redis_job_requeue = JOBS "local n = 0\n"
                                           "for _, id in ipairs(redis.call('ZRANGE', P .. 'status:1', 0, -1)) do\n"
                                           "  local v = redis.call('HMGET', job(id), 'owner', 'cancel')\n"
                                           "  if v[1] == ARGV[1] then\n"
                                           "    move(id, v[2] == '1' and 4 or 0)\n"
                                           "    tell(id)\n"
                                           "    n = n + 1\n"
                                           "  end\n"
                                           "end\n"
                                           "return n\n";

#define SESSIONS \
    NOW "local function session(owner, id) return P .. 'session:' .. owner .. '\\n' .. id end\n" \
        "local function show(id, key, more)\n" \
        "  local v = redis.call('HMGET', key, 'created_ms', 'changed_ms', 'expires_ms', 'version', 'n_messages', more or 'none')\n" \
        "  return {v[1] and id, v[1], v[2], v[3], v[4], v[5], v[6]}\n" \
        "end\n" \
        "local function forget(name)\n" \
        "  local at = string.find(name, '\\n', 1, true)\n" \
        "  redis.call('ZREM', P .. 'sessions', name)\n" \
        "  redis.call('ZREM', P .. 'sessions:' .. string.sub(name, 1, at - 1), string.sub(name, at + 1))\n" \
        "end\n" \
        "local function prune_sessions(most)\n" \
        "  for _, name in ipairs(redis.call('ZRANGEBYSCORE', P .. 'sessions', '-inf', now, 'LIMIT', 0, most)) do forget(name) end\n" \
        "end\n"

/* owner, id, ttl_ms -> session or NONE */
const char *const redis_session_get =
    SESSIONS "local key = session(ARGV[1], ARGV[2])\n"
             "local ends = redis.call('HGET', key, 'expires_ms')\n"
             "if not ends then return {ok = 'NONE'} end\n"
             "if tonumber(ARGV[3]) > 0 and now + ARGV[3] > tonumber(ends) then\n"
             "  redis.call('HSET', key, 'expires_ms', now + ARGV[3])\n"
             "  redis.call('PEXPIRE', key, ARGV[3])\n"
             "  redis.call('ZADD', P .. 'sessions', now + ARGV[3], ARGV[1] .. '\\n' .. ARGV[2])\n"
             "end\n"
             "return show(ARGV[2], key, 'text')\n";

/* owner, id, text, n_messages, version, ttl_ms, sessions_max -> session, CHANGED or FULL */
const char *const redis_session_put = SESSIONS
    "local owner, id, text, n, version, ttl, most = unpack(ARGV)\n"
    "local key = session(owner, id)\n"
    "local v = redis.call('HMGET', key, 'version', 'created_ms')\n"
    "if (v[1] or '0') ~= version then return {ok = 'CHANGED'} end\n"
    "if not v[1] and redis.call('ZCOUNT', P .. 'sessions', now, '+inf') >= tonumber(most) then return {ok = 'FULL'} end\n"
    "redis.call('HSET', key, 'text', text, 'n_messages', n, 'version', version + 1, 'created_ms', v[2] or now,\n"
    "  'changed_ms', now, 'expires_ms', now + ttl)\n"
    "redis.call('PEXPIRE', key, ttl)\n"
    "redis.call('ZADD', P .. 'sessions', now + ttl, owner .. '\\n' .. id)\n"
    "redis.call('ZADD', P .. 'sessions:' .. owner, now, id)\n"
    "return show(id, key)\n";

/* owner, id -> 1 or 0 */
const char *const redis_session_delete = SESSIONS "forget(ARGV[1] .. '\\n' .. ARGV[2])\n"
                                                  "return redis.call('DEL', session(ARGV[1], ARGV[2]))\n";

/* owner, limit -> sessions */
const char *const redis_session_list =
    SESSIONS "prune_sessions(10000)\n"
             "local out = {}\n"
             "if tonumber(ARGV[2]) == 0 then return out end\n"
             "for _, id in ipairs(redis.call('ZREVRANGE', P .. 'sessions:' .. ARGV[1], 0, ARGV[2] - 1)) do\n"
             "  out[#out + 1] = show(id, session(ARGV[1], id))\n"
             "end\n"
             "return out\n";

/* key, owner, ttl_ms -> {1, token} or {0, ms left} */
const char *const redis_lease_take = NOW "local key = P .. 'lease:' .. ARGV[1]\n"
                                         "local v = redis.call('HMGET', key, 'owner', 'token')\n"
                                         "if v[1] and v[1] ~= ARGV[2] then return {0, redis.call('PTTL', key)} end\n"
                                         "local token = v[2] or redis.call('INCR', P .. 'token')\n"
                                         "redis.call('HSET', key, 'owner', ARGV[2], 'token', token)\n"
                                         "redis.call('PEXPIRE', key, ARGV[3])\n"
                                         "return {1, tonumber(token)}\n";

/* key, owner */
const char *const redis_lease_give = NOW "local key = P .. 'lease:' .. ARGV[1]\n"
                                         "if redis.call('HGET', key, 'owner') == ARGV[2] then redis.call('DEL', key) end\n"
                                         "return 1\n";

/* key, text, ttl_ms -> {1} or {0, what is there} */
const char *const redis_value_claim = NOW "local key = P .. 'value:' .. ARGV[1]\n"
                                          "local there = redis.call('GET', key)\n"
                                          "if there then return {0, there} end\n"
                                          "redis.call('SET', key, ARGV[2], 'PX', ARGV[3])\n"
                                          "return {1}\n";

/* key, text, ttl_ms (0 = remove), was -> 1 or TAKEN */
const char *const redis_value_set =
    NOW "local key = P .. 'value:' .. ARGV[1]\n"
        "local there = ARGV[4] ~= '' and redis.call('GET', key)\n"
        "if there and there ~= ARGV[4] then return {ok = 'TAKEN'} end\n"
        "if tonumber(ARGV[3]) > 0 then redis.call('SET', key, ARGV[2], 'PX', ARGV[3]) else redis.call('DEL', key) end\n"
        "return 1\n";

/* kept_ms, kept_max */
const char *const redis_prune = SESSIONS
    "prune_sessions(1000)\n"
    "local function remove(id)\n"
    "  local v = redis.call('HMGET', P .. 'job:' .. id, 'status', 'model', 'key')\n"
    "  if v[1] and tonumber(v[1]) < 2 then return end\n"
    "  for _, set in ipairs({'jobs', 'changed', 'status:' .. (v[1] or '2'), 'model:' .. (v[2] or '')}) do\n"
    "    redis.call('ZREM', P .. set, id)\n"
    "  end\n"
    "  if v[3] and redis.call('HGET', P .. 'keys', v[3]) == id then redis.call('HDEL', P .. 'keys', v[3]) end\n"
    "  redis.call('DEL', P .. 'job:' .. id)\n"
    "end\n"
    "for _, id in ipairs(redis.call('ZRANGEBYSCORE', P .. 'changed', '-inf', now - ARGV[1], 'LIMIT', 0, 1000)) do remove(id) end\n"
    "local over = redis.call('ZCARD', P .. 'jobs') - ARGV[2]\n"
    "if over > 0 then\n"
    "  for _, id in ipairs(redis.call('ZRANGE', P .. 'jobs', 0, math.min(over, 1000) - 1)) do remove(id) end\n"
    "end\n"
    "return 1\n";
