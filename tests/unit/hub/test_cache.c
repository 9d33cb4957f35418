/* The cache's layout: refs, snapshots, what is listed, found, removed; and the environment that says where it is. */
#include "hub/impl.h"

#include <fcntl.h>
#include <pwd.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#define COMMIT_A "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa"
#define COMMIT_B "bbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbbb"

static char dir[64];
static struct cache_repo repo;

static int setup(void **state)
{
    snprintf(dir, sizeof dir, "/tmp/inferd-cache-XXXXXX");
    return mkdtemp(dir) && cache_repo_init(&repo, dir, "org/name", NULL) ? 0 : -1;
}

static int teardown(void **state)
{
    char command[128];
    snprintf(command, sizeof command, "rm -rf %s", dir);
    return system(command);
}

static void write_file(const char *below, const char *text)
{
    char path[HUB_DIR_BYTES_MAX];
    snprintf(path, sizeof path, "%s/%s", dir, below);
    assert_true(cache_make_parent(path, NULL));
    int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0644);
    assert_int_equal(write(fd, text, strlen(text)), strlen(text));
    close(fd);
}

static bool there(const char *below)
{
    char path[HUB_DIR_BYTES_MAX];
    struct stat st;
    snprintf(path, sizeof path, "%s/%s", dir, below);
    return lstat(path, &st) == 0;
}

static void publish(const char *commit, const char *revision, const char *const files[][2], size_t n)
{
    struct cache_link links[8];
    struct err err = {0};
    char blob[256];
    for (size_t i = 0; i < n; i++) {
        snprintf(blob, sizeof blob, "models--org--name/blobs/%s", files[i][1]);
        write_file(blob, files[i][1]);
        links[i] = (struct cache_link){files[i][0], files[i][1]};
    }
    if (!cache_publish(&repo, commit, links, n, &err) || !cache_ref_write(&repo, revision, commit, &err))
        fail_msg("%s", err.text);
}

static const char *const model[][2] = {{"config.json", "e1"}, {"tokenizer.json", "e2"}, {"model.safetensors", "e3"}};
static const char *const newer[][2] = {{"config.json", "e1"}, {"tokenizer.json", "e2"}, {"model.safetensors", "e4"}};
static const char *const quants[][2] = {{"a-Q4_K_M.gguf", "q4"}, {"a-Q8_0.gguf", "q8"}, {"x/y/README.md", "r"}};

static struct hub_ref ref_of(const char *text)
{
    struct hub_ref r;
    assert_true(hub_ref_parse(text, &r, NULL));
    return r;
}

static bool found(const char *text, struct hub_snapshot *s, struct err *err)
{
    struct hub_ref r = ref_of(text);
    return hub_cache_find(dir, &r, s, err);
}

static void published_and_found(void **state)
{
    struct hub_snapshot s;
    struct err err = {0};
    assert_false(found("org/name", &s, &err));
    assert_int_equal(err.code, ERR_MODEL_NOT_FOUND);
    publish(COMMIT_A, "main", model, 3);
    assert_true(found("org/name", &s, &err));
    assert_string_equal(s.commit, COMMIT_A);
    assert_int_equal(s.bytes, 6);
    assert_true(found("org/name@" COMMIT_A, &s, &err));
    assert_false(found("org/name@dev", &s, &err));
    publish(COMMIT_B, "main", newer, 3); /* the branch moves */
    assert_true(found("org/name", &s, &err));
    assert_string_equal(s.commit, COMMIT_B);
    assert_true(found("org/name@" COMMIT_A, &s, &err));
    publish(COMMIT_B, "refs/pr/1", newer, 3);
    assert_true(found("org/name@refs/pr/1", &s, &err));
    char target[64] = "", path[HUB_DIR_BYTES_MAX];
    assert_true(cache_path(&repo, path, NULL, "/snapshots/%s/config.json", COMMIT_A));
    assert_true(readlink(path, target, sizeof target - 1) > 0);
    assert_string_equal(target, "../../blobs/e1");
}

