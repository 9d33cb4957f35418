/* The packed cache: the same bits from it as from packing; every kind of damage found and repaired; its bound; several
 * processes at once. */
#include "files.h"

#include "model/model_impl.h"
#include "model/pack_cache.h"

#include <dirent.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/wait.h>
#include <time.h>
#include <utime.h>

#define GOLDEN "tests/golden/models/"
#define IDS    40

struct notes {
    char text[1024];
};

static void keep_note(void *arg, const char *text)
{
    struct notes *n = arg;
    size_t len = strlen(n->text);
    snprintf(n->text + len, sizeof n->text - len, "%s\n", text);
}

/* Loads by way of the cache in `dir`, computes some logits [IDS][n_vocab] (the caller frees), waits for the cache. */
static float *run(const char *name, enum profile profile, const char *dir, uint64_t bytes_max, int *from_cache,
                  struct notes *notes)
{
    char path[256];
    struct err err = {0};
    memset(notes, 0, sizeof *notes);
    struct model_options mo = {.profile = profile,
                               .rows_max = IDS,
                               .logit_rows_max = IDS,
                               .cache = {.dir = dir, .bytes_max = bytes_max, .note = keep_note, .arg = notes}};
    snprintf(path, sizeof path, GOLDEN "%s", name);
    struct checkpoint *c = checkpoint_open(path, &err);
    struct backend *b = backend_open_cpu(&(struct backend_options){.n_threads = 2, .isa = "auto"}, &err);
    struct model *m = c && b ? model_load(c, b, &mo, NULL, NULL, &err) : NULL;
    if (!m)
        fail_msg("%s: %s", name, err.text);
    checkpoint_close(c); /* a loaded model does not need its files */
    struct kv_cache kv = model_kv_shape(m);
    kv.n_pages = IDS / KV_PAGE_TOKENS + 1;
    size_t kv_bytes = kv.n_pages * kv.n_layers * kv.layer_bytes;
    kv.data = backend_alloc(b, kv_bytes, &err);
    int32_t numbers[IDS];
    for (int i = 0; i < IDS; i++)
        numbers[i] = i;
    struct batch_seq seq = {.pages = numbers, .n_pages = kv.n_pages, .n_rows = IDS, .n_prompt = IDS};
    struct batch batch = {.ids = numbers,
                          .positions = numbers,
                          .n_rows = IDS,
                          .seqs = &seq,
                          .n_seqs = 1,
                          .logit_rows = numbers,
                          .n_logit_rows = IDS};
    size_t bytes = IDS * model_info(m)->n_vocab * sizeof(float);
    float *logits = malloc(bytes);
    memcpy(logits, model_forward(m, &kv, &batch), bytes);
    *from_cache = model_from_cache(m);
    model_cache_wait(m);
    backend_free(b, kv.data, kv_bytes);
    model_free(m);
    backend_close(b);
    return logits;
}

static size_t count(const char *dir, const char *suffix, char *name, size_t size)
{
    size_t n = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; d && (e = readdir(d));) {
        if (str_has_suffix(str_from(e->d_name), str_from(suffix))) {
            n++;
            snprintf(name, size, "%s/%s", dir, e->d_name);
        }
    }
    if (d)
        closedir(d);
    return n;
}

static char *cache_folder(char **base)
{
    *base = temporary_folder();
    return join(*base, "cache");
}

static void gives_the_same_bits(void **state)
{
    static const struct {
        const char *name;
        enum profile profile;
    } cases[] = {{"llama-bf16", PROFILE_AUTO},       {"llama-bf16", PROFILE_INT8},        {"llama-tied-f32", PROFILE_INT4},
                 {"gpt2-odd-f16", PROFILE_AUTO},     {"opt-postnorm-f16", PROFILE_AUTO},  {"gguf-llama-mixed", PROFILE_AUTO},
                 {"gguf-llama-mixed", PROFILE_FP16}, {"quant-gptq4-order", PROFILE_AUTO}, {"qwen3-sharded-f16", PROFILE_AUTO}};
    char *base, *dir = cache_folder(&base), path[512];
    struct notes notes;
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        int first, second;
        float *packed = run(cases[i].name, cases[i].profile, dir, 1 << 30, &first, &notes);
        if (!strstr(notes.text, "bytes kept"))
            fail_msg("%s: '%s'", cases[i].name, notes.text);
        float *cached = run(cases[i].name, cases[i].profile, dir, 1 << 30, &second, &notes);
        assert_int_equal(first, 0);
        assert_int_equal(second, 1);
        assert_string_equal(notes.text, "");
        assert_memory_equal(packed, cached, IDS * 288 * sizeof(float));
        free(packed);
        free(cached);
        assert_int_equal(count(dir, ".pack", path, sizeof path), i + 1); /* every case has a key of its own */
    }
    assert_int_equal(count(dir, ".tmp", path, sizeof path), 0);
    free(dir);
    remove_folder(base);
}

