/* config.json: field readers, rotary scaling in both spellings, layer types, end tokens, and the choice of architecture.
 * The keys that one architecture alone has are read in its arch_*.c; GGUF metadata in config_gguf.c. */
#include "model/model_impl.h"
#include "model/checkpoint_impl.h"

#include <math.h>
#include <stdio.h>

static const struct arch *const ARCHS[] = {&arch_llama, &arch_gpt2, &arch_opt,   &arch_smollm3,   &arch_granite,
                                           &arch_olmo2, &arch_phi3, &arch_gemma, &arch_starcoder2};
#define N_ARCHS (sizeof ARCHS / sizeof ARCHS[0])

static bool is_own(const char *const *own, const char *key)
{
    for (size_t i = 0; own && own[i]; i++) {
        if (strcmp(own[i], key) == 0)
            return true;
    }
    return false;
}

/* ---- failures ---- */

static void fail(struct config_reader *r, enum err_code code, const char *format, va_list args)
{
    if (r->failed)
        return;
    char text[ERR_TEXT_BYTES_MAX / 2];
    vsnprintf(text, sizeof text, format, args);
    r->failed = true;
    err_set(r->err, code, "config.json: %s", text);
}

void config_refuse(struct config_reader *r, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fail(r, ERR_MODEL_DAMAGED, format, args);
    va_end(args);
}

void config_unsupported(struct config_reader *r, const char *format, ...)
{
    va_list args;
    va_start(args, format);
    fail(r, ERR_MODEL_UNSUPPORTED, format, args);
    va_end(args);
}

/* ---- fields ---- */

/* NULL when absent or null. */
static const json_t *field(const struct config_reader *r, const char *key)
{
    const json_t *v = r->failed ? NULL : json_object_get(r->json, key);
    return v && !json_is_null(v) ? v : NULL;
}

/* Text of a JSON value for an error; `out` holds 80 bytes. */
static const char *show(const json_t *v, char out[80])
{
    char *s = json_dumps(v, JSON_ENCODE_ANY | JSON_COMPACT | JSON_ENSURE_ASCII);
    snprintf(out, 80, "%s", s ? s : "?");
    free(s);
    return out;
}

size_t config_size(struct config_reader *r, const char *key, size_t otherwise, size_t min, size_t max)
{
    char text[80];
    const json_t *v = field(r, key);
    if (!v) {
        if (otherwise == CONFIG_REQUIRED)
            config_refuse(r, "\"%s\" is missing", key);
        return r->failed ? min : otherwise;
    }
    if (!json_is_integer(v) || json_integer_value(v) < 0 || (uint64_t)json_integer_value(v) < min ||
        (uint64_t)json_integer_value(v) > max) {
        config_refuse(r, "\"%s\" is %s, expected a whole number from %zu to %zu", key, show(v, text), min, max);
        return min;
    }
    return (size_t)json_integer_value(v);
}

double config_number(struct config_reader *r, const char *key, double otherwise, double min, double max)
{
    char text[80];
    const json_t *v = field(r, key);
    if (!v)
        return otherwise;
    double d = json_number_value(v);
    if (!json_is_number(v) || !(d >= min && d <= max)) {
        config_refuse(r, "\"%s\" is %s, expected a number from %g to %g", key, show(v, text), min, max);
        return min;
    }
    return d;
}

int config_flag(struct config_reader *r, const char *key, int otherwise)
{
    char text[80];
    const json_t *v = field(r, key);
    if (!v)
        return otherwise;
    if (!json_is_boolean(v))
        config_refuse(r, "\"%s\" is %s, expected true or false", key, show(v, text));
    return json_is_true(v);
}

enum activation config_activation(struct config_reader *r, const char *key, const char *otherwise)
{
    static const struct {
        const char *name;
        enum activation act;
    } NAMES[] = {
        {"silu", ACT_SILU},
        {"swish", ACT_SILU},
        {"gelu_new", ACT_GELU_TANH},
        {"gelu_pytorch_tanh", ACT_GELU_TANH},
        {"gelu_python_tanh", ACT_GELU_TANH},
        {"gelu_fast", ACT_GELU_TANH},
        {"gelu_accurate", ACT_GELU_TANH},
        {"gelu", ACT_GELU_ERF},
        {"gelu_python", ACT_GELU_ERF},
        {"relu", ACT_RELU},
        {"quick_gelu", ACT_GELU_QUICK},
    };
    char text[80];
    const json_t *v = field(r, key);
    const char *name = v ? json_string_value(v) : otherwise;
    for (size_t i = 0; name && i < sizeof NAMES / sizeof NAMES[0]; i++) {
        if (strcmp(name, NAMES[i].name) == 0)
            return NAMES[i].act;
    }
    config_unsupported(r,
                       "\"%s\" is %s; supported are silu, swish, relu, gelu, gelu_new, gelu_pytorch_tanh, gelu_fast, "
                       "quick_gelu",
                       key, v ? show(v, text) : name);
    return ACT_SILU;
}

