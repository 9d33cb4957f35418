/* What store.h promises, of every place: in memory, in a file, in Redis. */
#include "stores.h"

struct place_under_test {
    const char *url;
    char folder[64], redis_name[64];
    struct redis_server redis;
    struct store *store;
};

static int set_up(void **state, const char *url)
{
    struct place_under_test *p = calloc(1, sizeof *p);
    *state = p;
    make_folder(p->folder);
    p->url = url;
    if (strcmp(url, "redis") == 0) {
        if (!redis_start(&p->redis))
            return 0;
        redis_url(&p->redis, p->redis_name);
        p->url = p->redis_name;
    }
    p->store = open_store(p->url, p->folder);
    return 0;
}

static int set_up_memory(void **state)
{
    return set_up(state, "memory");
}

static int set_up_sqlite(void **state)
{
    return set_up(state, "sqlite");
}

static int set_up_redis(void **state)
{
    return set_up(state, "redis");
}

static int tear_down(void **state)
{
    struct place_under_test *p = *state;
    store_close(p->store);
    if (p->redis.port)
        redis_stop(&p->redis);
    remove_folder(p->folder);
    free(p);
    return 0;
}

static struct store *store_of(void **state)
{
    struct place_under_test *p = *state;
    if (!p->store)
        skip();
    return p->store;
}

static void refuses_when_stopped(void **state)
{
    struct store *s = store_of(state);
    struct store_request r = {.op = STORE_JOB_GET, .id = STR("job-1")};
    struct store_state now;
    struct err err = {0};
    store_stop(s);
    assert_false(store_submit(s, &r, &err));
    assert_int_equal(err.code, ERR_DRAINING);
    store_state(s, &now);
    assert_int_equal(now.n_waiting, 0);
    store_stop(s);
}

static void one_job_a_key(void **state)
{
    struct store *s = store_of(state);
    struct store_request a = create_request("pull a", "org/a"), b = create_request("pull a", "org/a");
    must(s, &a);
    must(s, &b);
    assert_int_equal(a.created, 1);
    assert_int_equal(b.created, 0);
    assert_string_equal(a.jobs[0].id, b.jobs[0].id);
    assert_int_equal(b.jobs[0].status, STORE_QUEUED);
    assert_true(str_equal(b.jobs[0].model, STR("org/a")) && str_equal(b.jobs[0].request, STR("{\"repo\":\"a/b\"}")));
    char other[STORE_JOB_ID_BYTES], id[STORE_JOB_ID_BYTES], again[STORE_JOB_ID_BYTES];
    create_job(s, "pull b", "org/b", other);
    assert_string_not_equal(a.jobs[0].id, other);
    uint64_t token = claim_job(s, "one", LEASE_MS, id);
    assert_string_equal(id, a.jobs[0].id);
    store_request_release(&a);
    store_request_release(&b);
    update_job(s, id, token, STORE_COMPLETED, 1);
    struct store_request fresh = create_request("pull a", "org/a");
    fresh.ttl_ms = 60000; /* one that completed within a minute will do */
    must(s, &fresh);
    assert_string_equal(fresh.jobs[0].id, id);
    assert_int_equal(fresh.jobs[0].status, STORE_COMPLETED);
    store_request_release(&fresh);
    create_job(s, "pull a", "org/a", again);
    assert_string_not_equal(again, id);
    assert_true(strcmp(again, id) > 0 && strcmp(again, other) > 0);
}

