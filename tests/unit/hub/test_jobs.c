/* Jobs over a hub that does as it is told: the names of its repositories are its orders. */
#include "../store/stores.h"

#include "hub/jobs.h"

#include <pthread.h>
#include <stdatomic.h>

/* ---- the hub: "t/quick" completes, "t/bad" fails, "t/slow" runs until it is cancelled or released ---- */

#define TOTAL 1000000u

struct hub_pull {
    pthread_t thread;
    struct hub_ref ref;
    hub_progress_fn *progress;
    void *user;
    atomic_bool cancelled, over;
};

static atomic_int n_started, n_running, n_running_most, n_cancelled;
static atomic_bool released;       /* slow pulls may complete */
static atomic_uint slow_begins_at; /* bytes that a slow pull finds on disk */

const char *hub_pull_state_name(enum hub_pull_state state)
{
    static const char *const names[] = {"resolving", "running", "completed", "failed", "cancelled"};
    return names[state];
}

const char *hub_file_state_name(enum hub_file_state state)
{
    (void)state;
    return "running";
}

static void *pull_main(void *arg)
{
    struct hub_pull *p = arg;
    struct hub_file_progress file = {.path = "model.safetensors", .bytes_total = TOTAL, .state = HUB_FILE_RUNNING};
    struct hub_progress *now = calloc(1, sizeof *now);
    now->eta_s = -1;
    p->progress(p->user, now);
    now->state = HUB_PULL_RUNNING;
    now->bytes_total = TOTAL;
    now->files = &file;
    now->n_files = 1;
    bool slow = strcmp(p->ref.repo, "t/slow") == 0;
    now->bytes_done = slow ? atomic_load(&slow_begins_at) : 0;
    for (int i = 0; i < 4 || (slow && !atomic_load(&released) && !atomic_load(&p->cancelled)); i++) {
        if (now->bytes_done < TOTAL / 10 * 9)
            now->bytes_done += TOTAL / 100;
        file.bytes_done = now->bytes_done;
        now->fraction = (double)now->bytes_done / TOTAL;
        now->bytes_per_s = 1e6;
        p->progress(p->user, now);
        sleep_ms(5);
    }
    if (atomic_load(&p->cancelled)) {
        now->state = HUB_PULL_CANCELLED;
        err_set(&now->err, ERR_CANCELLED, "cancelled");
    } else if (strcmp(p->ref.repo, "t/bad") == 0) {
        now->state = HUB_PULL_FAILED;
        err_set(&now->err, ERR_NOT_FOUND, "The repository 't/bad' does not exist.");
    } else {
        now->state = HUB_PULL_COMPLETED;
        now->bytes_done = file.bytes_done = TOTAL;
        now->fraction = 1;
        strcpy(now->snapshot_dir, "/somewhere");
    }
    atomic_fetch_sub(&n_running, 1);
    p->progress(p->user, now);
    free(now);
    atomic_store(&p->over, true);
    return NULL;
}

struct hub_pull *hub_pull_start(struct hub *hub, const struct hub_ref *ref, hub_progress_fn *progress, void *user,
                                struct err *err)
{
    (void)hub;
    (void)err;
    struct hub_pull *p = calloc(1, sizeof *p);
    p->ref = *ref;
    p->progress = progress;
    p->user = user;
    atomic_fetch_add(&n_started, 1);
    int n = atomic_fetch_add(&n_running, 1) + 1;
    if (n > atomic_load(&n_running_most))
        atomic_store(&n_running_most, n);
    assert_int_equal(pthread_create(&p->thread, NULL, pull_main, p), 0);
    return p;
}

void hub_pull_cancel(struct hub_pull *p)
{
    atomic_store(&p->cancelled, true);
    atomic_fetch_add(&n_cancelled, 1);
}

bool hub_pull_wait(struct hub_pull *p, int wait_ms)
{
    (void)wait_ms;
    while (!atomic_load(&p->over))
        sleep_ms(1);
    return true;
}