/* ---- rotary embedding ---- */

static void read_factors(struct config_reader *r, const char *key, size_t n, double *out)
{
    const json_t *list = field(r, key);
    if (!json_is_array(list) || json_array_size(list) != n) {
        config_refuse(r, "longrope's \"%s\" has %zu numbers, expected %zu (half of the rotated dimensions)", key,
                      json_array_size(list), n);
        return;
    }
    for (size_t i = 0; i < n; i++) {
        const json_t *v = json_array_get(list, i);
        out[i] = json_number_value(v);
        if (!json_is_number(v) || !(out[i] >= 1e-6 && out[i] <= 1e9)) {
            config_refuse(r, "longrope's \"%s\"[%zu] is not a number from 1e-6 to 1e9", key, i);
            return;
        }
    }
}

const json_t *config_object(struct config_reader *r, const char *key)
{
    char text[80];
    const json_t *v = field(r, key);
    if (v && !json_is_object(v))
        config_refuse(r, "\"%s\" is %s, expected an object", key, show(v, text));
    return json_is_object(v) ? v : NULL;
}

/* Newer files nest the parameters per layer type. No forward here rotates by layer type, so all must agree. */
static const json_t *rope_object(struct config_reader *r, const char *const *own)
{
    const json_t *scaling = config_object(r, "rope_scaling"), *parameters = config_object(r, "rope_parameters");
    const json_t *p = json_object_size(scaling) ? scaling : parameters;
    struct config_reader types = {p, r->err, r->failed};
    const json_t *full = config_object(&types, "full_attention"), *sliding = config_object(&types, "sliding_attention");
    r->failed |= types.failed;
    if (full && sliding && !json_equal(full, sliding) && !is_own(own, "rope_parameters"))
        config_unsupported(r, "\"rope_parameters\" differ between layer types; one set for all layers is supported");
    return full ? full : sliding ? sliding : p;
}

static enum rope_kind rope_kind_of(struct config_reader *r, const json_t *p)
{
    static const struct {
        const char *name;
        enum rope_kind kind;
    } KINDS[] = {{"default", ROPE_DEFAULT}, {"linear", ROPE_LINEAR},     {"dynamic", ROPE_DYNAMIC},
                 {"yarn", ROPE_YARN},       {"longrope", ROPE_LONGROPE}, {"llama3", ROPE_LLAMA3}};
    char text[80];
    const json_t *v = json_object_get(p, "rope_type");
    if (!v)
        v = json_object_get(p, "type");
    if (!v)
        return ROPE_DEFAULT;
    const char *name = json_string_value(v);
    for (size_t i = 0; name && i < sizeof KINDS / sizeof KINDS[0]; i++) {
        if (strcmp(name, KINDS[i].name) == 0)
            return KINDS[i].kind;
    }
    config_unsupported(r, "rope type %s; supported are default, linear, dynamic, yarn, longrope, llama3", show(v, text));
    return ROPE_DEFAULT;
}

static void check_rope_keys(struct config_reader *r, const json_t *p)
{
    static const char *const KNOWN[] = {"rope_type",
                                        "type",
                                        "rope_theta",
                                        "factor",
                                        "original_max_position_embeddings",
                                        "attention_factor",
                                        "beta_fast",
                                        "beta_slow",
                                        "short_factor",
                                        "long_factor",
                                        "low_freq_factor",
                                        "high_freq_factor",
                                        "mscale",
                                        "mscale_all_dim",
                                        "truncate",
                                        "partial_rotary_factor",
                                        "finetuned",
                                        NULL};
    const char *key;
    json_t *value;
    json_object_foreach((json_t *)p, key, value)
    {
        size_t i = 0;
        while (KNOWN[i] && strcmp(KNOWN[i], key) != 0)
            i++;
        char shown[CHECKPOINT_SHOW_BYTES];
        if (!KNOWN[i] && !json_is_null(value))
            config_unsupported(r, "rotary scaling has the unknown key \"%s\"", checkpoint_show(str_from(key), shown));
    }
}

