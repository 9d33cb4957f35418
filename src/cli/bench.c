/* inferd bench MODEL: how fast a model runs here, without a server; with --profile, where a step's time goes. The prompt
 * is made of token ids in a row, keys and values behind a stream are zeros: speed does not depend on them. */
#include "cli/cli.h"

#include "base/clock.h"
#include "model/model.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>

#define PROMPT          512
#define BEHIND          128 /* positions behind each stream */
#define BEHIND_LONG     2048
#define BEHIND_DEEP     6000 /* in a long prompt */
#define ROWS_DEEP       256
#define SHARED          400 /* positions that streams have in common: whole pages of them are shared */
#define PAGES_MAX       (STREAMS_MAX * (BEHIND / KV_PAGE_TOKENS + 1))
#define STREAMS_MAX     64
#define STEPS_MIN       3
#define MEASURE_NS      1500000000u
#define READ_BYTES      ((size_t)512 << 20) /* more than large caches hold */
#define READ_SAMPLE     (READ_BYTES / READ_SAMPLES)
#define HUGE_PAGE_BYTES ((size_t)2 << 20)
#define READ_PART_BYTES ((size_t)4 << 20)
#define READ_AHEAD      ((size_t)256) /* words of 8 bytes */
#define READ_SUMS       8
#define READ_SAMPLES    4
#define LINE_WORDS      ((size_t)8)
#define PATH_BYTES      4096

struct bench {
    const char *name, *models_dir;
    struct backend_options backend;
    struct model_options model;
    bool profile, json;
    struct model *m;
    struct kv_cache kv;
    int32_t *pages, ids[PROMPT], positions[PROMPT], rows[PROMPT];
    uint64_t *read; /* READ_BYTES, or NULL where there is no memory for them */
};

struct work {
    const char *what;
    size_t streams, rows, behind; /* each stream gives `rows` rows */
    size_t shared;                /* of the positions behind */
    double seconds;               /* of a step, median */
    double read_gb;               /* of a plain loop, before and after: median */
    size_t steps;
    struct backend_profile spent;
};

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* ---- the limit of reading ---- */

struct reading {
    const uint64_t *data;
    _Atomic uint64_t sum[READ_SUMS]; /* so that nobody leaves the loop out */
};

/* Parts of READ_PART_BYTES each, as two streams line by line with both asked for ahead: one stream reads less. */
static void read_part(void *arg, size_t begin, size_t end, unsigned thread)
{
    struct reading *r = arg;
    uint64_t sum[LINE_WORDS] = {0};
    const size_t half = (end - begin) * (READ_PART_BYTES / 2) / sizeof *r->data;
    const uint64_t *at = r->data + begin * (READ_PART_BYTES / sizeof *r->data);
    for (size_t i = 0; i < half; i += LINE_WORDS) {
        __builtin_prefetch(at + i + READ_AHEAD);
        __builtin_prefetch(at + i + half + READ_AHEAD);
        for (size_t k = 0; k < LINE_WORDS; k++)
            sum[k] += at[i + k] + at[i + half + k];
    }
    for (size_t k = 0; k < LINE_WORDS; k++)
        r->sum[thread % READ_SUMS] += sum[k];
}

/* Sample by sample, so that no cache holds what comes next: GB/s of each. 0 without memory for it. */
static void read_limit(const struct bench *b, double *gb)
{
    for (size_t i = 0; i < READ_SAMPLES; i++) {
        struct reading r = {.data = b->read + i * (READ_SAMPLE / sizeof *b->read)};
        uint64_t start = clock_mono_ns();
        if (b->read)
            backend_split(model_backend(b->m), READ_SAMPLE / READ_PART_BYTES, 1, read_part, &r);
        gb[i] = b->read ? (double)READ_SAMPLE / (double)(clock_mono_ns() - start) : 0;
    }
}

/* ---- steps ---- */

static size_t stream_pages(const struct work *w)
{
    return (w->behind + w->rows - 1) / KV_PAGE_TOKENS + 1;
}

static void lay_pages(struct bench *b, const struct work *w)
{
    size_t pages = stream_pages(w);
    CHECK(pages * w->streams <= PAGES_MAX);
    for (size_t i = 0; i < pages * w->streams; i++)
        b->pages[i] = (int32_t)(PAGES_MAX - 1 - (i % pages < w->shared / KV_PAGE_TOKENS ? i % pages : i));
}

