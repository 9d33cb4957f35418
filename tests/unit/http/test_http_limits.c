/* The HTTP server by raw sockets: what it refuses, and every limit. */
#include "unit/http/client.h"

static void test_smuggling(void **state)
{
    static const char *const heads[] = {
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n",
        "Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd",
        "Content-Length: 3\r\nContent-Length: 3\r\n\r\nabc",
        "Content-Length: 3, 3\r\n\r\nabc",
        "Content-Length: +3\r\n\r\nabc",
        "Content-Length: -3\r\n\r\nabc",
        "Content-Length: 0x3\r\n\r\nabc",
        "Content-Length: 3 \r\n\r\nabc",
        "Content-Length:\r\n\r\nabc",
        "Content-Length: 3\r\n 0\r\n\r\nabc",
        "Content-Length : 3\r\n\r\nabc",
        "Content-Length\t: 3\r\n\r\nabc",
        " Content-Length: 3\r\n\r\nabc",
        "\tContent-Length: 3\r\n\r\nabc",
        "Transfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked \r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\n x\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: identity\r\nContent-Length: 3\r\n\r\nabc",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: \"chunked\"\r\n\r\n0\r\n\r\n",
        "Transfer-Encoding: \x0b"
        "chunked\r\n\r\n0\r\n\r\n",
        "X: a\nContent-Length: 3\r\n\r\nabc",
        "X: a\rContent-Length: 3\r\n\r\nabc",
        "X: a\r\n\nabc",
        "X: a\n\r\nabc",
        "X: a\r\r\n\r\n",
        "X: a\x01"
        "b\r\n\r\n",
        "X: a\x7f"
        "b\r\n\r\n",
        "X y: a\r\n\r\n",
        "X\x80: a\r\n\r\n",
        "X(y): a\r\n\r\n",
        ": a\r\n\r\n",
        "no colon\r\n\r\n",
        "Host: b\r\n\r\n",
    };
    struct fixture f;
    fixture_open(&f, default_options());
    char text[512];
    for (size_t i = 0; i < sizeof heads / sizeof heads[0]; i++) {
        snprintf(text, sizeof text, "POST /echo HTTP/1.1\r\nHost: a\r\n%s", heads[i]);
        expect_refusal(&f, text, "400");
    }
    static const char *const chunks[] = {"g\r\n",
                                         "-1\r\nx\r\n",
                                         "3\r\nabcd\r\n0\r\n\r\n",
                                         "\r\n0\r\n\r\n",
                                         "0x3\r\nabc\r\n0\r\n\r\n",
                                         "3 \r\nabc\r\n0\r\n\r\n",
                                         "+3\r\nabc\r\n0\r\n\r\n",
                                         "0\r\nbad trailer\r\n\r\n"};
    for (size_t i = 0; i < sizeof chunks / sizeof chunks[0]; i++) {
        snprintf(text, sizeof text, "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n%s", chunks[i]);
        expect_refusal(&f, text, "400");
    }
    expect_refusal(&f, "POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\nfffffffffffffffff\r\n", "413");
    assert_int_equal(f.handled, 0);
    fixture_close(&f);
}

static void test_nul_bytes(void **state)
{
    static const char texts[][96] = {
        "GET /a\0b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: a\0b\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: a\0\0b: c\r\n\r\n",
        "GET /a HTTP/1.1\r\nHo\0st: a\r\n\r\n",
        "GET /a HTTP/1.1\0\r\nHost: a\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: a\r\nX: \0\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: a\r\nX: b\0\0\r\n\r\n",
        "G\0T /a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a HTTP/1.1\r\nHost: a\r\nX: b\0\0\0\0\r\n\r\n",
        "GET \0 HTTP/1.1\r\nHost: a\r\n\r\n",
    };
    struct fixture f;
    fixture_open(&f, default_options());
    for (size_t i = 0; i < sizeof texts / sizeof texts[0]; i++) {
        size_t n = sizeof texts[i];
        while (texts[i][n - 1] == '\0')
            n--;
        expect_refusal_of(&f, texts[i], n, "400");
    }
    assert_int_equal(f.handled, 0);
    fixture_close(&f);
}