static void change_byte(const char *path, long at)
{
    FILE *f = fopen(path, "r+b");
    assert_non_null(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    int was = fgetc(f);
    assert_int_equal(fseek(f, at, SEEK_SET), 0);
    fputc(was ^ 0x20, f);
    fclose(f);
}

static void repairs_damage(void **state)
{
    char *base, *dir = cache_folder(&base), path[512];
    struct notes notes;
    struct stat st;
    int hit;
    float *want = run("llama-tied-f32", PROFILE_AUTO, dir, 1 << 30, &hit, &notes);
    assert_int_equal(count(dir, ".pack", path, sizeof path), 1);
    assert_int_equal(stat(path, &st), 0);
    const long places[] = {0, 20, 30, 45, 60, 80, 4095, 4096, 4100, st.st_size / 2, st.st_size - 1};
    for (size_t i = 0; i < sizeof places / sizeof places[0]; i++) {
        change_byte(path, places[i]);
        float *have = run("llama-tied-f32", PROFILE_AUTO, dir, 1 << 30, &hit, &notes);
        assert_memory_equal(have, want, IDS * 288 * sizeof(float));
        if (hit || !strstr(notes.text, "bytes kept"))
            fail_msg("byte %ld: %d '%s'", places[i], hit, notes.text);
        free(have);
        free(run("llama-tied-f32", PROFILE_AUTO, dir, 1 << 30, &hit, &notes));
        assert_int_equal(hit, 1);
    }
    const off_t lengths[] = {0, 1, 50, 4000, 4096, st.st_size - 1, st.st_size + 1};
    for (size_t i = 0; i < sizeof lengths / sizeof lengths[0]; i++) {
        assert_int_equal(truncate(path, lengths[i]), 0);
        float *have = run("llama-tied-f32", PROFILE_AUTO, dir, 1 << 30, &hit, &notes);
        assert_memory_equal(have, want, IDS * 288 * sizeof(float));
        assert_int_equal(hit, 0);
        if (!strstr(notes.text, "was removed") || !strstr(notes.text, "bytes kept"))
            fail_msg("%ld bytes: '%s'", (long)lengths[i], notes.text);
        free(have);
    }
    free(want);
    free(dir);
    remove_folder(base);
}

static void says_what_it_cannot_remove(void **state)
{
    char *base, *dir = cache_folder(&base), path[512];
    struct notes notes;
    int hit;
    free(run("llama-tied-f32", PROFILE_AUTO, dir, 1 << 30, &hit, &notes));
    assert_int_equal(count(dir, ".pack", path, sizeof path), 1);
    assert_int_equal(unlink(path), 0);
    assert_int_equal(mkdir(path, 0700), 0);
    free(run("llama-tied-f32", PROFILE_AUTO, dir, 1 << 30, &hit, &notes));
    if (hit || strstr(notes.text, "was removed") || !strstr(notes.text, "could not be removed (Is a directory)"))
        fail_msg("%d '%s'", hit, notes.text);
    free(dir);
    remove_folder(base);
}

static void keeps_to_its_bound(void **state)
{
    char *base, *dir = cache_folder(&base), path[512], name[512];
    struct notes notes;
    struct stat st;
    int hit;
    free(run("llama-tied-f32", PROFILE_AUTO, dir, 1000, &hit, &notes));
    if (!strstr(notes.text, "more than its limit of 1000"))
        fail_msg("'%s'", notes.text);
    free(run("llama-tied-f32", PROFILE_AUTO, dir, 1 << 30, &hit, &notes));
    assert_int_equal(count(dir, ".pack", path, sizeof path), 1);
    assert_int_equal(stat(path, &st), 0);
    uint64_t bound = (uint64_t)st.st_size * 5 / 2;
    assert_int_equal(utime(path, &(struct utimbuf){1000, 1000}), 0); /* used long ago */
    snprintf(name, sizeof name, "%s/old.tmp", dir);
    write_file(dir, "old.tmp", "x", 1);
    assert_int_equal(utime(name, &(struct utimbuf){1000, 1000}), 0);
    write_file(dir, "new.tmp", "x", 1); /* may be somebody's */
    free(run("llama-tied-f32", PROFILE_AUTO, dir, bound, &hit, &notes));
    assert_int_equal(hit, 1); /* which makes it young again */
    assert_int_equal(stat(path, &st), 0);
    assert_true(time(NULL) - st.st_mtim.tv_sec < 1000);
    for (int i = 0; i < 4; i++) /* others of about its size: the oldest goes */
        free(run(i % 2 ? "gpt2-f32" : "qwen2-f32", i < 2 ? PROFILE_AUTO : PROFILE_INT8, dir, bound, &hit, &notes));
    uint64_t total = 0;
    DIR *d = opendir(dir);
    for (struct dirent *e; (e = readdir(d));)
        if (str_has_suffix(str_from(e->d_name), STR(".pack"))) {
            assert_int_equal(fstatat(dirfd(d), e->d_name, &st, 0), 0);
            total += (uint64_t)st.st_size;
        }
    closedir(d);
    assert_true(total <= bound + 8192);
    assert_int_equal(access(path, F_OK), -1);
    assert_int_equal(access(name, F_OK), -1);
    snprintf(name, sizeof name, "%s/new.tmp", dir);
    assert_int_equal(access(name, F_OK), 0);
    free(dir);
    remove_folder(base);
}

/* Each finds room for its own file before any other one has a name. */
static void keeps_to_its_bound_with_others(void **state)
{
    enum { BYTES = 16 << 20, WRITERS = 4 };
    char *base = temporary_folder(), path[512];
    char *memory = calloc(1, BYTES);
    int start[2], status;
    assert_non_null(memory);
    assert_int_equal(pipe(start), 0);
    for (int i = 0; i < WRITERS; i++) {
        if (fork() == 0) {
            struct buf key;
            struct err err = {0};
            atomic_bool stop = false;
            char byte;
            buf_init(&key, 64);
            buf_printf(&key, "key %d", i);
            close(start[1]);
            if (read(start[0], &byte, 1) != 0) /* until all are there */
                _exit(2);
            _exit(pack_cache_write(base, buf_str(&key), memory, BYTES, BYTES * 3 / 2, &stop, &err) ? 0 : 1);
        }
    }
    close(start[0]);
    close(start[1]);
    for (int i = 0; i < WRITERS; i++) {
        assert_true(wait(&status) > 0);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    assert_true(count(base, ".pack", path, sizeof path) <= 1);
    free(memory);
    remove_folder(base);
}

static void is_shared_by_processes(void **state)
{
    char *base, *dir = cache_folder(&base), path[512];
    struct notes notes;
    int hit, status;
    for (int i = 0; i < 4; i++) {
        if (fork() == 0) {
            for (int k = 0; k < 3; k++)
                free(run("llama-bf16", PROFILE_AUTO, dir, 1 << 30, &hit, &notes));
            _exit(strstr(notes.text, "removed") || strstr(notes.text, "could not") ? 1 : 0);
        }
    }
    for (int i = 0; i < 4; i++) {
        assert_true(wait(&status) > 0);
        assert_true(WIFEXITED(status) && WEXITSTATUS(status) == 0);
    }
    assert_int_equal(count(dir, ".pack", path, sizeof path), 1);
    assert_int_equal(count(dir, ".tmp", path, sizeof path), 0);
    free(run("llama-bf16", PROFILE_AUTO, dir, 1 << 30, &hit, &notes));
    assert_int_equal(hit, 1);
    free(dir);
    remove_folder(base);
}

/* Killed at any moment: in the writing, mostly. */
static void leaves_nothing_of_a_killed_process(void **state)
{
    enum { BYTES = 64 << 20, TIMES = 8, FIRST_US = 2000 };
    char *base = temporary_folder(), path[512];
    int unnamed = open(base, O_TMPFILE | O_WRONLY, 0600), status;
    char *memory = calloc(1, BYTES);
    if (unnamed < 0)
        skip(); /* this file system has no files without a name */
    assert_non_null(memory);
    close(unnamed);
    for (int i = 0; i < TIMES; i++) {
        pid_t child = fork();
        for (int n = 0; child == 0; n++) {
            struct buf key;
            struct err err;
            atomic_bool stop = false;
            buf_init(&key, 64);
            buf_printf(&key, "key %d %d", i, n); /* names that are not there yet */
            if (!pack_cache_write(base, buf_str(&key), memory, BYTES, 4 * (uint64_t)BYTES, &stop, &err))
                _exit(1);
            buf_release(&key);
        }
        usleep((useconds_t)(FIRST_US << i));
        kill(child, SIGKILL);
        assert_int_equal(waitpid(child, &status, 0), child);
        assert_true(WIFSIGNALED(status));
        assert_int_equal(count(base, ".tmp", path, sizeof path), 0);
    }
    free(memory);
    remove_folder(base);
}

static void does_without(void **state)
{
    struct notes notes;
    int hit;
    char *base = temporary_folder();
    write_file(base, "file", "x", 1);
    char *dir = join(base, "file/below"); /* no folder can be made there */
    free(run("gpt2-f32", PROFILE_AUTO, dir, 1 << 30, &hit, &notes));
    assert_int_equal(hit, 0);
    if (!strstr(notes.text, "folder"))
        fail_msg("'%s'", notes.text);
    free(dir);
    remove_folder(base);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gives_the_same_bits),
        cmocka_unit_test(repairs_damage),
        cmocka_unit_test(says_what_it_cannot_remove),
        cmocka_unit_test(keeps_to_its_bound),
        cmocka_unit_test(keeps_to_its_bound_with_others),
        cmocka_unit_test(is_shared_by_processes),
        cmocka_unit_test(leaves_nothing_of_a_killed_process),
        cmocka_unit_test(does_without),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