static void life_of_a_job(void **state)
{
    struct store *s = store_of(state);
    char id[STORE_JOB_ID_BYTES], got[STORE_JOB_ID_BYTES];
    create_job(s, "k", "m", id);
    assert_int_equal(get_job(s, id).status, STORE_QUEUED);
    uint64_t token = claim_job(s, "one", LEASE_MS, got);
    assert_string_equal(id, got);
    assert_true(token > 0);
    assert_int_equal(claim_job(s, "two", LEASE_MS, NULL), 0);
    struct store_job j = update_job(s, id, token, STORE_RUNNING, 0.5);
    assert_int_equal(j.status, STORE_RUNNING);
    assert_true(j.progress == 0.5);
    assert_true(update_job(s, id, token, STORE_RUNNING, 0.25).progress == 0.5); /* never falls */
    struct store_request r = update_request(id, token, STORE_RUNNING, 0.75);
    r.detail = STR("\"a\":1");
    r.files = STR("[{\"name\":\"x\"}]");
    must(s, &r);
    store_request_release(&r);
    update_job(s, id, token, STORE_RUNNING, 0.8); /* empty texts leave what is there */
    r = (struct store_request){.op = STORE_JOB_GET, .id = str_from(id)};
    must(s, &r);
    assert_true(str_equal(r.jobs[0].detail, STR("\"a\":1")) && str_equal(r.jobs[0].files, STR("[{\"name\":\"x\"}]")));
    assert_true(str_equal(r.jobs[0].owner, STR("one")) && r.jobs[0].claims == 1 && r.jobs[0].finished_ms == 0);
    store_request_release(&r);
    r = update_request(id, token, STORE_FAILED, 0.8);
    r.text = STR("why");
    must(s, &r);
    store_request_release(&r);
    r = (struct store_request){.op = STORE_JOB_GET, .id = str_from(id)};
    must(s, &r);
    assert_int_equal(r.jobs[0].status, STORE_FAILED);
    assert_true(str_equal(r.jobs[0].error, STR("why")) && r.jobs[0].finished_ms >= r.jobs[0].created_ms);
    assert_true(str_equal(r.jobs[0].files, STR("[{\"name\":\"x\"}]")));
    store_request_release(&r);
    r = update_request(id, token, STORE_RUNNING, 1); /* what is over stays over */
    must_fail(s, &r, ERR_CONFLICT);
    r = (struct store_request){.op = STORE_JOB_GET, .id = STR("job-nowhere")};
    must_fail(s, &r, ERR_NOT_FOUND);
}

static void lease_and_fence(void **state)
{
    struct store *s = store_of(state);
    char id[STORE_JOB_ID_BYTES], got[STORE_JOB_ID_BYTES];
    create_job(s, "k", "m", id);
    uint64_t first = claim_job(s, "one", 30, NULL);
    assert_true(first > 0);
    sleep_ms(60);
    uint64_t second = claim_job(s, "two", LEASE_MS, got);
    assert_true(second > first);
    assert_string_equal(id, got);
    assert_int_equal(get_job(s, id).claims, 2);
    struct store_request r = update_request(id, first, STORE_COMPLETED, 1);
    must_fail(s, &r, ERR_CONFLICT); /* the old owner wakes up */
    assert_int_equal(get_job(s, id).status, STORE_RUNNING);
    update_job(s, id, second, STORE_QUEUED, 0.1); /* given back */
    assert_int_equal(get_job(s, id).status, STORE_QUEUED);
    uint64_t third = claim_job(s, "one", SHORT_MS, NULL);
    assert_true(third > second);
    update_job(s, id, third, STORE_RUNNING, 0.2); /* renews for LEASE_MS */
    sleep_ms(SHORT_MS + 30);
    assert_int_equal(claim_job(s, "two", LEASE_MS, NULL), 0);
    r = (struct store_request){.op = STORE_JOB_REQUEUE, .owner = STR("two")};
    must(s, &r);
    store_request_release(&r);
    assert_int_equal(get_job(s, id).status, STORE_RUNNING);
    r = (struct store_request){.op = STORE_JOB_REQUEUE, .owner = STR("one")};
    must(s, &r);
    store_request_release(&r);
    assert_int_equal(get_job(s, id).status, STORE_QUEUED);
    r = update_request(id, third, STORE_RUNNING, 0.3);
    must_fail(s, &r, ERR_CONFLICT);
}

static enum store_status cancel_job(struct store *s, const char *id)
{
    struct store_request r = {.op = STORE_JOB_CANCEL, .id = str_from(id)};
    must(s, &r);
    enum store_status status = r.jobs[0].status;
    store_request_release(&r);
    return status;
}

