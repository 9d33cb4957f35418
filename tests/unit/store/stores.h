/* What the store's tests share: a folder of their own, a Redis of their own, requests in one line. */
#ifndef INFERD_TEST_STORES_H
#define INFERD_TEST_STORES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>

#include <cmocka.h>

#include "base/clock.h"
#include "store/store.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/prctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#define LEASE_MS 60000
#define SHORT_MS 400 /* runs out in a test, and not before the next call on a machine that stands still for a moment */

static inline void make_folder(char out[64])
{
    strcpy(out, "/tmp/inferd-store-XXXXXX");
    assert_non_null(mkdtemp(out));
}

static inline void remove_folder(const char *path)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", path);
    assert_int_equal(system(command), 0);
}

static inline void sleep_ms(long ms)
{
    struct timespec t = {ms / 1000, ms % 1000 * 1000000};
    nanosleep(&t, NULL);
}

/* ---- a Redis of our own ---- */

struct redis_server {
    pid_t pid;
    int port;
    char folder[64];
};

static inline int try_connect(int port)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    int ok = connect(fd, (struct sockaddr *)&a, sizeof a) == 0;
    close(fd);
    return ok;
}

static inline void redis_begin(struct redis_server *s)
{
    char port[16];
    snprintf(port, sizeof port, "%d", s->port);
    s->pid = fork();
    if (s->pid == 0) {
        prctl(PR_SET_PDEATHSIG, SIGKILL);
        if (!freopen("/dev/null", "w", stdout))
            _exit(1);
        execlp("redis-server", "redis-server", "--port", port, "--bind", "127.0.0.1", "--dir", s->folder, "--save", "",
               "--appendonly", "yes", "--appendfsync", "no", (char *)NULL);
        _exit(127);
    }
    for (int i = 0; i < 3000 && !try_connect(s->port); i++)
        sleep_ms(10);
    assert_true(try_connect(s->port));
}

/* False where there is no redis-server: the test skips. */
static inline int redis_start(struct redis_server *s)
{
    if (system("command -v redis-server >/dev/null 2>&1") != 0)
        return 0;
    /* Below those that the system gives to connections: none of them has it while the server is not there. */
    bool free = false;
    for (unsigned i = (unsigned)getpid(); !free; i++) {
        s->port = (int)(16384 + i * 7919 % 16384);
        struct sockaddr_in a = {
            .sin_family = AF_INET, .sin_port = htons((uint16_t)s->port), .sin_addr = {htonl(INADDR_LOOPBACK)}};
        int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        free = bind(fd, (struct sockaddr *)&a, sizeof a) == 0;
        close(fd);
    }
    make_folder(s->folder);
    redis_begin(s);
    return 1;
}

static inline void redis_kill(struct redis_server *s)
{
    if (s->pid > 0) {
        kill(s->pid, SIGKILL);
        waitpid(s->pid, NULL, 0);
        s->pid = 0;
    }
}

static inline void redis_stop(struct redis_server *s)
{
    redis_kill(s);
    remove_folder(s->folder);
}

static inline void redis_url(const struct redis_server *s, char out[64])
{
    snprintf(out, 64, "redis://127.0.0.1:%d/3", s->port);
}

/* ---- requests ---- */

static inline struct store *open_store(const char *url, const char *folder)
{
    struct err err = {0};
    struct store *s = store_open(url, folder, &err);
    if (!s)
        print_error("%s\n", err.text);
    assert_non_null(s);
    struct store_state state;
    for (int i = 0; i < 3000; i++) {
        store_state(s, &state);
        if (state.available)
            break;
        sleep_ms(10);
    }
    assert_true(state.available);
    return s;
}

/* Carries it out; what it answered is in `r`, to be released. */
static inline void must(struct store *s, struct store_request *r)
{
    struct err err = {0};
    if (!store_call(s, r, &err)) {
        print_error("operation %d: %s\n", (int)r->op, err.text);
        fail();
    }
}

/* It fails with this code and a text. */
static inline void must_fail(struct store *s, struct store_request *r, enum err_code code)
{
    struct err err = {0};
    assert_false(store_call(s, r, &err));
    assert_int_equal(err.code, code);
    assert_true(strlen(err.text) > 10);
    store_request_release(r);
}

static inline struct store_request create_request(const char *key, const char *model)
{
    return (struct store_request){
        .op = STORE_JOB_CREATE, .key = str_from(key), .model = str_from(model), .text = STR("{\"repo\":\"a/b\"}")};
}

/* Creates a job and gives its id. */
static inline void create_job(struct store *s, const char *key, const char *model, char id[STORE_JOB_ID_BYTES])
{
    struct store_request r = create_request(key, model);
    must(s, &r);
    assert_int_equal(r.n_jobs, 1);
    strcpy(id, r.jobs[0].id);
    store_request_release(&r);
}

static inline struct store_job get_job(struct store *s, const char *id)
{
    struct store_request r = {.op = STORE_JOB_GET, .id = str_from(id)};
    must(s, &r);
    struct store_job job = r.jobs[0];
    store_request_release(&r);
    job.request = job.detail = job.files = job.error = job.owner = job.model = (struct str){0};
    return job;
}

/* Claims for `owner`; the token, or 0 when there was nothing. id may be NULL. */
static inline uint64_t claim_job(struct store *s, const char *owner, int64_t lease_ms, char *id)
{
    struct store_request r = {.op = STORE_JOB_CLAIM, .owner = str_from(owner), .ttl_ms = lease_ms, .limit = 1};
    must(s, &r);
    uint64_t token = r.n_jobs ? r.jobs[0].token : 0;
    if (r.n_jobs && id)
        strcpy(id, r.jobs[0].id);
    store_request_release(&r);
    return token;
}

static inline struct store_request update_request(const char *id, uint64_t token, enum store_status status, double progress)
{
    return (struct store_request){
        .op = STORE_JOB_UPDATE, .id = str_from(id), .token = token, .status = status, .progress = progress, .ttl_ms = LEASE_MS};
}

static inline struct store_job update_job(struct store *s, const char *id, uint64_t token, enum store_status status,
                                          double progress)
{
    struct store_request r = update_request(id, token, status, progress);
    must(s, &r);
    struct store_job job = r.jobs[0];
    store_request_release(&r);
    return job;
}

#endif
