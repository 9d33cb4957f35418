/* What only the file has: earlier schemas, damage, locks, the process killed between any two writes. */
#include "stores.h"

#include "store/impl.h"

#include <fcntl.h>
#include <sqlite3.h>

static char folder[64], path[128];

static int set_up(void **state)
{
    (void)state;
    make_folder(folder);
    snprintf(path, sizeof path, "%s/store.sqlite", folder);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    remove_folder(folder);
    return 0;
}

static void exec(sqlite3 *db, const char *sql)
{
    char *why = NULL;
    if (sqlite3_exec(db, sql, NULL, NULL, &why) != SQLITE_OK) {
        print_error("%s: %s\n", sql, why);
        fail();
    }
}

/* A file as the program of that time left it: the first `version` steps, and rows in what they made. */
static void make_old(size_t version)
{
    sqlite3 *db;
    char text[64];
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    exec(db, "PRAGMA journal_mode=WAL");
    for (size_t i = 0; i < version; i++)
        exec(db, sqlite_steps[i]);
    snprintf(text, sizeof text, "PRAGMA user_version=%zu", version);
    exec(db, text);
    if (version >= 1)
        exec(db, "INSERT INTO jobs(id, key, model, status, progress, created_ms, changed_ms, request) VALUES"
                 "('job-000000000001-00000001', 'k1', 'org/a', 0, 0, 1, 1, '{}'),"
                 "('job-000000000002-00000002', 'k2', 'org/b', 2, 1, 2, 3, '{\"x\":1}')");
    if (version >= 2)
        exec(db, "INSERT INTO sessions VALUES('', 'old', 7, 1, 1, 99999999999999, 2, '[1,2]')");
    if (version >= 3) {
        exec(db, "INSERT INTO leases VALUES('lease', 'one', 41, 99999999999999)");
        exec(db, "INSERT INTO entries VALUES('value', 'text', 99999999999999)");
    }
    sqlite3_close(db);
}

static void every_earlier_schema(void **state)
{
    (void)state;
    for (size_t version = 0; version <= sqlite_n_steps; version++) {
        unlink(path);
        make_old(version);
        for (int again = 0; again < 2; again++) {
            struct store *s = open_store("sqlite", folder);
            struct store_request r;
            if (version >= 1) {
                r = (struct store_request){.op = STORE_JOB_LIST, .status = STORE_STATUS_COUNT, .limit = 10};
                must(s, &r);
                assert_int_equal(r.n_jobs, 2);
                assert_int_equal(r.jobs[0].status, STORE_COMPLETED);
                assert_true(str_equal(r.jobs[0].request, STR("{\"x\":1}")) && str_equal(r.jobs[1].model, STR("org/a")));
                store_request_release(&r);
            }
            if (version >= 2) {
                r = (struct store_request){.op = STORE_SESSION_GET, .id = STR("old")};
                must(s, &r);
                assert_true(r.sessions[0].version == 7 && str_equal(r.sessions[0].text, STR("[1,2]")));
                store_request_release(&r);
            }
            if (version >= 3) {
                r = (struct store_request){.op = STORE_LEASE_TAKE, .key = STR("lease"), .owner = STR("two"), .ttl_ms = 5};
                must_fail(s, &r, ERR_CONFLICT);
                r = (struct store_request){.op = STORE_VALUE_CLAIM, .key = STR("value"), .text = STR("x"), .ttl_ms = 5};
                must(s, &r);
                assert_true(str_equal(r.found, STR("text")));
                store_request_release(&r);
            }
            r = (struct store_request){.op = STORE_SESSION_PUT, .id = STR("new"), .text = STR("[]"), .ttl_ms = 60000};
            if (again)
                r.token = 1;
            must(s, &r);
            store_request_release(&r);
            store_close(s);
        }
    }
}