static void read_scaling(struct config_reader *top, const json_t *p, struct model_config *m)
{
    struct rope_config *rope = &m->rope;
    struct config_reader r = {p, top->err, top->failed};
    rope->theta = config_number(&r, "rope_theta", rope->theta, 1.0 + 1e-6, 1e15);
    rope->kind = rope_kind_of(&r, p);
    if (!is_own(m->arch ? m->arch->own_keys : NULL, "partial_rotary_factor") &&
        config_number(&r, "partial_rotary_factor", 1.0, 0, 1e9) != 1.0)
        config_unsupported(&r, "\"partial_rotary_factor\" other than 1 has no effect in %s models", m->architecture);
    if (rope->kind != ROPE_DEFAULT && !r.failed)
        check_rope_keys(&r, p);
    size_t original = config_size(&r, "original_max_position_embeddings", m->context_max, 1, CONFIG_CONTEXT_MAX);
    rope->original_context = config_size(top, "original_max_position_embeddings", original, 1, CONFIG_CONTEXT_MAX);
    int by_ratio = rope->kind == ROPE_YARN || rope->kind == ROPE_LONGROPE;
    if (by_ratio)
        rope->factor = (double)m->context_max / (double)rope->original_context;
    if (rope->kind != ROPE_DEFAULT && !by_ratio && !field(&r, "factor"))
        config_refuse(&r, "rotary scaling has no \"factor\"");
    rope->factor = config_number(&r, "factor", rope->factor, 1e-3, 1e6);
    rope->attention_factor = config_number(&r, "attention_factor", 0, 1e-6, 1e6);
    rope->mscale = config_number(&r, "mscale", 0, 0, 1e6);
    rope->mscale_all_dim = config_number(&r, "mscale_all_dim", 0, 0, 1e6);
    rope->beta_fast = config_number(&r, "beta_fast", 32, 0, 1e6);
    rope->beta_slow = config_number(&r, "beta_slow", 1, 0, 1e6);
    rope->truncate = config_flag(&r, "truncate", 1);
    if (rope->kind == ROPE_LLAMA3) {
        rope->low_freq_factor = config_number(&r, "low_freq_factor", 0, 1e-6, 1e6);
        rope->high_freq_factor = config_number(&r, "high_freq_factor", 0, 1e-6, 1e6);
    }
    if (rope->kind == ROPE_LONGROPE) {
        read_factors(&r, "short_factor", rope->n_pairs, rope->short_factor);
        read_factors(&r, "long_factor", rope->n_pairs, rope->long_factor);
    }
    top->failed |= r.failed;
}

/* Pairs of a head that are rotated: all, or the first share where the architecture has partial_rotary_factor. */
static size_t rotated_pairs(struct config_reader *r, const struct model_config *m)
{
    if (!is_own(m->arch ? m->arch->own_keys : NULL, "partial_rotary_factor"))
        return m->head_dim / 2;
    double share = config_number(r, "partial_rotary_factor", 1, 1e-3, 1);
    struct config_reader inner = {field(r, "rope_parameters"), r->err, r->failed};
    share = config_number(&inner, "partial_rotary_factor", share, 1e-3, 1);
    r->failed |= inner.failed;
    return (size_t)((double)m->head_dim * share) / 2;
}

void config_rope(struct config_reader *r, struct model_config *m)
{
    struct rope_config *rope = &m->rope;
    size_t n_pairs = rotated_pairs(r, m);
    *rope = (struct rope_config){.kind = ROPE_DEFAULT,
                                 .order = ROPE_HALVES,
                                 .n_pairs = n_pairs,
                                 .context_max = m->context_max,
                                 .original_context = m->context_max,
                                 .factor = 1};
    if (m->head_dim % 2 || m->head_dim / 2 > CONFIG_ROPE_PAIRS_MAX)
        config_refuse(r, "head_dim %zu cannot be rotated in pairs: it must be even and at most %d", m->head_dim,
                      CONFIG_HEAD_DIM_MAX);
    rope->theta = config_number(r, "rope_theta", 10000, 1.0 + 1e-6, 1e15);
    const json_t *p = rope_object(r, m->arch ? m->arch->own_keys : NULL);
    if (p && !r->failed)
        read_scaling(r, p, m);
}