void hub_pull_unref(struct hub_pull *p)
{
    pthread_join(p->thread, NULL);
    free(p);
}

/* ---- the tests ---- */

static char folder[64];
static struct store *store;
static atomic_int n_ended[STORE_STATUS_COUNT];

/* ---- a loader that answers when it is told to ---- */

static struct {
    char id[STORE_JOB_ID_BYTES];
    uint64_t token;
} asked;
static atomic_int n_asked;
static atomic_bool loads; /* else nothing is loaded, as where config.load is NULL */

static int set_up(void **state)
{
    (void)state;
    make_folder(folder);
    store = open_store("sqlite", folder);
    n_started = n_running = n_running_most = n_cancelled = 0;
    released = loads = false;
    n_asked = 0;
    slow_begins_at = 0;
    for (int i = 0; i < STORE_STATUS_COUNT; i++)
        n_ended[i] = 0;
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    store_close(store);
    remove_folder(folder);
    return 0;
}

static void on_end(void *user, const struct job_end *end)
{
    (void)user;
    atomic_fetch_add(&n_ended[end->status], 1);
    assert_true(end->status != STORE_COMPLETED || strcmp(end->snapshot_dir, "/somewhere") == 0);
}

static struct hub *the_hub(void *user, struct err *err)
{
    (void)user;
    (void)err;
    static int it;
    return (struct hub *)&it;
}

static void load(void *user, const struct job_end *end)
{
    (void)user;
    assert_true(end->request->preload && strcmp(end->snapshot_dir, "/somewhere") == 0);
    strcpy(asked.id, end->id);
    asked.token = end->token;
    atomic_fetch_add(&n_asked, 1);
}

static void wait_asked(int n)
{
    for (int i = 0; i < 3000 && n_asked < n; i++)
        sleep_ms(10);
    assert_int_equal(n_asked, n);
}

static struct jobs *open_jobs(struct store *s, const char *instance, size_t running_max, int64_t lease_ms)
{
    struct err err = {0};
    struct jobs_config config = {
        .store = s, .hub = the_hub, .instance = instance, .running_max = running_max, .lease_ms = lease_ms, .ended = on_end};
    config.load = loads ? load : NULL;
    struct jobs *j = jobs_open(&config, &err);
    assert_non_null(j);
    return j;
}

static void ask(const char *ref, char id[STORE_JOB_ID_BYTES])
{
    struct job_request job = {.preload = 1, .profile = "int8"};
    struct err err = {0};
    assert_true(hub_ref_parse(ref, &job.ref, &err));
    struct job_texts texts;
    struct store_request r;
    job_create_request(&job, &texts, &r);
    must(store, &r);
    strcpy(id, r.jobs[0].id);
    store_request_release(&r);
}

static void wait_status(const char *id, enum store_status status)
{
    for (int i = 0; i < 3000 && get_job(store, id).status != status; i++)
        sleep_ms(10);
    assert_int_equal(get_job(store, id).status, status);
}

static void wait_progress(const char *id, double least)
{
    for (int i = 0; i < 3000 && get_job(store, id).progress < least; i++)
        sleep_ms(10);
    assert_true(get_job(store, id).progress >= least);
}