static void test_request_lines(void **state)
{
    static const char *const bad[] = {
        "GET /echo HTTP/1.1\r\n\r\n",
        "GET /echo HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n",
        "GET /echo\r\nHost: a\r\n\r\n",
        "GET  /echo HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /echo  HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /echo HTTP/1.1 \r\nHost: a\r\n\r\n",
        " GET /echo HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /echo HTTP/1.1\nHost: a\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a?b=c d HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a\tb HTTP/1.1\r\nHost: a\r\n\r\n",
        "G(T /a HTTP/1.1\r\nHost: a\r\n\r\n",
        "GET /a HTTP/x.1\r\nHost: a\r\n\r\n",
        "GET /a http/1.1\r\nHost: a\r\n\r\n",
        "POST /a HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GARBAGE\r\n\r\n",
        "\x16\x03\x01\x02\r\n\x01\xfc\x03\x03\r\n",
        "GET\r\n\r\n",
    };
    struct fixture f;
    fixture_open(&f, default_options());
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect_refusal(&f, bad[i], "400");
    expect_refusal(&f, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505");
    expect_refusal(&f, "GET / HTTP/0.9\r\nHost: a\r\n\r\n", "505");
    assert_int_equal(f.handled, 0);

    /* A refusal of a later request comes behind the answers to those before it. */
    struct buf b;
    buf_init(&b, REPLY_BYTES);
    int fd = dial(&f);
    put(fd, "GET /later HTTP/1.1\r\nHost: a\r\n\r\nGET /echo HTTP/1.1\r\n\r\n");
    assert_true(get_all(fd, &b));
    assert_true(strstr(b.data, "later") < strstr(b.data, "HTTP/1.1 400"));
    close(fd);
    buf_clear(&b);
    fd = dial(&f);
    put(fd, "HEAD /echo HTTP/1.1\r\n\r\n");
    assert_true(get_all(fd, &b));
    assert_null(strstr(b.data, "{"));
    close(fd);
    buf_release(&b);
    fixture_close(&f);
}

static char *repeat(const char *before, const char *unit, size_t n, const char *after)
{
    struct buf b;
    buf_init(&b, REPLY_BYTES);
    buf_append_str(&b, str_from(before));
    for (size_t i = 0; i < n; i++)
        buf_append_str(&b, str_from(unit));
    buf_append_str(&b, str_from(after));
    return b.data;
}

static void test_large_heads(void **state)
{
    static const struct {
        const char *before, *unit;
        size_t n;
        const char *after, *status;
    } cases[] = {
        {"GET /echo HTTP/1.1\r\nHost: a\r\nX: ", "x", 8192, "\r\n\r\n", "431"},
        {"GET /echo HTTP/1.1\r\nHost: a\r\nX: ", "x", 500000, "\r\n\r\n", "431"},
        {"GET /echo HTTP/1.1\r\nHost: a\r\n", "a:b\r\n", 2000, "\r\n", "431"},
        {"GET /echo HTTP/1.1\r\nHost: a\r\n", "a:b\r\n", 100000, "\r\n", "431"},
        {"GET /", "x", 9000, " HTTP/1.1\r\nHost: a\r\n\r\n", "431"},
        {"GET /", "x", 500000, " HTTP/1.1\r\nHost: a\r\n\r\n", "414"},
        {"GET /?", "a&", 4000, " HTTP/1.1\r\nHost: a\r\n\r\n", "431"},
        {"", "x", 500000, "", "414"},
    };
    struct fixture f;
    fixture_open(&f, default_options());
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        char *text = repeat(cases[i].before, cases[i].unit, cases[i].n, cases[i].after);
        expect_refusal(&f, text, cases[i].status);
        free(text);
    }
    assert_int_equal(f.handled, 0);
    struct buf b;
    buf_init(&b, REPLY_BYTES);
    int fd = dial(&f);
    char *text = repeat("GET /echo HTTP/1.1\r\nHost: a\r\nX-Test: ", "x", 8000, "\r\n\r\n");
    for (int i = 0; i < 3; i++) {
        buf_clear(&b);
        put(fd, text);
        get_until(fd, &b, "body=", 1);
        assert_non_null(strstr(b.data, "HTTP/1.1 200"));
    }
    free(text);
    close(fd);
    buf_release(&b);
    fixture_close(&f);
}