static void cancels(void **state)
{
    struct store *s = store_of(state);
    char id[STORE_JOB_ID_BYTES];
    create_job(s, "queued", "m", id);
    assert_int_equal(cancel_job(s, id), STORE_CANCELLED);
    assert_int_equal(cancel_job(s, id), STORE_CANCELLED); /* again is no error */
    assert_true(get_job(s, id).finished_ms > 0);
    assert_int_equal(claim_job(s, "one", LEASE_MS, NULL), 0);

    create_job(s, "running", "m", id);
    uint64_t token = claim_job(s, "one", LEASE_MS, NULL);
    assert_int_equal(cancel_job(s, id), STORE_RUNNING);
    assert_int_equal(update_job(s, id, token, STORE_RUNNING, 0.1).cancel, 1);               /* the owner is told */
    assert_int_equal(update_job(s, id, token, STORE_COMPLETED, 1).status, STORE_CANCELLED); /* too late to complete */
    assert_int_equal(get_job(s, id).status, STORE_CANCELLED);

    create_job(s, "dead owner", "m", id);
    claim_job(s, "one", 20, NULL);
    sleep_ms(50);
    assert_int_equal(cancel_job(s, id), STORE_CANCELLED);

    create_job(s, "owner dies", "m", id);
    claim_job(s, "one", SHORT_MS, NULL);
    assert_int_equal(cancel_job(s, id), STORE_RUNNING);
    sleep_ms(SHORT_MS + 30);
    assert_int_equal(claim_job(s, "two", LEASE_MS, NULL), 0); /* it is ended, not taken over */
    assert_int_equal(get_job(s, id).status, STORE_CANCELLED);

    create_job(s, "owner starts again", "m", id);
    claim_job(s, "one", LEASE_MS, NULL);
    cancel_job(s, id);
    struct store_request r = {.op = STORE_JOB_REQUEUE, .owner = STR("one")};
    must(s, &r);
    store_request_release(&r);
    assert_int_equal(get_job(s, id).status, STORE_CANCELLED);
    r = (struct store_request){.op = STORE_JOB_CANCEL, .id = STR("job-nowhere")};
    must_fail(s, &r, ERR_NOT_FOUND);
}

static size_t list_jobs(struct store *s, enum store_status status, const char *model, int64_t since_ms, size_t limit,
                        char first[STORE_JOB_ID_BYTES])
{
    struct store_request r = {
        .op = STORE_JOB_LIST, .status = status, .model = str_from(model), .since_ms = since_ms, .limit = limit};
    must(s, &r);
    for (size_t i = 1; i < r.n_jobs; i++)
        assert_true(strcmp(r.jobs[i].id, r.jobs[i - 1].id) < 0);
    for (size_t i = 0; i < r.n_jobs; i++) {
        assert_true(status == STORE_STATUS_COUNT || r.jobs[i].status == status);
        assert_true(!*model || str_equal(r.jobs[i].model, str_from(model)));
        assert_true(r.jobs[i].changed_ms >= since_ms);
    }
    if (first && r.n_jobs)
        strcpy(first, r.jobs[0].id);
    size_t n = r.n_jobs;
    store_request_release(&r);
    return n;
}

static void lists(void **state)
{
    struct store *s = store_of(state);
    char ids[30][STORE_JOB_ID_BYTES], first[STORE_JOB_ID_BYTES];
    for (int i = 0; i < 30; i++) {
        char key[16];
        snprintf(key, sizeof key, "k%d", i);
        create_job(s, key, i % 3 ? "org/a" : "org/b", ids[i]);
        if (i % 5 == 0)
            cancel_job(s, ids[i]);
    }
    assert_int_equal(list_jobs(s, STORE_STATUS_COUNT, "", 0, 100, first), 30);
    assert_string_equal(first, ids[29]);
    assert_int_equal(list_jobs(s, STORE_STATUS_COUNT, "", 0, 7, NULL), 7);
    assert_int_equal(list_jobs(s, STORE_STATUS_COUNT, "", 0, 0, NULL), 0);
    assert_int_equal(list_jobs(s, STORE_CANCELLED, "", 0, 100, first), 6);
    assert_string_equal(first, ids[25]);
    assert_int_equal(list_jobs(s, STORE_QUEUED, "org/b", 0, 100, NULL), 8);
    assert_int_equal(list_jobs(s, STORE_RUNNING, "", 0, 100, NULL), 0);
    assert_int_equal(list_jobs(s, STORE_STATUS_COUNT, "org/none", 0, 100, NULL), 0);
    sleep_ms(5);
    cancel_job(s, ids[4]);
    int64_t changed = get_job(s, ids[4]).changed_ms;
    assert_int_equal(list_jobs(s, STORE_STATUS_COUNT, "", changed, 100, first), 1);
    assert_string_equal(first, ids[4]);
    assert_int_equal(list_jobs(s, STORE_CANCELLED, "org/a", changed, 100, NULL), 1);
    assert_int_equal(list_jobs(s, STORE_QUEUED, "", changed, 100, NULL), 0);
    assert_int_equal(list_jobs(s, STORE_STATUS_COUNT, "", changed + 1000, 100, NULL), 0);
}