/* ---- layers with a window ---- */

void config_layer_types(struct config_reader *r, struct model_config *m,
                        int (*fallback)(const struct model_config *m, size_t layer, size_t every), size_t every)
{
    char text[80];
    const json_t *types = field(r, "layer_types");
    if (types && (!json_is_array(types) || json_array_size(types) != m->n_layers)) {
        config_refuse(r, "\"layer_types\" has %zu entries for %zu layers", json_array_size(types), m->n_layers);
        return;
    }
    for (size_t l = 0; l < m->n_layers; l++) {
        const json_t *type = json_array_get(types, l);
        const char *name = json_string_value(type);
        m->windowed[l] = types ? name && strcmp(name, "sliding_attention") == 0 : (uint8_t)fallback(m, l, every);
        if (types && !m->windowed[l] && (!name || strcmp(name, "full_attention") != 0))
            config_unsupported(r, "\"layer_types\"[%zu] is %s; supported are full_attention and sliding_attention", l,
                               show(type, text));
    }
}

void config_windows_by_layer(struct config_reader *r, struct model_config *m)
{
    char text[80];
    int use = config_flag(r, "use_sliding_window", 0);
    size_t window = config_size(r, "sliding_window", 4096, 0, CONFIG_CONTEXT_MAX);
    if (!field(r, "sliding_window") && json_object_get(r->json, "sliding_window"))
        window = 0; /* null is not absent here: it means none */
    m->window = use ? window : 0;
    size_t first = config_size(r, "max_window_layers", 28, 0, CONFIG_CONTEXT_MAX);
    const json_t *types = field(r, "layer_types");
    if (types && (!json_is_array(types) || json_array_size(types) != m->n_layers)) {
        config_refuse(r, "\"layer_types\" has %zu entries for %zu layers", json_array_size(types), m->n_layers);
        return;
    }
    for (size_t l = 0; l < m->n_layers; l++) {
        const json_t *type = json_array_get(types, l);
        const char *name = json_string_value(type);
        m->windowed[l] = m->window != 0 && l >= first;
        if (!types)
            continue;
        if (!name || (strcmp(name, "full_attention") != 0 && strcmp(name, "sliding_attention") != 0)) {
            config_unsupported(r, "\"layer_types\"[%zu] is %s; supported are full_attention and sliding_attention", l,
                               type ? show(type, text) : "absent");
            return;
        }
        m->windowed[l] = name[0] == 's';
        if (m->windowed[l] && m->window == 0) {
            config_refuse(r, "\"layer_types\"[%zu] is sliding_attention, but no \"sliding_window\" is in use", l);
            return;
        }
    }
}

/* ---- keys that change the arithmetic of relatives of our architectures ---- */

/* A value that means "not in use": absent, null, false, "", [], {}, 0, and 1 for multipliers. */
static bool is_neutral(const json_t *v, double neutral)
{
    if (!v || json_is_null(v) || json_is_false(v))
        return true;
    if (json_is_number(v))
        return json_number_value(v) == 0 || json_number_value(v) == neutral;
    return (json_is_array(v) && json_array_size(v) == 0) || (json_is_object(v) && json_object_size(v) == 0) ||
           (json_is_string(v) && json_string_length(v) == 0);
}

