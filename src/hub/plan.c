/* Which files of a repository are needed: the weights in one format (safetensors, else GGUF; pickles are refused, for
 * loading one runs code) and, beside safetensors, configuration and tokenizer. Pure: a listing in, indices out.
 *
 * Only what lies at the top counts for safetensors (subfolders hold other formats: onnx/, original/, ...). A GGUF model
 * may lie in a subfolder (split models often do); it carries its own tokenizer and configuration. */
#include "hub/impl.h"

#include <ctype.h>
#include <stdio.h>
#include <stdlib.h>
#include <strings.h>

#define SPLIT_PARTS_MAX  99999
#define SPLIT_MODELS_MAX 512 /* of one repository; more are not looked at */

/* Best first, of what fits a machine without being asked for. Not listed: taken by name, last. */
static const char *const quants_by_choice[] = {
    "Q4_K_M", "UD-Q4_K_XL", "Q4_K_S", "Q4_K_L", "Q4_K",      "Q4_1",   "Q4_0",   "IQ4_NL", "IQ4_XS", "Q5_K_M", "Q5_K_S", "Q5_1",
    "Q5_0",   "Q6_K",       "Q8_0",   "MXFP4",  "MXFP4_MOE", "Q3_K_L", "Q3_K_M", "BF16",   "F16",    "FP16",   "F32",    "FP32",
};
#define N_QUANTS (sizeof quants_by_choice / sizeof *quants_by_choice)

static const char *const small_files[] = {
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.json",
    "vocab.txt",
    "merges.txt",
    "tokenizer.model",
    "tokenizer.model.v3",
    "tekken.json",
    "spiece.model",
    "sentencepiece.bpe.model",
    "sentencepiece.model",
    "tiktoken.model",
    "qwen.tiktoken",
    "chat_template.jinja",
    "chat_template.json",
    "quantize_config.json",
    "quant_config.json",
    "processor_config.json",
    "preprocessor_config.json",
};

static bool ends(const char *path, const char *suffix)
{
    size_t n = strlen(path), m = strlen(suffix);
    return n > m && strcasecmp(path + n - m, suffix) == 0;
}

static bool is_top(const char *path)
{
    return !strchr(path, '/');
}

static const char *base_name(const char *path)
{
    const char *slash = strrchr(path, '/');
    return slash ? slash + 1 : path;
}

bool plan_split_name(const char *path, const char *suffix, unsigned *part, unsigned *n_parts, size_t *stem_len)
{
    size_t n = strlen(path), m = strlen(suffix);
    if (n < m + 16 || strcasecmp(path + n - m, suffix) != 0)
        return false;
    const char *tail = path + n - m - 15; /* -00001-of-00003 */
    for (size_t i = 0; i < 15; i++) {
        char want = "-ddddd-of-ddddd"[i];
        if (want == 'd' ? !isdigit((unsigned char)tail[i]) : tail[i] != want)
            return false;
    }
    *part = (unsigned)strtoul(tail + 1, NULL, 10);
    *n_parts = (unsigned)strtoul(tail + 10, NULL, 10);
    *stem_len = (size_t)(tail - path);
    return *part >= 1 && *n_parts >= 1 && *part <= *n_parts && *n_parts <= SPLIT_PARTS_MAX;
}

/* Length of the quantization that begins at s: (UD-)?(I?Q[1-8](_[A-Z0-9]{1,3})* | TQ[12]_0 | MXFP4(_MOE)? | B?F(P)?16,32) */
static size_t quant_len(const char *s)
{
    const char *p = s;
    if (strncasecmp(p, "UD-", 3) == 0)
        p += 3;
    if (strncasecmp(p, "MXFP4", 5) == 0)
        return (size_t)(p - s) + (strncasecmp(p + 5, "_MOE", 4) == 0 ? 9 : 5);
    static const char *const floats[] = {"BF16", "FP16", "FP32", "F16", "F32"};
    for (size_t i = 0; i < sizeof floats / sizeof *floats; i++) {
        if (strncasecmp(p, floats[i], strlen(floats[i])) == 0)
            return (size_t)(p - s) + strlen(floats[i]);
    }
    p += tolower((unsigned char)*p) == 'i' || tolower((unsigned char)*p) == 't';
    if (tolower((unsigned char)*p) != 'q' || !isdigit((unsigned char)p[1]))
        return 0;
    p += 2;
    while (*p == '_') {
        size_t n = 0;
        while (isalnum((unsigned char)p[1 + n]))
            n++;
        if (n == 0 || n > 3)
            break;
        p += 1 + n;
    }
    return (size_t)(p - s);
}