static void counts_and_limits(void **state)
{
    struct store *s = store_of(state);
    char id[STORE_JOB_ID_BYTES], key[24];
    for (int i = 0; i < STORE_JOBS_ACTIVE_MAX; i++) {
        snprintf(key, sizeof key, "k%d", i);
        create_job(s, key, "m", id);
    }
    struct store_request r = create_request("one more", "m");
    must_fail(s, &r, ERR_QUEUE_FULL);
    r = (struct store_request){.op = STORE_JOB_CLAIM, .owner = STR("one"), .ttl_ms = LEASE_MS, .limit = 0};
    must(s, &r);
    assert_true(r.n_queued == STORE_JOBS_ACTIVE_MAX && r.n_running == 0 && r.n_jobs == 0);
    store_request_release(&r);
    r.limit = 1;
    must(s, &r);
    assert_true(r.n_queued == STORE_JOBS_ACTIVE_MAX - 1 && r.n_running == 1 && r.n_jobs == 1);
    store_request_release(&r);
    char *huge = calloc(1, STORE_KEY_BYTES_MAX + 2);
    memset(huge, 'x', STORE_KEY_BYTES_MAX + 1);
    r = create_request(huge, "m");
    must_fail(s, &r, ERR_INVALID_REQUEST);
    free(huge);
}

static struct store_request session_request(enum store_op op, const char *owner, const char *id)
{
    return (struct store_request){
        .op = op, .owner = str_from(owner), .id = str_from(id), .ttl_ms = op == STORE_SESSION_PUT ? LEASE_MS : 0};
}

static uint64_t put_session(struct store *s, const char *owner, const char *id, uint64_t version, const char *text,
                            int64_t ttl_ms)
{
    struct store_request r = session_request(STORE_SESSION_PUT, owner, id);
    r.token = version;
    r.text = str_from(text);
    r.n_messages = strlen(text);
    r.ttl_ms = ttl_ms;
    must(s, &r);
    uint64_t now = r.sessions[0].version;
    assert_true(r.sessions[0].expires_ms == r.sessions[0].changed_ms + ttl_ms);
    store_request_release(&r);
    return now;
}