static void step(struct bench *b, const struct work *w, size_t step)
{
    struct batch_seq seqs[STREAMS_MAX];
    size_t pages = stream_pages(w);
    for (size_t s = 0; s < w->streams; s++) {
        seqs[s] = (struct batch_seq){.pages = b->pages + s * pages,
                                     .n_pages = pages,
                                     .row = s * w->rows,
                                     .n_rows = w->rows,
                                     .pos = w->behind,
                                     .n_prompt = w->behind + w->rows};
        for (size_t r = 0; r < w->rows; r++) {
            size_t row = s * w->rows + r;
            b->positions[row] = (int32_t)(w->behind + r);
            b->ids[row] = (int32_t)((row * 7 + step) % model_info(b->m)->n_vocab);
        }
        b->rows[s] = (int32_t)((s + 1) * w->rows - 1);
    }
    struct batch batch = {.ids = b->ids,
                          .positions = b->positions,
                          .n_rows = w->streams * w->rows,
                          .seqs = seqs,
                          .n_seqs = w->streams,
                          .logit_rows = b->rows,
                          .n_logit_rows = w->streams};
    model_forward(b->m, &b->kv, &batch);
}

static void measure(struct bench *b, struct work *w)
{
    double times[1024], gb[2 * READ_SAMPLES];
    lay_pages(b, w);
    read_limit(b, gb);
    step(b, w, 0);
    if (b->profile)
        backend_profile_into(model_backend(b->m), &w->spent);
    uint64_t begin = clock_mono_ns(), start = begin, now;
    do {
        step(b, w, w->steps);
        now = clock_mono_ns();
        times[w->steps++] = (double)(now - start) * 1e-9;
        start = now;
    } while (w->steps < STEPS_MIN || (now - begin < MEASURE_NS && w->steps < sizeof times / sizeof *times));
    backend_profile_into(model_backend(b->m), NULL);
    qsort(times, w->steps, sizeof *times, by_value);
    w->seconds = times[w->steps / 2];
    read_limit(b, gb + READ_SAMPLES);
    qsort(gb, 2 * READ_SAMPLES, sizeof *gb, by_value);
    w->read_gb = gb[READ_SAMPLES];
}

static void print_profile(const struct work *w)
{
    double total = 0;
    for (int i = 0; i < BACKEND_OPS; i++)
        total += (double)w->spent.ops[i].ns;
    for (int i = 0; i < BACKEND_OPS; i++) {
        uint64_t ns = w->spent.ops[i].ns;
        if (w->spent.ops[i].calls == 0)
            continue;
        printf("    %-16s %5.1f %%  %9.3f ms  %5.0f calls", backend_op_name((enum backend_op)i), 100 * (double)ns / total,
               (double)ns * 1e-6 / (double)w->steps, (double)w->spent.ops[i].calls / (double)w->steps);
        if (w->spent.ops[i].bytes > 0)
            printf("  %6.1f GB/s (%3.0f %% of reading)  %6.0f GFLOP/s", w->spent.ops[i].bytes / (double)ns,
                   100 * w->spent.ops[i].bytes / (double)ns / w->read_gb, w->spent.ops[i].flops / (double)ns);
        printf("\n");
    }
    const double other = total - (double)w->spent.ops[BACKEND_LINEAR].ns - (double)w->spent.ops[BACKEND_ATTENTION].ns;
    const double bytes = w->spent.ops[BACKEND_LINEAR].bytes + w->spent.ops[BACKEND_ATTENTION].bytes;
    printf("    neither products nor attention: %.1f %%; the whole step reads %.1f GB/s (%.0f %%)\n", 100 * other / total,
           bytes / total, 100 * bytes / total / w->read_gb);
}