static void not_whole(void **state)
{
    struct hub_snapshot s;
    struct err err = {0};
    publish(COMMIT_A, "main", model, 2); /* no weights */
    assert_false(found("org/name", &s, &err));
    publish(COMMIT_A, "main", model, 3);
    assert_true(found("org/name", &s, &err));
    char path[HUB_DIR_BYTES_MAX];
    assert_true(cache_path(&repo, path, NULL, "/blobs/e3"));
    unlink(path); /* a link to nothing */
    assert_false(found("org/name", &s, &err));
    write_file("models--org--name/blobs/e3", "e3");
    write_file("models--org--name/refs/main", "no commit");
    assert_false(found("org/name", &s, &err));
    write_file("models--org--name/refs/main", COMMIT_A "\n");
    assert_true(found("org/name", &s, &err));
}

static void index_names_a_shard_that_is_not_there(void **state)
{
    static const char *const shards[][2] = {{"config.json", "e1"},
                                            {"tokenizer.json", "e2"},
                                            {"model-00001-of-00001.safetensors", "e3"},
                                            {"model.safetensors.index.json", "e4"}};
    struct hub_snapshot s;
    struct err err = {0};
    publish(COMMIT_A, "main", shards, 4);
    write_file("models--org--name/blobs/e4", "{\"weight_map\":{\"a\":\"model-00001-of-00001.safetensors\"}}");
    assert_true(found("org/name", &s, &err));
    write_file("models--org--name/blobs/e4", "{\"weight_map\":{\"a\":\"model-00002-of-00001.safetensors\"}}");
    assert_false(found("org/name", &s, &err));
    assert_non_null(strstr(err.text, "model-00002-of-00001.safetensors"));
    static const char *const whole[][2] = {{"model.safetensors", "e5"}}; /* beside it an index says nothing */
    publish(COMMIT_A, "main", whole, 1);
    assert_true(found("org/name", &s, &err));
}

static void listed(void **state)
{
    struct hub_cache_list list;
    struct err err = {0};
    assert_true(hub_cache_list("/nonexistent", &list, &err));
    assert_int_equal(list.n_items, 0);
    publish(COMMIT_A, "main", model, 3);
    publish(COMMIT_B, "dev", quants, 3);
    write_file("models--org--name/blobs/e9.inferd.incomplete", "1234");
    static const char *const strangers[] = {"version.txt",
                                            "models--",
                                            "models----x/snapshots/" COMMIT_A "/a",
                                            "datasets--a--b/snapshots/" COMMIT_A "/a",
                                            "models--a--b--c/snapshots/x/a",
                                            "models--a/snapshots/not-a-commit/b",
                                            "models--..--x/snapshots/" COMMIT_A "/a",
                                            "models--file"};
    for (size_t i = 0; i < sizeof strangers / sizeof *strangers; i++)
        if (strcmp(strangers[i], "models--") != 0)
            write_file(strangers[i], "x");
    assert_true(hub_cache_list(dir, &list, &err));
    assert_int_equal(list.n_items, 2);
    for (size_t i = 0; i < 2; i++) {
        const struct hub_cached *c = &list.items[i];
        bool a = strcmp(c->commit, COMMIT_A) == 0;
        assert_string_equal(c->repo, "org/name");
        assert_string_equal(c->revision, a ? "main" : "dev");
        assert_int_equal(c->n_files, 3);
        assert_int_equal(c->bytes, a ? 6 : 5);
        assert_string_equal(c->quants, a ? "" : "Q4_K_M,Q8_0");
        assert_int_equal(c->complete, 1);
        assert_true(c->bytes_partial > 0);
    }
    hub_cache_list_release(&list);
}