static void sessions(void **state)
{
    struct store *s = store_of(state);
    struct store_request r = session_request(STORE_SESSION_GET, "", "one");
    must_fail(s, &r, ERR_NOT_FOUND);
    assert_int_equal(put_session(s, "", "one", 0, "[1]", LEASE_MS), 1);
    assert_int_equal(put_session(s, "", "one", 1, "[1,2]", LEASE_MS), 2);
    r = session_request(STORE_SESSION_PUT, "", "one");
    r.token = 1;
    r.text = STR("late");
    must_fail(s, &r, ERR_CONFLICT);
    r = session_request(STORE_SESSION_PUT, "", "gone");
    r.token = 3;
    must_fail(s, &r, ERR_CONFLICT);
    r = session_request(STORE_SESSION_GET, "", "one");
    must(s, &r);
    assert_true(str_equal(r.sessions[0].text, STR("[1,2]")) && r.sessions[0].version == 2 && r.sessions[0].n_messages == 5);
    store_request_release(&r);
    r = session_request(STORE_SESSION_GET, "anna", "one"); /* another owner's are others */
    must_fail(s, &r, ERR_NOT_FOUND);
    put_session(s, "anna", "one", 0, "hers", LEASE_MS);
    sleep_ms(3);
    put_session(s, "", "two", 0, "x", LEASE_MS);
    put_session(s, "", "short", 0, "x", SHORT_MS);
    r = session_request(STORE_SESSION_LIST, "", "");
    r.limit = 10;
    must(s, &r);
    assert_int_equal(r.n_sessions, 3);
    assert_true(str_equal(r.sessions[2].id, STR("one"))); /* the one that changed first is last */
    store_request_release(&r);
    sleep_ms(SHORT_MS + 30);
    must(s, &r);
    assert_int_equal(r.n_sessions, 2);
    assert_true(str_equal(r.sessions[0].id, STR("two")) && r.sessions[0].text.len == 0);
    store_request_release(&r);
    r = session_request(STORE_SESSION_GET, "", "short");
    must_fail(s, &r, ERR_NOT_FOUND);
    assert_int_equal(put_session(s, "", "short", 0, "new", LEASE_MS), 1);
    put_session(s, "", "used", 0, "x", SHORT_MS);
    r = session_request(STORE_SESSION_GET, "", "used");
    r.ttl_ms = LEASE_MS; /* somebody uses it: it does not run out */
    must(s, &r);
    store_request_release(&r);
    sleep_ms(SHORT_MS + 30);
    assert_int_equal(put_session(s, "", "used", 1, "y", 40), 2);
    sleep_ms(80);
    must_fail(s, &r, ERR_NOT_FOUND);
    r = session_request(STORE_SESSION_DELETE, "", "one");
    must(s, &r);
    store_request_release(&r);
    must_fail(s, &r, ERR_NOT_FOUND);
    r = session_request(STORE_SESSION_GET, "anna", "one");
    must(s, &r);
    assert_true(str_equal(r.sessions[0].text, STR("hers")));
    store_request_release(&r);
}

static void leases(void **state)
{
    struct store *s = store_of(state);
    struct store_request a = {.op = STORE_LEASE_TAKE, .key = STR("session x"), .owner = STR("one"), .ttl_ms = LEASE_MS};
    struct store_request b = {.op = STORE_LEASE_TAKE, .key = STR("session x"), .owner = STR("two"), .ttl_ms = LEASE_MS};
    must(s, &a);
    uint64_t token = a.token;
    store_request_release(&a);
    must_fail(s, &b, ERR_CONFLICT);
    must(s, &a); /* renews */
    assert_int_equal(a.token, token);
    store_request_release(&a);
    struct store_request wrong = {.op = STORE_LEASE_GIVE, .key = STR("session x"), .owner = STR("two")};
    must(s, &wrong);
    store_request_release(&wrong);
    must_fail(s, &b, ERR_CONFLICT);
    struct store_request give = {.op = STORE_LEASE_GIVE, .key = STR("session x"), .owner = STR("one")};
    must(s, &give);
    store_request_release(&give);
    b.ttl_ms = 30;
    must(s, &b);
    assert_true(b.token > token);
    token = b.token;
    store_request_release(&b);
    sleep_ms(60);
    must(s, &a); /* its time was over */
    assert_true(a.token > token);
    store_request_release(&a);
}

static void values(void **state)
{
    struct store *s = store_of(state);
    struct store_request r = {.op = STORE_VALUE_CLAIM, .key = STR("idempotency x"), .text = STR("mine"), .ttl_ms = LEASE_MS};
    must(s, &r);
    assert_int_equal(r.created, 1);
    store_request_release(&r);
    r.text = STR("yours");
    must(s, &r);
    assert_int_equal(r.created, 0);
    assert_true(str_equal(r.found, STR("mine")));
    store_request_release(&r);
    struct store_request set = {.op = STORE_VALUE_SET, .key = STR("idempotency x"), .text = STR("done"), .ttl_ms = SHORT_MS};
    must(s, &set);
    store_request_release(&set);
    must(s, &r);
    assert_true(str_equal(r.found, STR("done")));
    store_request_release(&r);
    sleep_ms(SHORT_MS + 30);
    must(s, &r);
    assert_int_equal(r.created, 1);
    store_request_release(&r);
    set.ttl_ms = 0;
    must(s, &set);
    store_request_release(&set);
    must(s, &r);
    assert_int_equal(r.created, 1);
    store_request_release(&r);
    /* held by what was put there */
    set = (struct store_request){
        .op = STORE_VALUE_SET, .key = STR("idempotency x"), .text = STR("late"), .was = STR("mine"), .ttl_ms = LEASE_MS};
    must_fail(s, &set, ERR_CONFLICT);
    set.ttl_ms = 0;
    must_fail(s, &set, ERR_CONFLICT);
    must(s, &r);
    assert_true(!r.created && str_equal(r.found, STR("yours")));
    store_request_release(&r);
    set = (struct store_request){
        .op = STORE_VALUE_SET, .key = STR("idempotency x"), .text = STR("yours"), .was = STR("yours"), .ttl_ms = 30};
    must(s, &set);
    store_request_release(&set);
    sleep_ms(50);
    set.ttl_ms = LEASE_MS; /* it ran out, and nobody claimed it */
    must(s, &set);
    store_request_release(&set);
    must(s, &r);
    assert_true(!r.created && str_equal(r.found, STR("yours")));
    store_request_release(&r);
    set.ttl_ms = 0;
    must(s, &set);
    store_request_release(&set);
}