bool plan_gguf_quant(const char *path, char out[HUB_QUANT_BYTES_MAX])
{
    size_t stem = 0;
    unsigned part, n_parts;
    const char *name = base_name(path);
    if (!ends(name, ".gguf"))
        return false;
    if (!plan_split_name(name, ".gguf", &part, &n_parts, &stem))
        stem = strlen(name) - strlen(".gguf");
    bool found = false;
    for (size_t i = 0; i < stem; i++) {
        bool bound = i == 0 || !isalnum((unsigned char)name[i - 1]);
        size_t n = bound ? quant_len(name + i) : 0;
        if (n == 0 || n >= HUB_QUANT_BYTES_MAX || i + n > stem || (i + n < stem && isalnum((unsigned char)name[i + n])))
            continue;
        for (size_t k = 0; k < n; k++)
            out[k] = (char)toupper((unsigned char)name[i + k]);
        out[n] = 0;
        found = true;
        i += n - 1;
    }
    return found;
}

/* ---- GGUF -------------------------------------------------------------------------------------------------------------- */

struct gguf_model {
    size_t first;     /* index of part 1, or of the file */
    unsigned n_parts; /* that its name promises; 1 = whole */
    unsigned n_found;
    size_t stem_len; /* of a split one */
    char quant[HUB_QUANT_BYTES_MAX];
};

static bool is_gguf_weights(const char *path)
{
    const char *name = base_name(path);
    return ends(path, ".gguf") && !strcasestr(name, "mmproj") && !strcasestr(name, "imatrix");
}

static bool same_split(const char *a, const char *b, const struct gguf_model *m)
{
    unsigned part, n_parts;
    size_t stem_len;
    return plan_split_name(b, ".gguf", &part, &n_parts, &stem_len) && n_parts == m->n_parts && stem_len == m->stem_len &&
           memcmp(a, b, stem_len) == 0;
}

/* One row a model. Returns a heap array, NULL with n = 0 when there is none or no memory. */
static struct gguf_model *gguf_models(const struct hub_listing *l, size_t *n)
{
    struct gguf_model *models = calloc(l->n_items ? l->n_items : 1, sizeof *models);
    size_t n_split = 0;
    *n = 0;
    for (size_t i = 0; models && i < l->n_items; i++) {
        const char *path = l->items[i].path;
        if (!is_gguf_weights(path))
            continue;
        struct gguf_model m = {.first = i, .n_parts = 1, .n_found = 1};
        unsigned part = 1;
        plan_gguf_quant(path, m.quant);
        if (plan_split_name(path, ".gguf", &part, &m.n_parts, &m.stem_len) && (part != 1 || n_split++ >= SPLIT_MODELS_MAX))
            continue;
        for (size_t k = 0; m.stem_len && k < l->n_items; k++)
            m.n_found += k != i && same_split(path, l->items[k].path, &m);
        models[(*n)++] = m;
    }
    return models;
}

/* "q4_k_m" asks for Q4_K_M; a quantization that the list of names does not know is found as the name's end. */
static bool quant_matches(const struct hub_listing *l, const struct gguf_model *m, const char *asked)
{
    if (strcasecmp(m->quant, asked) == 0)
        return true;
    const char *path = l->items[m->first].path;
    size_t stem = m->stem_len ? m->stem_len : strlen(path) - strlen(".gguf"), n = strlen(asked);
    return stem > n && strncasecmp(path + stem - n, asked, n) == 0 && !isalnum((unsigned char)path[stem - n - 1]);
}

static size_t choice_rank(const struct gguf_model *m)
{
    for (size_t i = 0; i < N_QUANTS; i++) {
        if (strcasecmp(m->quant, quants_by_choice[i]) == 0)
            return i;
    }
    return m->quant[0] ? N_QUANTS : N_QUANTS + 1;
}

static size_t depth(const char *path)
{
    size_t n = 0;
    for (; *path; path++)
        n += *path == '/';
    return n;
}

/* Whether a is to be taken before b: by quantization, then what lies higher, then by name. */
static bool better(const struct hub_listing *l, const struct gguf_model *a, const struct gguf_model *b, bool by_choice)
{
    const char *pa = l->items[a->first].path, *pb = l->items[b->first].path;
    if (by_choice && choice_rank(a) != choice_rank(b))
        return choice_rank(a) < choice_rank(b);
    return depth(pa) != depth(pb) ? depth(pa) < depth(pb) : strcmp(pa, pb) < 0;
}