static void check_foreign_keys(struct config_reader *r, const char *const *own)
{
    static const struct {
        const char *key;
        double neutral;
    } KEYS[] = {
        {"num_local_experts", 0},
        {"num_experts", 0},
        {"n_routed_experts", 0},
        {"embedding_multiplier", 1},
        {"residual_multiplier", 1},
        {"attention_multiplier", 0},
        {"logits_scaling", 1},
        {"logit_scale", 1},
        {"scale_emb", 1},
        {"scale_depth", 0},
        {"final_logit_softcapping", 0},
        {"attn_logit_softcapping", 0},
        {"query_pre_attn_scalar", 0},
        {"no_rope_layers", 0},
        {"no_rope_layer_interval", 0},
        {"use_qk_norm", 0},
        {"qk_layernorm", 0},
        {"qk_norm", 0},
        {"clip_qkv", 0},
        {"alibi", 0},
        {"parallel_attn", 0},
        {"use_parallel_residual", 0},
        {"rope_interleaved", 0},
        {"partial_rotary_factor", 1},
        {"rotary_pct", 1},
        {"attention_chunk_size", 0},
        {"attn_temperature_tuning", 0},
        {"use_mrope", 0},
        {"add_cross_attention", 0},
        {"is_encoder_decoder", 0},
        {"pruned_heads", 0},
        {"attention_sink", 0},
        {"bidirectional", 0},
        {"use_bidirectional_attention", 0},
        {"text_config", 0},
        {"vision_config", 0},
        {"audio_config", 0},
    };
    char text[80];
    for (size_t i = 0; i < sizeof KEYS / sizeof KEYS[0]; i++) {
        const json_t *v = json_object_get(r->json, KEYS[i].key);
        if (is_own(own, KEYS[i].key) || strcmp(KEYS[i].key, "no_rope_layers") == 0 || is_neutral(v, KEYS[i].neutral))
            continue;
        config_unsupported(r, "\"%s\": %s changes the model's arithmetic in a way that is not supported", KEYS[i].key,
                           show(v, text));
    }
    const json_t *layers = json_object_get(r->json, "no_rope_layers"), *one;
    for (size_t i = 0; !is_own(own, "no_rope_layers") && i < json_array_size(layers); i++) {
        one = json_array_get(layers, i);
        if (json_integer_value(one) == 0) /* 1: the layer is rotated */
            config_unsupported(r, "\"no_rope_layers\": layers without rotary embedding are not supported");
    }
}

/* ---- end tokens ---- */

static void add_eos(struct model_config *m, const json_t *v)
{
    if (!json_is_integer(v) || json_integer_value(v) < 0 || json_integer_value(v) > INT32_MAX)
        return;
    int32_t id = (int32_t)json_integer_value(v);
    for (size_t i = 0; i < m->n_eos; i++) {
        if (m->eos[i] == id)
            return;
    }
    if (m->n_eos < CONFIG_EOS_MAX)
        m->eos[m->n_eos++] = id;
}

/* generation_config.json is what generation goes by; config.json speaks where it is silent. */
static void read_special_ids(const json_t *config, const json_t *generation, struct model_config *m)
{
    const json_t *from[2] = {generation, config};
    m->bos = -1;
    for (int i = 0; i < 2; i++) {
        const json_t *bos = json_object_get(from[i], "bos_token_id"), *eos = json_object_get(from[i], "eos_token_id");
        if (m->bos < 0 && json_is_integer(bos) && json_integer_value(bos) >= 0 && json_integer_value(bos) <= INT32_MAX)
            m->bos = (int32_t)json_integer_value(bos);
        if (m->n_eos > 0)
            continue;
        add_eos(m, eos);
        for (size_t k = 0; k < json_array_size(eos); k++)
            add_eos(m, json_array_get(eos, k));
    }
}

/* ---- the whole file ---- */

static bool refuse_arch(const char *what, struct str name, int gguf, struct err *err)
{
    char shown[CHECKPOINT_SHOW_BYTES], list[512] = "";
    for (size_t i = 0; i < N_ARCHS; i++) {
        for (const char *const *n = gguf ? ARCHS[i]->gguf_names : ARCHS[i]->model_types; *n; n++) {
            size_t len = strlen(list);
            snprintf(list + len, sizeof list - len, "%s%s", len ? ", " : "", *n);
        }
    }
    return err_set(err, ERR_MODEL_UNSUPPORTED, "%s \"%s\" is not supported; supported are: %s", what,
                   checkpoint_show(name, shown), list);
}

static const struct arch *find_arch(struct str name, int gguf)
{
    for (size_t i = 0; i < N_ARCHS; i++) {
        for (const char *const *n = gguf ? ARCHS[i]->gguf_names : ARCHS[i]->model_types; *n; n++) {
            if (str_equal(str_from(*n), name))
                return ARCHS[i];
        }
    }
    return NULL;
}