struct seen {
    char ids[64][STORE_JOB_ID_BYTES];
    _Atomic int n;
};

static void on_change(void *user, const char *id)
{
    struct seen *seen = user;
    if (seen->n < 64) {
        strcpy(seen->ids[seen->n], id);
        seen->n++;
    }
}

static void watching(void **state)
{
    struct store *s = store_of(state);
    struct seen seen = {.n = 0};
    char id[STORE_JOB_ID_BYTES];
    store_watch(s, on_change, &seen);
    create_job(s, "k", "m", id);
    uint64_t token = claim_job(s, "one", LEASE_MS, NULL);
    update_job(s, id, token, STORE_RUNNING, 0.5);
    cancel_job(s, id);
    update_job(s, id, token, STORE_RUNNING, 0.5);
    update_job(s, id, token, STORE_CANCELLED, 0.5);
    for (int i = 0; i < 3000 && seen.n < 6; i++)
        sleep_ms(10);
    assert_int_equal(seen.n, 6);
    for (int i = 0; i < 6; i++)
        assert_string_equal(seen.ids[i], id);
    store_watch(s, NULL, NULL);
}

static void text_is_kept_as_it_is(void **state)
{
    struct store *s = store_of(state);
    size_t len = (size_t)1 << 20;
    char *text = malloc(len);
    for (size_t i = 0; i < len; i++)
        text[i] = (char)(1 + i * 131 % 127);
    struct store_request r = session_request(STORE_SESSION_PUT, "", "quotes ' \" \\ % $1");
    r.text = (struct str){text, len};
    must(s, &r);
    store_request_release(&r);
    r = session_request(STORE_SESSION_GET, "", "quotes ' \" \\ % $1");
    must(s, &r);
    assert_int_equal(r.sessions[0].text.len, len);
    assert_memory_equal(r.sessions[0].text.ptr, text, len);
    store_request_release(&r);
    free(text);
}

#define ALL(up) \
    cmocka_unit_test_setup_teardown(one_job_a_key, up, tear_down), \
        cmocka_unit_test_setup_teardown(refuses_when_stopped, up, tear_down), \
        cmocka_unit_test_setup_teardown(life_of_a_job, up, tear_down), \
        cmocka_unit_test_setup_teardown(lease_and_fence, up, tear_down), \
        cmocka_unit_test_setup_teardown(cancels, up, tear_down), cmocka_unit_test_setup_teardown(lists, up, tear_down), \
        cmocka_unit_test_setup_teardown(counts_and_limits, up, tear_down), \
        cmocka_unit_test_setup_teardown(sessions, up, tear_down), cmocka_unit_test_setup_teardown(leases, up, tear_down), \
        cmocka_unit_test_setup_teardown(values, up, tear_down), cmocka_unit_test_setup_teardown(watching, up, tear_down), \
        cmocka_unit_test_setup_teardown(text_is_kept_as_it_is, up, tear_down)

int main(void)
{
    const struct CMUnitTest tests[] = {ALL(set_up_memory), ALL(set_up_sqlite), ALL(set_up_redis)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