static void completes(void **state)
{
    (void)state;
    struct jobs *j = open_jobs(store, "one", 2, 0);
    char id[STORE_JOB_ID_BYTES];
    ask("t/quick:Q4_K_M@v1", id);
    jobs_wake(j);
    double last = 0;
    for (int i = 0; i < 10000; i++) {
        struct store_job now = get_job(store, id);
        assert_true(now.progress >= last);
        last = now.progress;
        if (now.status == STORE_COMPLETED)
            break;
        assert_true(now.progress < 1);
        sleep_ms(2);
    }
    assert_true(last == 1);
    jobs_close(j);
    assert_int_equal(n_ended[STORE_COMPLETED], 1);
    struct store_request r = {.op = STORE_JOB_GET, .id = str_from(id)};
    must(store, &r);
    struct job_request back;
    struct err err = {0};
    assert_true(job_read_request(&r.jobs[0], &back, &err));
    assert_true(strcmp(back.ref.repo, "t/quick") == 0 && strcmp(back.ref.quant, "Q4_K_M") == 0);
    assert_true(strcmp(back.ref.revision, "v1") == 0 && strcmp(back.profile, "int8") == 0 && back.preload == 1);
    struct buf out;
    buf_init(&out, 1 << 16);
    job_write(&out, &r.jobs[0]);
    static const char *const parts[] = {"\"status\":\"completed\"",
                                        "\"model\":\"t/quick:Q4_K_M\"",
                                        "\"revision\":\"v1\"",
                                        "\"progress\":1,",
                                        "\"downloaded_bytes\":1000000,\"total_bytes\":1000000",
                                        "\"error\":null",
                                        "\"profile\":\"int8\"",
                                        "\"files\":[{\"name\":\"model.safetensors\"",
                                        "\"finished_at\":\"20"};
    for (size_t i = 0; i < sizeof parts / sizeof *parts; i++)
        if (!strstr(buf_str(&out).ptr, parts[i]))
            fail_msg("%s is not in %s", parts[i], buf_str(&out).ptr);
    buf_release(&out);
    store_request_release(&r);
}

static void fails(void **state)
{
    (void)state;
    struct jobs *j = open_jobs(store, "one", 2, 0);
    char id[STORE_JOB_ID_BYTES];
    ask("t/bad", id);
    jobs_wake(j);
    wait_status(id, STORE_FAILED);
    struct store_request r = {.op = STORE_JOB_GET, .id = str_from(id)};
    must(store, &r);
    assert_true(str_equal(r.jobs[0].error, STR("The repository 't/bad' does not exist.")));
    store_request_release(&r);
    r = create_request("k", "m"); /* a record that no pull made */
    r.text = STR("nonsense");
    must(store, &r);
    strcpy(id, r.jobs[0].id);
    store_request_release(&r);
    jobs_wake(j);
    wait_status(id, STORE_FAILED);
    jobs_close(j);
}

static void cancel(const char *id)
{
    struct store_request r = {.op = STORE_JOB_CANCEL, .id = str_from(id)};
    must(store, &r);
    store_request_release(&r);
}

static void is_cancelled(void **state)
{
    (void)state;
    struct jobs *j = open_jobs(store, "one", 1, 0);
    char running[STORE_JOB_ID_BYTES], queued[STORE_JOB_ID_BYTES];
    ask("t/slow", running);
    ask("t/quick", queued);
    jobs_wake(j);
    wait_progress(running, 0.02);
    size_t n, waiting;
    jobs_count(j, &n, &waiting);
    assert_true(n == 1 && waiting == 1);
    cancel(queued);
    assert_int_equal(get_job(store, queued).status, STORE_CANCELLED);
    cancel(running); /* without a wake: the next renewal tells */
    wait_status(running, STORE_CANCELLED);
    assert_int_equal(n_cancelled, 1);
    jobs_close(j);
    assert_int_equal(n_started, 1);
}

static void so_many_at_once(void **state)
{
    (void)state;
    char ids[8][STORE_JOB_ID_BYTES], ref[32];
    for (int i = 0; i < 8; i++) {
        snprintf(ref, sizeof ref, "t/quick@r%d", i);
        ask(ref, ids[i]);
    }
    struct jobs *j = open_jobs(store, "one", 3, 0);
    for (int i = 0; i < 8; i++)
        wait_status(ids[i], STORE_COMPLETED);
    jobs_close(j);
    assert_int_equal(n_running_most, 3);
    assert_int_equal(n_started, 8);
}