/* "Q4_K_M, Q8_0" for an error's text. */
static void quants_text(const struct gguf_model *models, size_t n, char *out, size_t out_bytes)
{
    size_t at = 0;
    out[0] = 0;
    for (size_t i = 0; i < n && at + HUB_QUANT_BYTES_MAX < out_bytes; i++) {
        bool seen = !models[i].quant[0];
        for (size_t k = 0; k < i; k++)
            seen |= strcasecmp(models[k].quant, models[i].quant) == 0;
        if (!seen)
            at += (size_t)snprintf(out + at, out_bytes - at, "%s%s", at ? ", " : "", models[i].quant);
    }
}

static bool take(struct hub_plan *p, const struct hub_listing *l, size_t index, struct err *err)
{
    if (!p->index && !(p->index = calloc(l->n_items, sizeof *p->index)))
        return err_set(err, ERR_MEMORY, "no memory for a plan of %zu files", l->n_items);
    if (p->n >= HUB_PLAN_FILES_MAX)
        return err_set(err, ERR_UNSUPPORTED, "the model has more than %d files", HUB_PLAN_FILES_MAX);
    p->index[p->n++] = index;
    return true;
}

static bool plan_gguf(const struct hub_listing *l, const char *repo, const char *quant, struct hub_plan *out, struct err *err)
{
    size_t n;
    struct gguf_model *models = gguf_models(l, &n), *best = NULL;
    for (size_t i = 0; i < n; i++) {
        if (quant[0] && !quant_matches(l, &models[i], quant))
            continue;
        if (!best || better(l, &models[i], best, !quant[0]))
            best = &models[i];
    }
    char have[512];
    quants_text(models, n, have, sizeof have);
    bool ok = true;
    if (!best && n == 0)
        ok = err_set(err, ERR_MODEL_NOT_FOUND, "'%s' has no GGUF file%s%s%s; leave the part behind ':' out", repo,
                     quant[0] ? " of quantization '" : "", quant, quant[0] ? "'" : "");
    else if (!best)
        ok = err_set(err, ERR_MODEL_NOT_FOUND, "'%s' has no GGUF file of quantization '%s'; it has %s", repo, quant, have);
    else if (best->n_found != best->n_parts)
        ok = err_set(err, ERR_MODEL_DAMAGED, "'%s': '%.300s' is the first of %u parts, but the repository has %u of them", repo,
                     l->items[best->first].path, best->n_parts, best->n_found);
    for (size_t i = 0; ok && i < l->n_items; i++) {
        if (i == best->first || (best->stem_len && same_split(l->items[best->first].path, l->items[i].path, best)))
            ok = take(out, l, i, err);
    }
    if (ok) {
        snprintf(out->entry, sizeof out->entry, "%s", l->items[best->first].path);
        snprintf(out->quant, sizeof out->quant, "%s", best->quant);
    }
    free(models);
    return ok;
}

/* ---- safetensors --------------------------------------------------------------------------------------------------------- */

static const struct hub_entry *find(const struct hub_listing *l, const char *path)
{
    for (size_t i = 0; i < l->n_items; i++) {
        if (strcmp(l->items[i].path, path) == 0)
            return &l->items[i];
    }
    return NULL;
}

static bool is_small_file(const char *path)
{
    if (strncmp(path, "additional_chat_templates/", 26) == 0)
        return ends(path, ".jinja") && is_top(path + 26);
    for (size_t i = 0; i < sizeof small_files / sizeof *small_files; i++) {
        if (strcmp(path, small_files[i]) == 0)
            return true;
    }
    return is_top(path) && ends(path, ".tiktoken");
}

/* What the weights are: model.safetensors, else the shards of one name, else any file of the format at the top. */
enum weights_kind { WEIGHTS_NONE, WEIGHTS_WHOLE, WEIGHTS_SHARDS, WEIGHTS_OTHER };

static bool is_foreign(const char *path)
{
    return strncmp(path, "consolidated", 12) == 0 || strncmp(path, "adapter_", 8) == 0;
}

static enum weights_kind weights_kind(const struct hub_listing *l)
{
    enum weights_kind kind = WEIGHTS_NONE;
    for (size_t i = 0; i < l->n_items; i++) {
        const char *path = l->items[i].path;
        unsigned part, n_parts;
        size_t stem;
        if (strcmp(path, "model.safetensors") == 0)
            return WEIGHTS_WHOLE;
        if (!is_top(path) || !ends(path, ".safetensors") || is_foreign(path))
            continue;
        if (plan_split_name(path, ".safetensors", &part, &n_parts, &stem) && stem == 5 && !memcmp(path, "model", 5))
            kind = WEIGHTS_SHARDS;
        else if (kind == WEIGHTS_NONE)
            kind = WEIGHTS_OTHER;
    }
    return kind;
}

