/* A load's use of the packed cache: the key of a model's block, reading it, and writing it behind a load that had to pack.
 * The writer is a thread of its own, so that a model answers before its copy is on the disk; model_cache_close stops it. */
#include "model/checkpoint_impl.h"
#include "model/model_impl.h"
#include "model/pack_cache.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>

#define KEY_BYTES_MAX ((size_t)16 << 20)
#define HEAD_BYTES    ((size_t)65536) /* of each file, part of the key beside its size and time */
#define NOTE_BYTES    640

struct writer {
    struct model *m;
    pthread_t thread;
    atomic_bool stop;
    char *key;
    size_t key_len;
};

static void note(const struct model *m, const char *format, ...)
{
    char text[NOTE_BYTES];
    if (!m->options.cache.note)
        return;
    va_list args;
    va_start(args, format);
    vsnprintf(text, sizeof text, format, args);
    va_end(args);
    m->options.cache.note(m->options.cache.arg, text);
}

static void describe_item(struct buf *key, const struct pack_item *item)
{
    const struct weight *w = item->weight;
    if (!w) {
        buf_printf(key, "%zu vector %zu\n", item->offset, item->bytes);
        return;
    }
    buf_printf(key, "%zu weight %d %zux%zu group %zu %d%d%d%d %d bytes %zu", item->offset, (int)w->layout, w->n_out, w->n_in,
               w->group, w->has_min, w->scales_f16, w->has_order, w->rotated, w->act_bits, item->bytes);
    for (int i = 0; i < 16 && w->layout == WEIGHT_I4; i++)
        buf_printf(key, " %d", w->codebook[i]);
    buf_append_char(key, '\n');
}

/* Everything that the packed block depends on. */
static bool make_key(const struct model *m, const struct binder *b, struct checkpoint *c, struct buf *key)
{
    struct str config = {0};
    struct err ignored = {0};
    if (checkpoint_kind(c) == CHECKPOINT_HF && !checkpoint_file(c, "config.json", &config, &ignored))
        return false;
    buf_init(key, KEY_BYTES_MAX);
    buf_printf(key, "layout %s\nprofile %s\nconfig %zu %016llx\n", backend_weight_layout(m->backend),
               profile_name(m->plan.profile), config.len, (unsigned long long)str_hash(config));
    for (size_t i = 0; i < c->n_files; i++) {
        const struct checkpoint_mapping *f = &c->files[i];
        struct str head = {(const char *)f->bytes, f->len < HEAD_BYTES ? f->len : HEAD_BYTES};
        buf_printf(key, "file %s bytes %zu time %lld head %016llx\n", f->path, f->len, (long long)f->mtime_ns,
                   (unsigned long long)str_hash(head));
    }
    for (size_t i = 0; i < b->n_items; i++)
        describe_item(key, &b->items[i]);
    return !key->failed;
}

bool model_cache_read(struct model *m, struct binder *b, struct checkpoint *c)
{
    struct buf key;
    struct err why = {0};
    if (!m->options.cache.dir || !make_key(m, b, c, &key))
        return false;
    enum pack_cache_found found =
        pack_cache_read(m->options.cache.dir, buf_str(&key), m->backend, m->weights_block, m->weights_bytes, &why);
    if (found == PACK_CACHE_BAD) {
        memset(m->weights_block, 0, m->weights_bytes); /* packing leaves padding as it is */
        note(m, "packed cache: %s; the model is packed anew", why.text);
    }
    buf_release(&key);
    if (found == PACK_CACHE_READ)
        binder_attach(b);
    return found == PACK_CACHE_READ;
}

static void *write_block(void *arg)
{
    struct writer *w = arg;
    struct model *m = w->m;
    struct err err = {0};
    if (pack_cache_write(m->options.cache.dir, (struct str){w->key, w->key_len}, m->weights_block, m->weights_bytes,
                         m->options.cache.bytes_max, &w->stop, &err))
        note(m, "packed cache: %zu bytes kept", m->weights_bytes);
    else if (err.text[0])
        note(m, "%s", err.text);
    return NULL;
}

void model_cache_write(struct model *m, struct binder *b, struct checkpoint *c)
{
    struct buf key;
    if (!m->options.cache.dir || !make_key(m, b, c, &key))
        return;
    struct writer *w = calloc(1, sizeof *w);
    if (w) {
        w->m = m;
        w->key = key.data;
        w->key_len = key.len;
        if (pthread_create(&w->thread, NULL, write_block, w) == 0) {
            m->writer = w; /* owns the key's bytes from here on */
            return;
        }
        free(w);
    }
    buf_release(&key);
    note(m, "packed cache: no thread to write it with");
}

static void join(struct model *m)
{
    pthread_join(m->writer->thread, NULL);
    free(m->writer->key);
    free(m->writer);
    m->writer = NULL;
}

void model_cache_wait(struct model *m)
{
    if (m->writer)
        join(m);
}

void model_cache_close(struct model *m)
{
    if (!m->writer)
        return;
    m->writer->stop = true;
    join(m);
}