static json_t *load_object(struct str bytes, const char *file, struct err *err)
{
    json_error_t why;
    if (bytes.len > CONFIG_JSON_BYTES_MAX) {
        err_set(err, ERR_MODEL_DAMAGED, "%s has %zu bytes, more than the limit of %zu", file, bytes.len, CONFIG_JSON_BYTES_MAX);
        return NULL;
    }
    json_t *json = json_loadb(bytes.ptr, bytes.len, 0, &why);
    if (!json_is_object(json)) {
        char shown[CHECKPOINT_SHOW_BYTES];
        err_set(err, ERR_MODEL_DAMAGED, "%s is not a JSON object: %s (line %d)", file,
                json ? "another type" : checkpoint_show(str_from(why.text), shown), json ? 1 : why.line);
        json_decref(json);
        return NULL;
    }
    return json;
}

static enum dtype stored_type(const json_t *config)
{
    const char *name = json_string_value(json_object_get(config, "dtype"));
    if (!name)
        name = json_string_value(json_object_get(config, "torch_dtype"));
    return name && strcmp(name, "bfloat16") == 0 ? DTYPE_BF16 : name && strcmp(name, "float16") == 0 ? DTYPE_F16 : DTYPE_F32;
}

static bool parse_objects(const json_t *config, const json_t *generation, struct model_config *m, struct err *err)
{
    struct config_reader r = {config, err, false};
    const char *type = json_string_value(json_object_get(config, "model_type"));
    if (!type)
        return err_set(err, ERR_MODEL_DAMAGED,
                       "config.json has no \"model_type\" (a string), so the architecture is not "
                       "known");
    m->arch = find_arch(str_from(type), 0);
    if (!m->arch)
        return refuse_arch("config.json: \"model_type\"", str_from(type), 0, err);
    snprintf(m->architecture, sizeof m->architecture, "%s", type);
    m->stored = stored_type(config);
    check_foreign_keys(&r, m->arch->own_keys);
    if (!r.failed && !quant_config_read(json_object_get(config, "quantization_config"), &m->quant, err))
        return false;
    if (!r.failed)
        m->arch->read(&r, m);
    read_special_ids(config, generation, m);
    return !r.failed && model_config_check(m, err);
}

bool model_config_parse(struct str config, struct str generation, struct model_config *out, struct err *err)
{
    *out = (struct model_config){.bos = -1};
    json_t *c = load_object(config, "config.json", err);
    if (!c)
        return false;
    json_t *g = generation.len ? load_object(generation, "generation_config.json", err) : NULL;
    bool ok = (!generation.len || g) && parse_objects(c, g, out, err);
    json_decref(c);
    json_decref(g);
    return ok;
}

bool model_config_check(const struct model_config *m, struct err *err)
{
    if (m->n_kv_heads == 0 || m->n_heads % m->n_kv_heads != 0)
        return err_set(err, ERR_MODEL_DAMAGED, "%zu query heads cannot share %zu key heads evenly", m->n_heads, m->n_kv_heads);
    if (m->head_dim == 0 || m->head_dim > CONFIG_HEAD_DIM_MAX)
        return err_set(err, ERR_MODEL_DAMAGED, "head_dim is %zu, expected 1 to %d", m->head_dim, CONFIG_HEAD_DIM_MAX);
    if (m->n_heads * m->head_dim > CONFIG_WIDTH_MAX)
        return err_set(err, ERR_MODEL_DAMAGED, "%zu heads of %zu are %zu wide, more than the limit of %zu", m->n_heads,
                       m->head_dim, m->n_heads * m->head_dim, CONFIG_WIDTH_MAX);
    return true;
}

bool model_config_read(struct checkpoint *c, struct model_config *out, struct err *err)
{
    if (checkpoint_kind(c) == CHECKPOINT_HF) {
        struct str config, generation;
        if (!checkpoint_file(c, "config.json", &config, err) || !checkpoint_file(c, "generation_config.json", &generation, err))
            return false;
        if (config.len == 0)
            return err_set(err, ERR_MODEL_DAMAGED,
                           "the model's folder has no config.json, so the architecture is not "
                           "known: fetch it from where the weights came");
        return model_config_parse(config, generation, out, err);
    }
    struct str name;
    *out = (struct model_config){.bos = -1};
    if (!checkpoint_meta_str(c, "general.architecture", &name))
        return err_set(err, ERR_MODEL_DAMAGED, "the GGUF file has no general.architecture");
    out->arch = find_arch(name, 1);
    if (!out->arch)
        return refuse_arch("GGUF architecture", name, 1, err);
    snprintf(out->architecture, sizeof out->architecture, "%.*s", (int)name.len, name.ptr);
    return out->arch->read_gguf(c, out, err) && model_config_check(out, err);
}
