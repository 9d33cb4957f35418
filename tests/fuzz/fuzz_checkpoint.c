/* Any bytes as a GGUF file (when they start with GGUF) or as a safetensors file: an error with a text, or a view whose
 * every tensor and metadata value can be read. */
#include "base/err.h"
#include "model/checkpoint_impl.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);

static volatile uint64_t sink;

static void read_tensors(const struct checkpoint *c)
{
    for (size_t i = 0; i < checkpoint_n_tensors(c); i++) {
        const struct tensor *t = checkpoint_tensor_at(c, i);
        size_t elements;
        CHECK(checkpoint_elements(t->dims, t->n_dims, &elements) && dtype_bytes(t->type, elements) == t->bytes);
        CHECK(checkpoint_tensor(c, t->name) == t);
        for (size_t k = 0; k < t->bytes; k++)
            sink += ((const unsigned char *)t->data)[k];
    }
}

static void read_strings(const struct checkpoint *c, const char *key, size_t n)
{
    struct str *list = calloc(n + 1, sizeof *list);
    if (list && checkpoint_meta_str_array(c, key, list, n)) {
        for (size_t i = 0; i < n; i++)
            for (size_t k = 0; k < list[i].len; k++)
                sink += (unsigned char)list[i].ptr[k];
    }
    free(list);
}

static void read_numbers(const struct checkpoint *c, const char *key, size_t n)
{
    float *floats = calloc(n + 1, sizeof *floats);
    int32_t *ints = calloc(n + 1, sizeof *ints);
    if (floats && ints) {
        sink += checkpoint_meta_f32_array(c, key, floats, n);
        sink += checkpoint_meta_i32_array(c, key, ints, n);
    }
    free(floats);
    free(ints);
}

static void read_metadata(const struct checkpoint *c)
{
    for (size_t i = 0; i < c->n_entries; i++) {
        struct str name = c->entries[i].key;
        char *key = strndup(name.ptr, name.len);
        struct gguf_value v;
        if (key && strlen(key) == name.len) {
            CHECK(checkpoint_meta(c, key, &v));
            for (size_t k = 0; v.kind == GGUF_STRING && k < v.s.len; k++)
                sink += (unsigned char)v.s.ptr[k];
            if (v.kind == GGUF_ARRAY) {
                read_strings(c, key, v.n);
                read_numbers(c, key, v.n);
            }
        }
        free(key);
    }
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    struct err err = {0};
    int gguf = size >= 4 && memcmp(data, "GGUF", 4) == 0;
    struct checkpoint *c = checkpoint_open_memory(gguf ? CHECKPOINT_GGUF : CHECKPOINT_HF, data, size, &err);
    if (!c) {
        CHECK(err.code != ERR_NONE && err.text[0]);
        return 0;
    }
    read_tensors(c);
    read_metadata(c);
    checkpoint_close(c);
    return 0;
}