/* Stopped between two steps or inside one, a file stays what it was. */
static void a_step_that_fails(void **state)
{
    (void)state;
    make_old(1);
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    exec(db, "CREATE TABLE sessions(x)"); /* in the second step's way */
    sqlite3_close(db);
    struct err err = {0};
    assert_null(store_open("sqlite", folder, &err));
    assert_non_null(strstr(err.text, "from 1 to 2"));
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    exec(db, "DROP TABLE sessions");
    sqlite3_close(db);
    struct store *s = open_store("sqlite", folder);
    assert_int_equal(get_job(s, "job-000000000001-00000001").status, STORE_QUEUED);
    store_close(s);
}

static void newer_schema(void **state)
{
    (void)state;
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    exec(db, "CREATE TABLE t(x)");
    exec(db, "PRAGMA user_version=99");
    sqlite3_close(db);
    struct err err = {0};
    assert_null(store_open("sqlite", folder, &err));
    assert_true(strstr(err.text, "99") && strstr(err.text, path) && strstr(err.text, "newer"));
}

static void write_file(const char *bytes, size_t n)
{
    int fd = open(path, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0666);
    assert_int_equal(write(fd, bytes, n), (ssize_t)n);
    close(fd);
}

static void damaged(void **state)
{
    (void)state;
    char junk[8192];
    memset(junk, 'j', sizeof junk);
    write_file(junk, sizeof junk);
    struct err err = {0};
    assert_null(store_open("sqlite", folder, &err));
    assert_int_equal(err.code, ERR_IO);
    assert_true(strstr(err.text, path) && strstr(err.text, "docs/operations.md"));

    /* Whole at the start, rotten behind it: told by the operation that meets it, and by the store's state. */
    unlink(path);
    struct store *s = open_store("sqlite", folder);
    char id[STORE_JOB_ID_BYTES];
    for (int i = 0; i < 200; i++) {
        struct store_request r = {.op = STORE_SESSION_PUT, .id = {id, 0}, .text = {junk, 8000}, .ttl_ms = LEASE_MS};
        snprintf(id, sizeof id, "s%d", i);
        r.id = str_from(id);
        must(s, &r);
        store_request_release(&r);
    }
    store_close(s);
    int fd = open(path, O_RDWR | O_CLOEXEC);
    off_t size = lseek(fd, 0, SEEK_END);
    for (off_t at = 1 << 16; at + 4096 <= size; at += 4096)
        assert_int_equal(pwrite(fd, junk, 4096, at), 4096);
    close(fd);
    s = store_open("sqlite", folder, &err);
    bool told = s == NULL && err.code == ERR_IO;
    for (int i = 0; s && i < 200 && !told; i++) {
        struct store_request r = {.op = STORE_SESSION_GET};
        snprintf(id, sizeof id, "s%d", i);
        r.id = str_from(id);
        if (!store_call(s, &r, &err) && err.code == ERR_IO) {
            struct store_state now;
            store_state(s, &now);
            told = strstr(err.text, "docs/operations.md") && !now.available && strstr(now.why, "damaged");
        }
        store_request_release(&r);
    }
    assert_true(told);
    store_close(s);
}

static void locked(void **state)
{
    (void)state;
    struct store *s = open_store("sqlite", folder);
    sqlite3 *db;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    exec(db, "BEGIN EXCLUSIVE");
    struct store_request r = create_request("k", "m");
    must_fail(s, &r, ERR_UNAVAILABLE);
    struct store_state now;
    store_state(s, &now);
    assert_true(!now.available && strstr(now.why, "locked"));
    exec(db, "ROLLBACK");
    must(s, &r); /* goes on by itself */
    store_request_release(&r);
    store_state(s, &now);
    assert_true(now.available);
    sqlite3_close(db);
    store_close(s);
}

static void bad_places(void **state)
{
    (void)state;
    struct err err = {0};
    assert_null(store_open("sqlite:/nowhere/at/all.sqlite", folder, &err));
    assert_non_null(strstr(err.text, "/nowhere/at/all.sqlite"));
    assert_null(store_open("postgres://x", folder, &err));
    assert_int_equal(err.code, ERR_USAGE);
    static const char *const bad[] = {"rediss://x",  "redis://",    "redis://:x@",          "redis://h:99999",
                                      "redis://h:x", "redis://h/x", "redis+unix://relative"};
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        assert_null(store_open(bad[i], folder, &err));
        assert_int_equal(err.code, ERR_USAGE);
    }
}