static bool is_weight(const char *path, enum weights_kind kind)
{
    unsigned part, n_parts;
    size_t stem;
    if (!is_top(path) || !ends(path, ".safetensors") || is_foreign(path))
        return false;
    if (kind == WEIGHTS_WHOLE)
        return strcmp(path, "model.safetensors") == 0;
    bool shard = plan_split_name(path, ".safetensors", &part, &n_parts, &stem) && stem == 5 && !memcmp(path, "model", 5);
    return kind == WEIGHTS_OTHER || shard;
}

/* Shards say in their names how many they are. */
static bool shards_whole(const struct hub_listing *l, const char *repo, enum weights_kind kind, struct err *err)
{
    unsigned part, n_parts, n_found = 0, n_want = 0;
    size_t stem;
    for (size_t i = 0; kind == WEIGHTS_SHARDS && i < l->n_items; i++) {
        if (!is_weight(l->items[i].path, kind))
            continue;
        plan_split_name(l->items[i].path, ".safetensors", &part, &n_parts, &stem);
        n_found++;
        n_want = n_want > n_parts ? n_want : n_parts;
    }
    return n_found >= n_want || err_set(err, ERR_MODEL_DAMAGED,
                                        "'%s' has %u of the %u files "
                                        "model-*-of-%05u.safetensors: the weights are not whole",
                                        repo, n_found, n_want, n_want);
}

static bool plan_safetensors(const struct hub_listing *l, const char *repo, enum weights_kind kind, struct hub_plan *out,
                             struct err *err)
{
    if (!find(l, "config.json"))
        return err_set(err, ERR_MODEL_UNSUPPORTED,
                       "'%s' has safetensors but no config.json at its top: it is no causal "
                       "language model in Hugging Face's form, which is what inferd loads",
                       repo);
    if (!shards_whole(l, repo, kind, err))
        return false;
    for (size_t i = 0; i < l->n_items; i++) {
        bool index = kind == WEIGHTS_SHARDS && strcmp(l->items[i].path, "model.safetensors.index.json") == 0;
        if ((index || is_small_file(l->items[i].path)) && !take(out, l, i, err))
            return false;
    }
    for (size_t i = 0; i < l->n_items; i++) {
        if (is_weight(l->items[i].path, kind) && !take(out, l, i, err))
            return false;
    }
    return true;
}

static bool refuse(const struct hub_listing *l, const char *repo, struct err *err)
{
    static const char *const pickles[] = {".bin", ".pt", ".pth", ".ckpt", ".pkl"};
    for (size_t i = 0; i < l->n_items; i++) {
        for (size_t k = 0; k < sizeof pickles / sizeof *pickles; k++) {
            if (ends(l->items[i].path, pickles[k]) && !strstr(l->items[i].path, "training_args"))
                return err_set(err, ERR_MODEL_UNSUPPORTED,
                               "'%s' has its weights only as Python pickles ('%.200s'), and "
                               "loading a pickle can run code: take a repository with safetensors or GGUF files, or save "
                               "the model with safe_serialization=True",
                               repo, l->items[i].path);
        }
    }
    if (find(l, "adapter_config.json"))
        return err_set(err, ERR_MODEL_UNSUPPORTED,
                       "'%s' is an adapter (adapter_config.json), no whole model: merge it "
                       "into its base model first",
                       repo);
    return err_set(err, ERR_MODEL_UNSUPPORTED,
                   "'%s' has no weights as safetensors or GGUF among its %zu files: inferd "
                   "loads no other format",
                   repo, l->n_items);
}

static int by_path(const void *a, const void *b, void *listing)
{
    const struct hub_listing *l = listing;
    return strcmp(l->items[*(const size_t *)a].path, l->items[*(const size_t *)b].path);
}

bool plan_make(const struct hub_listing *l, const char *repo, const char *quant, struct hub_plan *out, struct err *err)
{
    *out = (struct hub_plan){0};
    size_t n_gguf;
    free(gguf_models(l, &n_gguf));
    enum weights_kind kind = weights_kind(l);
    bool ok;
    if (quant[0] || (kind == WEIGHTS_NONE && n_gguf))
        ok = plan_gguf(l, repo, quant, out, err);
    else if (kind != WEIGHTS_NONE)
        ok = plan_safetensors(l, repo, kind, out, err);
    else
        ok = refuse(l, repo, err);
    if (!ok) {
        plan_release(out);
        return false;
    }
    size_t n_small = 0;
    while (n_small < out->n && !ends(l->items[out->index[n_small]].path, ".safetensors") && !out->entry[0])
        n_small++;
    qsort_r(out->index, n_small, sizeof *out->index, by_path, (void *)l);
    qsort_r(out->index + n_small, out->n - n_small, sizeof *out->index, by_path, (void *)l);
    return true;
}

void plan_release(struct hub_plan *p)
{
    free(p->index);
    *p = (struct hub_plan){0};
}