static void goes_on_after_a_restart(void **state)
{
    (void)state;
    struct jobs *j = open_jobs(store, "one", 2, 0);
    char id[STORE_JOB_ID_BYTES];
    ask("t/slow", id);
    jobs_wake(j);
    wait_progress(id, 0.05);
    jobs_close(j);
    struct store_job before = get_job(store, id);
    assert_int_equal(before.status, STORE_QUEUED);
    assert_int_equal(n_ended[STORE_QUEUED], 1);

    /* It begins at less than what was shown: what is shown stays. */
    j = open_jobs(store, "one", 2, 0);
    for (int i = 0; i < 20; i++) {
        assert_true(get_job(store, id).progress >= before.progress);
        sleep_ms(5);
    }
    released = true;
    wait_status(id, STORE_COMPLETED);
    jobs_close(j);
    assert_int_equal(get_job(store, id).claims, 2);
}

/* A process that died has its lease back at once when it starts again; another one has to wait until the lease is over. */
static void died(void **state)
{
    (void)state;
    char id[STORE_JOB_ID_BYTES];
    ask("t/quick", id);
    assert_true(claim_job(store, "one", LEASE_MS, NULL) > 0);
    struct jobs *other = open_jobs(store, "two", 2, 0);
    sleep_ms(50);
    assert_int_equal(n_started, 0);
    struct jobs *j = open_jobs(store, "one", 2, 0);
    wait_status(id, STORE_COMPLETED);
    assert_int_equal(n_started, 1);
    jobs_close(j);
    ask("t/quick@again", id);
    jobs_close(other);
    assert_true(claim_job(store, "one", 100, NULL) > 0 || get_job(store, id).status == STORE_COMPLETED);
    other = open_jobs(store, "two", 2, 0);
    wait_status(id, STORE_COMPLETED);
    jobs_close(other);
}

static void lost_its_lease(void **state)
{
    (void)state;
    struct jobs *j = open_jobs(store, "one", 2, 0);
    char id[STORE_JOB_ID_BYTES];
    ask("t/slow", id);
    jobs_wake(j);
    wait_progress(id, 0.02);
    struct store_request r = {.op = STORE_JOB_REQUEUE, .owner = STR("one")}; /* as if it had slept */
    must(store, &r);
    store_request_release(&r);
    uint64_t token = claim_job(store, "two", LEASE_MS, NULL);
    if (!token) { /* its own thread was faster: that too is a new claim */
        jobs_close(j);
        return;
    }
    for (int i = 0; i < 3000 && !n_cancelled; i++)
        sleep_ms(10);
    assert_int_equal(n_cancelled, 1);
    assert_int_equal(update_job(store, id, token, STORE_RUNNING, 0.5).status, STORE_RUNNING);
    jobs_close(j);
    assert_int_equal(get_job(store, id).status, STORE_RUNNING); /* the closing one left it alone */
    assert_int_equal(n_ended[STORE_QUEUED] + n_ended[STORE_CANCELLED], 0);
}

static void redis_goes_away(void **state)
{
    (void)state;
    struct redis_server redis = {0};
    if (!redis_start(&redis))
        skip();
    store_close(store);
    char url[64], id[STORE_JOB_ID_BYTES];
    redis_url(&redis, url);
    store = open_store(url, folder);
    struct jobs *j = open_jobs(store, "one", 2, 0);
    ask("t/slow", id);
    jobs_wake(j);
    wait_progress(id, 0.02);
    redis_kill(&redis);
    sleep_ms(100);
    released = true;
    for (int i = 0; i < 3000 && n_running; i++)
        sleep_ms(10);
    assert_int_equal(n_running, 0); /* the pull went on to its end */
    redis_begin(&redis);
    for (int i = 0; i < 3000 && !n_ended[STORE_COMPLETED]; i++)
        sleep_ms(10);
    wait_status(id, STORE_COMPLETED);
    jobs_close(j);
    assert_int_equal(n_started, 1);
    store_close(store);
    redis_stop(&redis);
    store = open_store("memory", folder);
}