/* Two processes (here: two stores) on one file: the same record, one owner. */
static void two_on_one_file(void **state)
{
    (void)state;
    struct store *a = open_store("sqlite", folder), *b = open_store("sqlite", folder);
    char first[STORE_JOB_ID_BYTES], second[STORE_JOB_ID_BYTES];
    create_job(a, "k", "m", first);
    create_job(b, "k", "m", second);
    assert_string_equal(first, second);
    assert_true(claim_job(b, "b", LEASE_MS, NULL) > 0);
    assert_int_equal(claim_job(a, "a", LEASE_MS, NULL), 0);
    store_close(a);
    store_close(b);
}

/* The child changes and says what was acknowledged; it is killed at a random moment. Nothing it was told is lost. */
struct told {
    uint32_t n_jobs, updates, session_version;
    char id[STORE_JOB_ID_BYTES]; /* of the job that `updates` are of; jobs cut off earlier come first */
};

static void change_until_killed(int out)
{
    struct err err = {0};
    struct store *s = store_open("sqlite", folder, &err);
    struct told t = {0};
    struct store_request list = {.op = STORE_JOB_LIST, .status = STORE_STATUS_COUNT, .limit = 10000};
    if (!s || !store_call(s, &list, &err))
        _exit(3);
    t.n_jobs = (uint32_t)list.n_jobs;
    char key[32];
    struct store_request session = {.op = STORE_SESSION_GET, .id = STR("s")};
    if (store_call(s, &session, &err))
        t.session_version = (uint32_t)session.sessions[0].version;
    struct store_request back = {.op = STORE_JOB_REQUEUE, .owner = STR("child")};
    if (!store_call(s, &back, &err))
        _exit(3);
    for (;;) {
        struct store_request r = create_request(key, "m");
        snprintf(key, sizeof key, "k%u", t.n_jobs);
        r.key = str_from(key);
        if (!store_call(s, &r, &err))
            _exit(3);
        t.n_jobs++;
        t.updates = 0;
        if (write(out, &t, sizeof t) != sizeof t)
            _exit(0);
        r = (struct store_request){.op = STORE_JOB_CLAIM, .owner = STR("child"), .ttl_ms = LEASE_MS, .limit = 1};
        if (!store_call(s, &r, &err) || !r.n_jobs)
            _exit(3);
        uint64_t token = r.jobs[0].token;
        strcpy(t.id, r.jobs[0].id);
        for (int i = 1; i <= 20; i++) {
            r = update_request(t.id, token, i == 20 ? STORE_COMPLETED : STORE_RUNNING, i / 20.0);
            struct store_request put = {
                .op = STORE_SESSION_PUT, .id = STR("s"), .text = STR("text"), .ttl_ms = LEASE_MS, .token = t.session_version};
            if (!store_call(s, &r, &err) || !store_call(s, &put, &err))
                _exit(3);
            t.updates = (uint32_t)i;
            t.session_version++;
            if (write(out, &t, sizeof t) != sizeof t)
                _exit(0);
        }
    }
}