static void print(const struct bench *b, const struct work *w, size_t index)
{
    double rate = (double)(w->streams * w->rows) / w->seconds;
    if (b->json) {
        printf("%s{\"work\":\"%s\",\"streams\":%zu,\"rows\":%zu,\"behind\":%zu,\"shared\":%zu,\"step_ms\":%.4f,"
               "\"tokens_per_second\":%.2f,\"read_gb_per_second\":%.1f",
               index ? "," : "", w->what, w->streams, w->rows, w->behind, w->shared, w->seconds * 1e3, rate, w->read_gb);
        if (b->profile) {
            printf(",\"operations\":{");
            for (int i = 0; i < BACKEND_OPS; i++)
                printf("%s\"%s\":%.4f", i ? "," : "", backend_op_name((enum backend_op)i),
                       (double)w->spent.ops[i].ns * 1e-6 / (double)w->steps);
            printf("}");
        }
        printf("}");
        return;
    }
    printf("%-8s %2zu x %3zu rows behind %4zu", w->what, w->streams, w->rows, w->behind);
    if (w->shared)
        printf(" (%zu shared)", w->shared);
    printf("  %9.3f ms  %8.1f tok/s; a plain loop reads %.1f GB/s\n", w->seconds * 1e3, rate, w->read_gb);
    if (b->profile)
        print_profile(w);
}

/* ---- the whole ---- */

static struct checkpoint *open_model(const struct bench *b, struct err *err)
{
    static const char *const forms[] = {"%s/%s", "%s/%s.gguf"};
    char path[PATH_BYTES];
    struct stat st;
    if (stat(b->name, &st) == 0)
        return checkpoint_open(b->name, err);
    for (size_t i = 0; i < 2; i++) {
        snprintf(path, sizeof path, forms[i], b->models_dir, b->name);
        if (stat(path, &st) == 0)
            return checkpoint_open(path, err);
    }
    err_set(err, ERR_MODEL_NOT_FOUND,
            "There is no model '%s': no such path, and nothing of this name in %s; give a path or --models-dir.", b->name,
            b->models_dir);
    return NULL;
}

static double memory_mb(const char *field)
{
    char line[256];
    double kb = 0;
    FILE *f = fopen("/proc/self/status", "re");
    while (f && fgets(line, sizeof line, f))
        if (strncmp(line, field, strlen(field)) == 0)
            kb = strtod(line + strlen(field) + 1, NULL);
    if (f)
        fclose(f);
    return kb * 1024 / 1e6;
}

static bool open_cache(struct bench *b, struct err *err)
{
    b->kv = model_kv_shape(b->m);
    b->kv.n_pages = PAGES_MAX;
    b->kv.data = backend_alloc(model_backend(b->m), PAGES_MAX * b->kv.n_layers * b->kv.layer_bytes, err);
    b->pages = malloc(PAGES_MAX * sizeof *b->pages);
    if (b->kv.data && b->pages)
        memset(b->kv.data, 0, PAGES_MAX * b->kv.n_layers * b->kv.layer_bytes); /* so that reading it reads memory */
    return b->kv.data && (b->pages || err_set(err, ERR_MEMORY, "Out of memory for page numbers."));
}

static void run_all(struct bench *b, double load_s)
{
    struct work works[] = {{.what = "prefill", .streams = 1, .rows = PROMPT},
                           {.what = "prefill", .streams = 1, .rows = ROWS_DEEP, .behind = BEHIND_DEEP},
                           {.what = "decode", .streams = 1, .rows = 1, .behind = BEHIND},
                           {.what = "decode", .streams = 4, .rows = 1, .behind = BEHIND},
                           {.what = "decode", .streams = 16, .rows = 1, .behind = BEHIND},
                           {.what = "decode", .streams = 16, .rows = 1, .behind = SHARED + SHARED / 20, .shared = SHARED},
                           {.what = "decode", .streams = STREAMS_MAX, .rows = 1, .behind = BEHIND},
                           {.what = "decode", .streams = 1, .rows = 1, .behind = BEHIND_LONG}};
    const struct model_plan *p = model_planned(b->m);
    const char *mode = backend_mode(model_backend(b->m)), *kv = kv_type_name(b->kv.type);
    unsigned threads = backend_threads(model_backend(b->m));
    double peak_mb = memory_mb("VmHWM");
    b->read = aligned_alloc(HUGE_PAGE_BYTES, READ_BYTES);
    if (b->read) {
        madvise(b->read, READ_BYTES, MADV_HUGEPAGE);
        memset(b->read, 1, READ_BYTES);
    }
    if (b->json)
        printf("{\"model\":\"%s\",\"mode\":\"%s\",\"threads\":%u,\"profile\":\"%s\",\"kv_type\":\"%s\",\"load_s\":%.3f,"
               "\"weight_bytes\":%llu,\"results\":[",
               p->info.architecture, mode, threads, profile_name(p->profile), kv, load_s, (unsigned long long)p->weight_bytes);
    else
        printf("%s, %s, KV %s, %s, %u threads\nloaded in %.2f s; weights %.1f MB\n", p->info.architecture,
               profile_name(p->profile), kv, mode, threads, load_s, (double)p->weight_bytes / 1e6);
    for (size_t i = 0, shown = 0; i < sizeof works / sizeof *works; i++) {
        if (works[i].behind + works[i].rows > p->info.context_max)
            continue; /* the model's context is shorter */
        measure(b, &works[i]);
        print(b, &works[i], shown++);
        fflush(stdout);
    }
    double own_mb = b->read ? (double)READ_BYTES / 1e6 : 0, resident_mb = memory_mb("VmRSS") - own_mb;
    if (peak_mb < memory_mb("VmHWM") - own_mb)
        peak_mb = memory_mb("VmHWM") - own_mb;
    free(b->read);
    if (b->json)
        printf("],\"resident_mb\":%.1f,\"peak_mb\":%.1f}\n", resident_mb, peak_mb);
    else
        printf("memory: %.1f MB resident, %.1f MB at most\n", resident_mb, peak_mb);
}