static void removed_in_parts(void **state)
{
    uint64_t freed;
    struct err err = {0};
    struct hub_ref r = ref_of("org/name");
    assert_false(hub_cache_remove(dir, &r, &freed, &err));
    assert_int_equal(err.code, ERR_MODEL_NOT_FOUND);
    publish(COMMIT_A, "main", model, 3);
    publish(COMMIT_B, "dev", newer, 3);
    r = ref_of("org/name@dev");
    assert_true(hub_cache_remove(dir, &r, &freed, &err));
    assert_int_equal(freed, 2); /* the weights; the rest is shared */
    assert_false(there("models--org--name/blobs/e4") || there("models--org--name/refs/dev") ||
                 there("models--org--name/snapshots/" COMMIT_B));
    assert_true(there("models--org--name/blobs/e1") && there("models--org--name/refs/main"));
    publish(COMMIT_B, "quants", quants, 3);
    r = ref_of("org/name:Q8_0@quants");
    assert_true(hub_cache_remove(dir, &r, &freed, &err));
    assert_true(there("models--org--name/blobs/q4") && !there("models--org--name/blobs/q8"));
    r = ref_of("org/name:Q8_0@quants");
    assert_false(hub_cache_remove(dir, &r, &freed, &err));
    int lock = cache_lock(&repo, "e3", &err);
    r = ref_of("org/name");
    assert_false(hub_cache_remove(dir, &r, &freed, &err));
    assert_int_equal(err.code, ERR_CONFLICT);
    close(lock);
    int pulls[2] = {cache_lock_repo(&repo, CACHE_PULLS, &err), cache_lock_repo(&repo, CACHE_PULLS, &err)};
    assert_true(pulls[0] >= 0 && pulls[1] >= 0); /* several at once */
    for (int i = 0; i < 2; i++) {
        struct hub_ref part = ref_of(i ? "org/name@quants" : "org/name");
        err = (struct err){0};
        assert_false(hub_cache_remove(dir, &part, &freed, &err));
        assert_int_equal(err.code, ERR_CONFLICT);
        close(pulls[i]);
    }
    lock = cache_lock_repo(&repo, CACHE_REMOVES, &err);
    assert_true(lock >= 0);
    assert_int_equal(cache_lock_repo(&repo, CACHE_PULLS, &err), -1);
    assert_int_equal(cache_lock_repo(&repo, CACHE_REMOVES, &err), -1);
    close(lock);
    assert_true(hub_cache_remove(dir, &r, &freed, &err));
    assert_false(there("models--org--name") || there(".locks/models--org--name"));
}

/* A folder of links that lead out is no way to read or remove somebody's files. */
static void links_that_lead_out(void **state)
{
    char path[HUB_DIR_BYTES_MAX];
    struct hub_ref r = ref_of("org/name");
    publish(COMMIT_A, "main", model, 3);
    write_file("precious", "x");
    assert_true(cache_path(&repo, path, NULL, "/snapshots/%s/README.md", COMMIT_A));
    assert_int_equal(symlink("../../../precious", path), 0);
    assert_true(cache_path(&repo, path, NULL, "/blobs/folder"));
    assert_int_equal(symlink("../..", path), 0);
    assert_true(hub_cache_remove(dir, &r, NULL, NULL));
    assert_true(there("precious"));
}

/* ---- the environment ---------------------------------------------------------------------------------------------------- */

static void set_env(const char *name, const char *value)
{
    if (value)
        setenv(name, value, 1);
    else
        unsetenv(name);
}