static void killed_between_any_two_writes(void **state)
{
    (void)state;
    const char *asked = getenv("INFERD_TEST_KILLS");
    int rounds = asked ? atoi(asked) : 25;
    struct told last = {0};
    uint32_t n_silent = 0; /* rounds in a row that ended before anything was told */
    unsigned seed = (unsigned)clock_wall_ns();
    print_message("seed %u\n", seed);
    srand(seed);
    for (int round = 0; round < rounds; round++) {
        int ends[2];
        assert_int_equal(pipe(ends), 0);
        fcntl(ends[0], F_SETPIPE_SZ, 1 << 20);
        pid_t pid = fork();
        if (pid == 0) {
            close(ends[0]);
            change_until_killed(ends[1]);
        }
        close(ends[1]);
        sleep_ms(5 + rand() % 40);
        kill(pid, SIGKILL);
        int status;
        waitpid(pid, &status, 0);
        assert_true(WIFSIGNALED(status));
        struct told t;
        n_silent++;
        while (read(ends[0], &t, sizeof t) == sizeof t) {
            last = t;
            n_silent = 0;
        }
        close(ends[0]);
        struct store *s = open_store("sqlite", folder);
        struct store_request list = {.op = STORE_JOB_LIST, .status = STORE_STATUS_COUNT, .limit = 10000};
        must(s, &list);
        assert_true(list.n_jobs >= last.n_jobs && list.n_jobs <= last.n_jobs + n_silent + 1);
        if (last.updates) {
            struct store_job job = get_job(s, last.id);
            assert_true(job.progress >= last.updates / 20.0);
            assert_int_equal(job.status == STORE_COMPLETED, job.progress == 1);
        }
        for (size_t i = 0; i < list.n_jobs; i++) /* a job is over exactly when its last update was kept */
            assert_int_equal(list.jobs[i].status == STORE_COMPLETED, list.jobs[i].progress == 1);
        store_request_release(&list);
        struct store_request session = {.op = STORE_SESSION_GET, .id = STR("s")};
        if (last.session_version) {
            must(s, &session);
            assert_true(session.sessions[0].version >= last.session_version);
            store_request_release(&session);
        }
        store_close(s);
    }
    assert_true(last.n_jobs > 0 && last.session_version > 0);
}

/* ---- killed in the n-th write to the file or its log, for every n ---- */

static long writes_left; /* of the child; the last is its end ... */
static bool torn;        /* ... after half of its bytes */
static ssize_t (*real_pwrite)(int fd, const void *bytes, size_t n, off_t at);

static ssize_t write_or_die(int fd, const void *bytes, size_t n, off_t at)
{
    if (--writes_left > 0)
        return real_pwrite(fd, bytes, n, at);
    if (torn && real_pwrite(fd, bytes, n / 2, at) < 0)
        _exit(4);
    raise(SIGKILL);
    return -1;
}

enum { OPENED = 1, CREATED, CLAIMED, UPDATED, PUT, VALUE, COMPLETED, SECOND, CANCELLED, DELETED, CLOSED };

static void ack(int out, char what)
{
    if (write(out, &what, 1) != 1)
        _exit(3);
}

static void do_all(int out)
{
    char first[STORE_JOB_ID_BYTES], second[STORE_JOB_ID_BYTES];
    struct store *s = open_store("sqlite", folder);
    ack(out, OPENED);
    create_job(s, "k1", "m1", first);
    ack(out, CREATED);
    uint64_t token = claim_job(s, "one", LEASE_MS, NULL);
    ack(out, CLAIMED);
    update_job(s, first, token, STORE_RUNNING, 0.5);
    ack(out, UPDATED);
    struct store_request put = {.op = STORE_SESSION_PUT, .id = STR("s"), .text = STR("text"), .ttl_ms = LEASE_MS};
    must(s, &put);
    ack(out, PUT);
    struct store_request value = {.op = STORE_VALUE_CLAIM, .key = STR("v"), .text = STR("mine"), .ttl_ms = LEASE_MS};
    must(s, &value);
    ack(out, VALUE);
    update_job(s, first, token, STORE_COMPLETED, 1);
    ack(out, COMPLETED);
    create_job(s, "k2", "m2", second);
    ack(out, SECOND);
    struct store_request cancel = {.op = STORE_JOB_CANCEL, .id = str_from(second)};
    must(s, &cancel);
    ack(out, CANCELLED);
    struct store_request gone = {.op = STORE_SESSION_DELETE, .id = STR("s")};
    must(s, &gone);
    ack(out, DELETED);
    store_close(s); /* a checkpoint: into the file itself */
    ack(out, CLOSED);
}

