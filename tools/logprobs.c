/* logprobs MODEL PROFILE KV_TYPE [CHUNK [THREADS [ISA [WINDOW]]]] < ids > log-probabilities
 *
 * Reads token ids as text, feeds them as one sequence in chunks (or as several of WINDOW ids each), writes
 * [ids][vocabulary] fp32 in the machine's byte order. What tools/check_smollm2.py and tools/quality.py compare with transformers. */
#include "model/model.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#define IDS_MAX 8192

static int fail(const char *what, const struct err *err)
{
    fprintf(stderr, "logprobs: %s: %s\n", what, err->text);
    return 1;
}

static void write_rows(const float *logits, size_t n, size_t n_vocab)
{
    float *row = malloc(n_vocab * sizeof *row);
    for (size_t r = 0; row && r < n; r++, logits += n_vocab) {
        double max = -INFINITY, sum = 0;
        for (size_t v = 0; v < n_vocab; v++)
            max = fmax(max, (double)logits[v]);
        for (size_t v = 0; v < n_vocab; v++)
            sum += exp((double)logits[v] - max);
        for (size_t v = 0; v < n_vocab; v++)
            row[v] = (float)((double)logits[v] - max - log(sum));
        fwrite(row, sizeof *row, n_vocab, stdout);
    }
    free(row);
}

static bool feed(struct model *m, const int32_t *ids, size_t n, size_t chunk, struct err *err)
{
    struct kv_cache kv = model_kv_shape(m);
    kv.n_pages = (n + KV_PAGE_TOKENS - 1) / KV_PAGE_TOKENS;
    size_t bytes = kv.n_pages * kv.n_layers * kv.layer_bytes;
    kv.data = backend_alloc(model_backend(m), bytes, err);
    int32_t *numbers = malloc((n + kv.n_pages) * sizeof *numbers);
    for (size_t i = 0; numbers && i < n + kv.n_pages; i++)
        numbers[i] = (int32_t)i;
    if (!kv.data || !numbers)
        return false;
    for (size_t pos = 0; pos < n; pos += chunk) {
        size_t rows = pos + chunk < n ? chunk : n - pos;
        struct batch_seq seq = {.pages = numbers, .n_pages = kv.n_pages, .n_rows = rows, .pos = pos, .n_prompt = n};
        struct batch batch = {.ids = ids + pos,
                              .positions = numbers + pos,
                              .n_rows = rows,
                              .seqs = &seq,
                              .n_seqs = 1,
                              .logit_rows = numbers,
                              .n_logit_rows = rows};
        write_rows(model_forward(m, &kv, &batch), rows, model_info(m)->n_vocab);
    }
    free(numbers);
    backend_free(model_backend(m), kv.data, bytes);
    return true;
}

int main(int argc, char **argv)
{
    static int32_t ids[IDS_MAX];
    struct err err = {0};
    size_t n = 0;
    if (argc < 4) {
        fprintf(stderr, "usage: logprobs MODEL PROFILE KV_TYPE [CHUNK [THREADS [ISA [WINDOW]]]] < ids\n");
        return 2;
    }
    while (n < IDS_MAX && scanf("%d", &ids[n]) == 1)
        n++;
    size_t chunk = argc > 4 ? (size_t)atoi(argv[4]) : 256;
    struct backend_options bo = {.n_threads = argc > 5 ? (unsigned)atoi(argv[5]) : 0, .isa = argc > 6 ? argv[6] : "auto"};
    struct model_options mo = {
        .profile = profile_from_name(argv[2], strlen(argv[2])), .rows_max = chunk, .logit_rows_max = chunk};
    if (!kv_type_from_name(argv[3], &mo.kv_type)) {
        fprintf(stderr, "logprobs: there is no KV type '%s'\n", argv[3]);
        return 2;
    }
    struct checkpoint *c = checkpoint_open(argv[1], &err);
    struct backend *b = c ? backend_open_cpu(&bo, &err) : NULL;
    struct model *m = b ? model_load(c, b, &mo, NULL, NULL, &err) : NULL;
    if (!m)
        return fail(argv[1], &err);
    fprintf(stderr, "logprobs: %s, %zu ids, weights %.1f MB, %s\n", backend_mode(b), n,
            (double)model_planned(m)->weight_bytes / 1e6, model_planned(m)->lossy[0] ? model_planned(m)->lossy : "exact");
    for (size_t i = 0; i < n; i++) {
        if (ids[i] < 0 || (size_t)ids[i] >= model_info(m)->n_vocab)
            return fail("an id is out of range", &err);
    }
    size_t window = argc > 7 ? (size_t)atoi(argv[7]) : n;
    bool ok = true;
    for (size_t at = 0; ok && at < n; at += window)
        ok = feed(m, ids + at, at + window < n ? window : n - at, chunk, &err);
    model_free(m);
    backend_close(b);
    checkpoint_close(c);
    return ok ? 0 : fail("a step", &err);
}