static void configured(const char *const env[][2], size_t n, struct hub_config *c, struct err *err)
{
    static const char *const all[] = {
        "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE",  "HF_HOME",       "XDG_CACHE_HOME", "HF_ENDPOINT",
        "HF_TOKEN",     "HUGGING_FACE_HUB_TOKEN", "HF_TOKEN_PATH", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"};
    for (size_t i = 0; i < sizeof all / sizeof *all; i++)
        unsetenv(all[i]);
    set_env("HOME", "/home/someone");
    for (size_t i = 0; i < n; i++)
        set_env(env[i][0], env[i][1]);
    err->code = ERR_NONE;
    hub_config_from_env(c, err);
}

#define CONFIGURED(...) \
    do { \
        const char *const env[][2] = {__VA_ARGS__}; \
        configured(env, sizeof env / sizeof *env, &c, &err); \
    } while (0)

static void environment(void **state)
{
    struct hub_config c;
    struct err err = {0};
    CONFIGURED({"HF_HOME", NULL});
    assert_string_equal(c.cache_dir, "/home/someone/.cache/huggingface/hub");
    assert_string_equal(c.endpoint, "https://huggingface.co");
    assert_true(c.reach == HUB_ONLINE && c.stall_ms == 20000 && !c.token[0]);
    CONFIGURED({"XDG_CACHE_HOME", "/x"});
    assert_string_equal(c.cache_dir, "/x/huggingface/hub");
    CONFIGURED({"HF_HOME", "~/hf"}, {"XDG_CACHE_HOME", "/x"});
    assert_string_equal(c.cache_dir, "/home/someone/hf/hub");
    CONFIGURED({"HF_HUB_CACHE", "/c"}, {"HF_HOME", "/h"}, {"HUGGINGFACE_HUB_CACHE", "/old"});
    assert_string_equal(c.cache_dir, "/c");
    CONFIGURED({"HUGGINGFACE_HUB_CACHE", "/old"}, {"HF_ENDPOINT", "http://mirror:1/x//"}, {"HF_TOKEN", " hf_x\n"},
               {"TRANSFORMERS_OFFLINE", "yes"});
    assert_string_equal(c.cache_dir, "/old");
    assert_string_equal(c.endpoint, "http://mirror:1/x");
    assert_string_equal(c.token, "hf_x");
    assert_int_equal(c.reach, HUB_OFFLINE);
    CONFIGURED({"HF_HUB_CACHE", "/c"}, {"HOME", NULL});
    assert_int_equal(err.code, ERR_NONE);
    write_file("token", "hf_of_file\n");
    CONFIGURED({"HF_HOME", dir}, {"HUGGING_FACE_HUB_TOKEN", NULL});
    assert_string_equal(c.token, "hf_of_file");
    CONFIGURED({"HF_HOME", dir}, {"HUGGING_FACE_HUB_TOKEN", "hf_env"});
    assert_string_equal(c.token, "hf_env");
}

static void environment_refused(void **state)
{
    struct hub_config c;
    struct err err = {0};
    char text[9000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = 0;
    CONFIGURED({"HF_ENDPOINT", "ftp://x"});
    assert_int_equal(err.code, ERR_USAGE);
    assert_non_null(strstr(err.text, "ftp://x"));
    CONFIGURED({"HF_TOKEN", "a b"});
    assert_int_equal(err.code, ERR_USAGE);
    assert_null(strstr(err.text, "a b")); /* a token is never shown */
    CONFIGURED({"HF_TOKEN", text});
    assert_int_equal(err.code, ERR_USAGE);
    CONFIGURED({"HF_HUB_CACHE", text});
    assert_int_equal(err.code, ERR_USAGE);
}

/* Without HOME it is that of the user, where the system knows one. */
static void environment_without_home(void **state)
{
    struct hub_config c;
    struct err err = {0};
    char cache[HUB_DIR_BYTES_MAX] = "";
    const struct passwd *user = getpwuid(getuid());
    if (user)
        snprintf(cache, sizeof cache, "%s/x/hub", user->pw_dir);
    CONFIGURED({"HF_HOME", "~/x"}, {"HOME", NULL});
    assert_int_equal(err.code, user ? ERR_NONE : ERR_USAGE);
    assert_string_equal(c.cache_dir, cache);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(published_and_found, setup, teardown),
        cmocka_unit_test_setup_teardown(not_whole, setup, teardown),
        cmocka_unit_test_setup_teardown(index_names_a_shard_that_is_not_there, setup, teardown),
        cmocka_unit_test_setup_teardown(listed, setup, teardown),
        cmocka_unit_test_setup_teardown(removed_in_parts, setup, teardown),
        cmocka_unit_test_setup_teardown(links_that_lead_out, setup, teardown),
        cmocka_unit_test_setup_teardown(environment, setup, teardown),
        cmocka_unit_test_setup_teardown(environment_refused, setup, teardown),
        cmocka_unit_test_setup_teardown(environment_without_home, setup, teardown),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