/* What was acknowledged is there; what came after it may be there, wholly. */
static void check_all(char acked)
{
    struct store *s = open_store("sqlite", folder);
    struct store_request list = {.op = STORE_JOB_LIST, .status = STORE_STATUS_COUNT, .limit = 10};
    must(s, &list);
    assert_true(list.n_jobs <= 2 && list.n_jobs >= (size_t)(acked >= CREATED) + (acked >= SECOND));
    for (size_t i = 0; i < list.n_jobs; i++) {
        const struct store_job *j = &list.jobs[i];
        bool first = str_equal(j->model, STR("m1"));
        assert_true(first || str_equal(j->model, STR("m2")));
        assert_int_equal(j->status == STORE_COMPLETED, j->progress == 1);
        assert_true(!first || acked < CLAIMED || j->claims == 1);
        assert_true(!first || acked < UPDATED || j->progress >= 0.5);
        assert_true(!first || acked < COMPLETED || j->status == STORE_COMPLETED);
        assert_true(first || acked < CANCELLED || j->status == STORE_CANCELLED);
    }
    store_request_release(&list);
    struct store_request session = {.op = STORE_SESSION_GET, .id = STR("s")};
    struct err err = {0};
    bool there = store_call(s, &session, &err);
    assert_true(there || err.code == ERR_NOT_FOUND);
    assert_true(!there || str_equal(session.sessions[0].text, STR("text")));
    assert_true(there ? acked < DELETED : acked < PUT || acked >= CANCELLED);
    store_request_release(&session);
    struct store_request value = {.op = STORE_VALUE_CLAIM, .key = STR("v"), .text = STR("other"), .ttl_ms = LEASE_MS};
    must(s, &value);
    assert_true(value.created ? acked < VALUE : str_equal(value.found, STR("mine")));
    store_request_release(&value);
    store_close(s);
}

static void killed_in_every_write(void **state)
{
    (void)state;
    bool whole = false;
    long n_kills = 0;
    for (long n = 1; !whole; n++, n_kills++) {
        int ends[2];
        char acked = 0, next;
        assert_int_equal(pipe(ends), 0);
        pid_t pid = fork();
        if (pid == 0) {
            sqlite3_initialize();
            sqlite3_vfs *vfs = sqlite3_vfs_find(NULL);
            const char *name = vfs->xGetSystemCall(vfs, "pwrite64") ? "pwrite64" : "pwrite";
            real_pwrite = (ssize_t(*)(int, const void *, size_t, off_t))vfs->xGetSystemCall(vfs, name);
            writes_left = (n + 1) / 2;
            torn = n % 2 == 0;
            vfs->xSetSystemCall(vfs, name, (sqlite3_syscall_ptr)write_or_die);
            do_all(ends[1]);
            _exit(0);
        }
        close(ends[1]);
        int status;
        waitpid(pid, &status, 0);
        while (read(ends[0], &next, 1) == 1)
            acked = next;
        close(ends[0]);
        whole = WIFEXITED(status);
        assert_true(whole ? WEXITSTATUS(status) == 0 && acked == CLOSED : WTERMSIG(status) == SIGKILL);
        check_all(acked);
        remove_folder(folder);
        make_folder(folder);
        snprintf(path, sizeof path, "%s/store.sqlite", folder);
    }
    print_message("%ld kills\n", n_kills - 1);
    assert_true(n_kills > 20);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(every_earlier_schema, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_step_that_fails, set_up, tear_down),
        cmocka_unit_test_setup_teardown(newer_schema, set_up, tear_down),
        cmocka_unit_test_setup_teardown(damaged, set_up, tear_down),
        cmocka_unit_test_setup_teardown(locked, set_up, tear_down),
        cmocka_unit_test_setup_teardown(bad_places, set_up, tear_down),
        cmocka_unit_test_setup_teardown(two_on_one_file, set_up, tear_down),
        cmocka_unit_test_setup_teardown(killed_between_any_two_writes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(killed_in_every_write, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
