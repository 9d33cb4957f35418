/* Temporary folders and byte builders for the tests of src/model. */
#ifndef INFERD_TESTS_MODEL_FILES_H
#define INFERD_TESTS_MODEL_FILES_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

#include "model/checkpoint.h"
#include "model/checkpoint_impl.h"

struct bytes {
    unsigned char *data;
    size_t len;
};

static inline void put(struct bytes *b, const void *data, size_t len)
{
    b->data = realloc(b->data, b->len + len + 1);
    assert_non_null(b->data);
    if (len)
        memcpy(b->data + b->len, data, len);
    b->len += len;
}

static inline void put_le(struct bytes *b, uint64_t v, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        unsigned char byte = (unsigned char)(v >> (8 * i));
        put(b, &byte, 1);
    }
}

static inline char *join(const char *dir, const char *name)
{
    char *path = checkpoint_path(dir, name);
    assert_non_null(path);
    return path;
}

static inline void write_file(const char *dir, const char *name, const void *data, size_t len)
{
    char *path = join(dir, name);
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, len, f), len);
    fclose(f);
    free(path);
}

static inline char *make_folder(const char *dir, const char *name)
{
    char *path = join(dir, name);
    assert_int_equal(mkdir(path, 0700), 0);
    return path;
}

static inline char *temporary_folder(void)
{
    char *path = strdup("/tmp/inferd-test-XXXXXX");
    assert_non_null(mkdtemp(path));
    return path;
}

static inline void remove_folder(char *path)
{
    char command[512];
    snprintf(command, sizeof command, "rm -rf '%s'", path);
    assert_int_equal(system(command), 0);
    free(path);
}

/* Opens from a block of exactly `len` bytes, so that the address sanitizer sees any read past the end. */
static inline struct checkpoint *open_bytes(enum checkpoint_kind kind, const unsigned char *data, size_t len,
                                            unsigned char **block, struct err *err)
{
    *block = malloc(len ? len : 1);
    assert_non_null(*block);
    if (len)
        memcpy(*block, data, len);
    *err = (struct err){0};
    return checkpoint_open_memory(kind, *block, len, err);
}

/* Reads every byte of every tensor; an open checkpoint must stand that. */
static inline uint64_t touch(const struct checkpoint *c)
{
    uint64_t sum = 0;
    for (size_t i = 0; i < checkpoint_n_tensors(c); i++) {
        const struct tensor *t = checkpoint_tensor_at(c, i);
        size_t elements;
        assert_true(checkpoint_elements(t->dims, t->n_dims, &elements));
        assert_true(dtype_bytes(t->type, elements) == t->bytes);
        assert_ptr_equal(checkpoint_tensor(c, t->name), t);
        for (size_t k = 0; k < t->bytes; k++)
            sum += ((const unsigned char *)t->data)[k];
    }
    return sum;
}

/* Either a clean error or a checkpoint that can be read. Returns whether it opened. */
static inline int open_and_close(enum checkpoint_kind kind, const unsigned char *data, size_t len)
{
    unsigned char *block;
    struct err err;
    struct checkpoint *c = open_bytes(kind, data, len, &block, &err);
    int opened = c != NULL;
    if (c) {
        touch(c);
    } else {
        assert_true(err.code == ERR_MODEL_DAMAGED || err.code == ERR_MODEL_UNSUPPORTED);
        assert_true(strlen(err.text) > 10);
    }
    checkpoint_close(c);
    free(block);
    return opened;
}

static inline void expect_text(const struct err *err, const char *part)
{
    if (!strstr(err->text, part))
        fail_msg("'%s' is not in '%s'", part, err->text);
}

#endif