static bool read_arguments(struct bench *b, int argc, char **argv, struct err *err)
{
    for (int i = 2; i < argc; i++) {
        const char *a = argv[i], *value = i + 1 < argc ? argv[i + 1] : "";
        if (strcmp(a, "--profile") == 0 || strcmp(a, "--json") == 0) {
            *(a[2] == 'p' ? &b->profile : &b->json) = true;
            continue;
        }
        if (a[0] != '-' && !b->name) {
            b->name = a;
            continue;
        }
        bool known = true;
        if (strcmp(a, "--weights") == 0)
            known = (b->model.profile = profile_from_name(value, strlen(value))) != PROFILE_AUTO || strcmp(value, "auto") == 0;
        else if (strcmp(a, "--kv-type") == 0)
            known = kv_type_from_name(value, &b->model.kv_type);
        else if (strcmp(a, "--threads") == 0)
            known = (b->backend.n_threads = (unsigned)strtoul(value, NULL, 10)) > 0;
        else if (strcmp(a, "--isa") == 0)
            b->backend.isa = value;
        else if (strcmp(a, "--models-dir") == 0)
            b->models_dir = value;
        else
            return err_set(err, ERR_USAGE, "bench does not know '%s'. See inferd bench --help.", a);
        if (!known)
            return err_set(err, ERR_USAGE, "%s '%s' is not possible. See inferd bench --help.", a, value);
        i++;
    }
    return b->name || err_set(err, ERR_USAGE, "bench needs a model. See inferd bench --help.");
}

int cli_bench(int argc, char **argv)
{
    static struct bench b = {.models_dir = "models",
                             .backend = {.isa = "auto"},
                             .model = {.kv_type = KV_AUTO, .rows_max = PROMPT, .logit_rows_max = STREAMS_MAX}};
    struct err err = {0};
    if (!read_arguments(&b, argc, argv, &err)) {
        fprintf(stderr, "inferd: %s\n", err.text);
        return 2;
    }
    uint64_t start = clock_mono_ns();
    struct checkpoint *c = open_model(&b, &err);
    struct backend *backend = c ? backend_open_cpu(&b.backend, &err) : NULL;
    b.m = backend ? model_load(c, backend, &b.model, NULL, NULL, &err) : NULL;
    double load_s = (double)(clock_mono_ns() - start) * 1e-9;
    bool ok = b.m && open_cache(&b, &err);
    if (ok)
        run_all(&b, load_s);
    else
        fprintf(stderr, "inferd: %s\n", err.text);
    if (b.m) {
        backend_free(backend, b.kv.data, b.kv.n_pages * b.kv.n_layers * b.kv.layer_bytes);
        free(b.pages);
        model_free(b.m);
    }
    backend_close(backend);
    checkpoint_close(c);
    return ok ? 0 : err_info(err.code)->exit_code;
}