static bool shows(const char *id, const char *part)
{
    struct store_request r = {.op = STORE_JOB_GET, .id = str_from(id)};
    must(store, &r);
    struct buf out;
    buf_init(&out, 1 << 16);
    job_write(&out, &r.jobs[0]);
    bool found = strstr(buf_str(&out).ptr, part);
    buf_release(&out);
    store_request_release(&r);
    return found;
}

/* A job with preload runs until its model is loaded, and holds no place of the pulls meanwhile. */
static void loads_what_it_pulled(void **state)
{
    (void)state;
    loads = true;
    struct jobs *j = open_jobs(store, "one", 1, 0);
    char id[STORE_JOB_ID_BYTES], other[STORE_JOB_ID_BYTES];
    ask("t/quick", id);
    jobs_wake(j);
    wait_asked(1);
    for (int i = 0; i < 3000 && !shows(id, "\"phase\":\"loading\""); i++)
        sleep_ms(10);
    struct store_job now = get_job(store, id);
    assert_true(now.status == STORE_RUNNING && now.progress < 1);
    uint64_t token = asked.token;
    ask("t/quick@v2", other);
    jobs_wake(j);
    wait_asked(2);
    jobs_loaded(j, id, token + 100, NULL); /* of an earlier claim */
    jobs_loaded(j, "job-none", token, NULL);
    struct err err = {0};
    err_set(&err, ERR_MEMORY, "It does not fit.");
    jobs_loaded(j, other, asked.token, &err);
    wait_status(other, STORE_COMPLETED);
    assert_true(get_job(store, other).progress == 1 && shows(other, "\"preload_error\":\"It does not fit.\",\"error\":null"));
    assert_int_equal(get_job(store, id).status, STORE_RUNNING);
    jobs_loaded(j, id, token, NULL);
    wait_status(id, STORE_COMPLETED);
    assert_true(get_job(store, id).progress == 1 &&
                shows(id, "\"phase\":\"completed\",\"error_code\":null,\"preload_error\":null"));
    jobs_close(j);
}

static void load_cut_off(void **state)
{
    (void)state;
    loads = true;
    struct jobs *j = open_jobs(store, "one", 2, 0);
    char id[STORE_JOB_ID_BYTES], other[STORE_JOB_ID_BYTES];
    ask("t/quick", id);
    jobs_wake(j);
    wait_asked(1);
    struct store_request r = {.op = STORE_JOB_CANCEL, .id = str_from(id)};
    must(store, &r);
    store_request_release(&r);
    jobs_wake(j);
    wait_status(id, STORE_CANCELLED);
    jobs_loaded(j, id, asked.token, NULL);
    ask("t/quick@v2", other);
    jobs_wake(j);
    wait_asked(2);
    uint64_t token = asked.token;
    jobs_close(j); /* it goes on with the next one */
    assert_int_equal(get_job(store, other).status, STORE_QUEUED);
    j = open_jobs(store, "one", 2, 0);
    wait_asked(3);
    jobs_loaded(j, other, token, NULL); /* the earlier one's */
    sleep_ms(50);
    assert_int_equal(get_job(store, other).status, STORE_RUNNING);
    jobs_loaded(j, other, asked.token, NULL);
    wait_status(other, STORE_COMPLETED);
    assert_int_equal(get_job(store, id).status, STORE_CANCELLED);
    jobs_close(j);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(completes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(fails, set_up, tear_down),
        cmocka_unit_test_setup_teardown(is_cancelled, set_up, tear_down),
        cmocka_unit_test_setup_teardown(so_many_at_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(goes_on_after_a_restart, set_up, tear_down),
        cmocka_unit_test_setup_teardown(died, set_up, tear_down),
        cmocka_unit_test_setup_teardown(lost_its_lease, set_up, tear_down),
        cmocka_unit_test_setup_teardown(loads_what_it_pulled, set_up, tear_down),
        cmocka_unit_test_setup_teardown(load_cut_off, set_up, tear_down),
        cmocka_unit_test_setup_teardown(redis_goes_away, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