static void test_large_bodies(void **state)
{
    struct fixture f;
    fixture_open(&f, default_options());
    expect_refusal(&f, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 1048577\r\n\r\n", "413");
    expect_refusal(&f, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 18446744073709551615\r\n\r\n", "413");
    expect_refusal(&f, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 99999999999999999999999\r\n\r\n", "413");
    expect_refusal(&f, "POST /echo HTTP/1.1\r\nHost: a\r\nExpect: 100-continue\r\nContent-Length: 2000000\r\n\r\n", "413");
    /* The client gets the refusal although it sends on. */
    char *text = repeat("POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 4000000\r\n\r\n", "x", 4000000, "");
    expect_refusal(&f, text, "413");
    free(text);
    text = repeat("POST /echo HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n", "a\r\n0123456789\r\n", 200000, "");
    expect_refusal(&f, text, "413");
    free(text);
    assert_int_equal(f.handled, 0);
    fixture_close(&f);
}

/* Reads to the end, which must not come before `from_ms` after `at_ns`. False: it came later than `to_ms`. */
static bool closed_within(int fd, uint64_t at_ns, uint64_t from_ms, uint64_t to_ms, const char *status)
{
    struct buf b;
    buf_init(&b, REPLY_BYTES);
    assert_true(get_all(fd, &b));
    uint64_t took_ms = (clock_mono_ns() - at_ns) / MS;
    if (took_ms < from_ms)
        fail_msg("closed after %llu ms, not %llu", (unsigned long long)took_ms, (unsigned long long)from_ms);
    if (took_ms > to_ms)
        print_message("closed after %llu ms, not %llu\n", (unsigned long long)took_ms, (unsigned long long)to_ms);
    if (status ? !strstr(b.data, status) || count(&b, "x-request-id") != 1 : b.len != 0)
        fail_msg("wanted %s, got %s", status ? status : "nothing", b.data ? b.data : "nothing");
    buf_release(&b);
    close(fd);
    return took_ms <= to_ms;
}

static void *drip(void *arg)
{
    int fd = *(int *)arg;
    put(fd, "GET /echo HTTP/1.1\r\nHost: a\r\nX: ");
    for (int i = 0; i < 11; i++) {
        usleep(300000);
        put(fd, "x");
    }
    return NULL;
}

/* False: something came too late. */
static bool time_limits_once(void)
{
    struct fixture f;
    fixture_open(&f, default_options());
    uint64_t begin_ns = clock_mono_ns();
    int head = dial(&f), body = dial(&f), idle = dial(&f), used = dial(&f), dripping = dial(&f);
    struct buf b;
    buf_init(&b, REPLY_BYTES);
    pthread_t thread;
    pthread_create(&thread, NULL, drip, &dripping);
    put(head, "GET /echo HTTP/1.1\r\nHost: a\r\nX");
    put(body, "POST /echo HTTP/1.1\r\nHost: a\r\nContent-Length: 9\r\n\r\nabc");
    put(used, "GET /echo HTTP/1.1\r\nHost: a\r\n\r\n");
    get_until(used, &b, "body=", 1);
    uint64_t at_ns = clock_mono_ns();
    int other = dial(&f);
    put(other, "GET /echo HTTP/1.1\r\nHost: a\r\n\r\n");
    buf_clear(&b);
    get_until(other, &b, "body=", 1);
    bool in_time = clock_mono_ns() - at_ns < 200 * MS;
    close(other);
    in_time &= closed_within(head, begin_ns, 900, 1700, "HTTP/1.1 408");
    in_time &= closed_within(body, begin_ns, 900, 1700, "HTTP/1.1 408");
    in_time &= closed_within(idle, begin_ns, 1900, 2700, NULL);
    in_time &= closed_within(used, begin_ns, 1900, 2700, NULL);
    in_time &= closed_within(dripping, begin_ns, 0, 3800, "HTTP/1.1 408"); /* request_timeout_s */
    pthread_join(thread, NULL);
    buf_release(&b);
    fixture_close(&f);
    return in_time;
}

/* Slow clients get 408, idle ones are closed, and neither holds up others. A machine that stands still has more tries. */
static void test_time_limits(void **state)
{
    int tries = 5;
    while (!time_limits_once())
        assert_true(--tries > 0);
}

/* A client that does not read: by bytes (a stream that goes on), and by time (a reply that is whole). */
static void test_stalled_readers(void **state)
{
    struct fixture f;
    fixture_open(&f, default_options());
    uint64_t at_ns = clock_mono_ns();
    int fd[3];
    for (int i = 0; i < 3; i++)
        fd[i] = dial_with(&f, 4096);
    put(fd[0], "GET /flood HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_true(wait_for(&f.closed[HTTP_CLOSE_STALLED], 1));
    put(fd[1], "GET /large?n=4000000 HTTP/1.1\r\nHost: a\r\n\r\n");
    put(fd[2], "GET /large?n=4000000 HTTP/1.1\r\nHost: a\r\n\r\n");
    char some[65536];
    for (int i = 0; i < 100 && f.closed[HTTP_CLOSE_STALLED] < 2; i++) { /* this one reads, slowly */
        assert_true(recv(fd[2], some, sizeof some, 0) > 0);
        usleep(50000);
    }
    assert_int_equal(f.closed[HTTP_CLOSE_STALLED], 2);
    assert_true(clock_mono_ns() - at_ns < 6000ull * MS);
    struct buf b;
    buf_init(&b, REPLY_BYTES);
    int other = dial(&f);
    put(other, "GET /echo HTTP/1.1\r\nHost: a\r\n\r\n");
    get_until(other, &b, "body=", 1);
    for (int i = 0; i < 3; i++)
        close(fd[i]);
    close(other);
    buf_release(&b);
    fixture_close(&f);
    assert_int_equal(f.closed[HTTP_CLOSE_STALLED], 2);
}

/* All that is read until the connection ends. */
static void read_to_end(int fd, struct buf *b, unsigned pause_us)
{
    char some[4096];
    for (ssize_t n; (n = recv(fd, some, sizeof some, 0)) > 0;) {
        buf_append(b, some, (size_t)n);
        if (b->len % 16 == 0)
            usleep(pause_us);
    }
}

/* A writer that waits for room never has much unsent, and its slow client gets all; one that gives up is seen to. */
static void test_writers_that_wait(void **state)
{
    struct fixture f;
    fixture_open(&f, default_options());
    struct buf b;
    buf_init(&b, REPLY_BYTES);
    int slow = dial_with(&f, 4096), cut = dial(&f);
    put(slow, "GET /pour HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    read_to_end(slow, &b, 100);
    assert_true(b.len > (size_t)POUR_BLOCKS * POUR_BYTES);
    assert_memory_equal(b.data + b.len - 5, "0\r\n\r\n", 5);
    assert_true(wait_for(&f.closed[HTTP_CLOSE_DONE], 1));
    buf_clear(&b);
    put(cut, "GET /abort HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
    read_to_end(cut, &b, 0);
    assert_non_null(strstr(b.data, "a part"));
    assert_null(strstr(b.data, "never seen"));
    assert_memory_not_equal(b.data + b.len - 5, "0\r\n\r\n", 5);
    assert_true(wait_for(&f.closed[HTTP_CLOSE_GONE], 1));
    close(slow);
    close(cut);
    buf_release(&b);
    fixture_close(&f);
}

/* Beyond connections_max clients wait while nobody is idle, and are served when there is room. */
static void test_connections_max(void **state)
{
    struct http_options o = default_options();
    o.connections_max = 4;
    struct fixture f;
    fixture_open(&f, o);
    int fd[8];
    struct buf b;
    buf_init(&b, REPLY_BYTES);
    for (int i = 0; i < 8; i++) {
        fd[i] = dial(&f);
        put(fd[i], i < 4 ? "GET /hold HTTP/1.1\r\nHost: a\r\n\r\n" : "GET /echo HTTP/1.1\r\nHost: a\r\n\r\n");
    }
    assert_true(wait_for(&f.handled, 4));
    usleep(50000);
    assert_int_equal(f.handled, 4);
    assert_int_equal(http_connections(f.server), 4);
    for (int i = 0; i < 8; i++) {
        buf_clear(&b);
        if (i >= 4)
            get_until(fd[i], &b, "body=", 1);
        close(fd[i]);
    }
    buf_release(&b);
    fixture_close(&f);
}

/* Who comes gets the place of the connection that has been idle longest; those that are answered keep theirs. */
static void test_idle_makes_place(void **state)
{
    struct http_options o = default_options();
    o.connections_max = 3;
    o.idle_timeout_s = 60;
    struct fixture f;
    fixture_open(&f, o);
    struct buf b;
    buf_init(&b, REPLY_BYTES);
    int held = dial(&f), idle[2];
    put(held, "GET /hold HTTP/1.1\r\nHost: a\r\n\r\n");
    assert_true(wait_for(&f.handled, 1));
    for (int i = 0; i < 2; i++) {
        idle[i] = dial(&f);
        put(idle[i], "GET /echo HTTP/1.1\r\nHost: a\r\n\r\n");
        buf_clear(&b);
        get_until(idle[i], &b, "body=", 1);
    }
    for (int i = 0; i < 2; i++) {
        int came = dial(&f);
        put(came, "GET /echo HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n");
        buf_clear(&b);
        read_to_end(came, &b, 0);
        assert_non_null(strstr(b.data, "body="));
        assert_int_equal(recv(idle[i], b.data, 1, 0), 0);
        close(came);
        close(idle[i]);
        idle[i] = dial(&f); /* fills the place again */
    }
    assert_int_equal(f.handled, 5);
    assert_int_equal(f.closed[HTTP_CLOSE_GONE], 0);
    for (int i = 0; i < 2; i++)
        close(idle[i]);
    close(held);
    buf_release(&b);
    fixture_close(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(test_smuggling),       cmocka_unit_test(test_nul_bytes),
        cmocka_unit_test(test_request_lines),   cmocka_unit_test(test_large_heads),
        cmocka_unit_test(test_large_bodies),    cmocka_unit_test(test_time_limits),
        cmocka_unit_test(test_stalled_readers), cmocka_unit_test(test_writers_that_wait),
        cmocka_unit_test(test_connections_max), cmocka_unit_test(test_idle_makes_place),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
