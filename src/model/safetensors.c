/* safetensors: 8 bytes little-endian length N, N bytes of JSON {"name": {"dtype", "shape", "data_offsets"}, ...,
 * "__metadata__": {...}}, then the data (https://github.com/huggingface/safetensors, section Format). Offsets count from
 * the first data byte; the tensors cover the data without gaps and without sharing. A sharded model has an index,
 * model.safetensors.index.json: {"weight_map": {"tensor name": "shard's file name", ...}}.
 *
 * The header is hostile: its length, the number of values in it, each number and each range are bounded before use. */
#include "model/checkpoint_impl.h"

#include <dirent.h>
#include <errno.h>
#include <stdlib.h>

#define HEADER_BYTES_MAX      ((size_t)32 << 20) /* 140,000 tensors take about 20 MiB */
#define HEADER_VALUES_MAX     ((size_t)4 << 20)  /* bounds what the JSON tree can take in memory */
#define TENSOR_NAME_BYTES_MAX 1024

static const struct {
    const char *name;
    enum dtype type;
} type_names[] = {
    {"F32", DTYPE_F32},         {"F16", DTYPE_F16},         {"BF16", DTYPE_BF16}, {"F64", DTYPE_F64},
    {"F8_E4M3", DTYPE_F8_E4M3}, {"F8_E5M2", DTYPE_F8_E5M2}, {"I8", DTYPE_I8},     {"U8", DTYPE_U8},
    {"I16", DTYPE_I16},         {"I32", DTYPE_I32},         {"I64", DTYPE_I64},   {"BOOL", DTYPE_BOOL},
};

static json_t *load_json(const char *bytes, size_t len, const char *label, struct err *err)
{
    size_t values = 0;
    for (size_t i = 0; i < len; i++)
        values += bytes[i] == ',' || bytes[i] == '[' || bytes[i] == '{';
    if (values > HEADER_VALUES_MAX) {
        err_set(err, ERR_MODEL_DAMAGED, "%s: the JSON has more than %zu values", label, HEADER_VALUES_MAX);
        return NULL;
    }
    json_error_t why;
    json_t *root = json_loadb(bytes, len, JSON_REJECT_DUPLICATES, &why);
    char shown[CHECKPOINT_SHOW_BYTES];
    if (!root)
        err_set(err, ERR_MODEL_DAMAGED, "%s: the JSON is wrong at byte %d: %s", label, why.position,
                checkpoint_show(str_from(why.text), shown));
    else if (!json_is_object(root)) {
        err_set(err, ERR_MODEL_DAMAGED, "%s: the JSON is not an object", label);
        json_decref(root);
        root = NULL;
    }
    return root;
}

static bool parse_type(const json_t *value, const char *label, const char *name, enum dtype *out, struct err *err)
{
    const char *text = json_string_value(value);
    if (!text)
        return err_set_param(err, ERR_MODEL_DAMAGED, name, "%s: tensor '%s' has no dtype", label, name);
    for (size_t i = 0; i < sizeof type_names / sizeof type_names[0]; i++) {
        if (strcmp(text, type_names[i].name) == 0) {
            *out = type_names[i].type;
            return true;
        }
    }
    char shown[CHECKPOINT_SHOW_BYTES];
    return err_set_param(err, ERR_MODEL_UNSUPPORTED, name,
                         "%s: tensor '%s' is of type '%s'; supported: F32 F16 BF16 F64 F8_E4M3 F8_E5M2 I8 U8 I16 I32 I64 "
                         "BOOL",
                         label, name, checkpoint_show(str_from(text), shown));
}

static bool parse_shape(const json_t *value, const char *label, const char *name, struct tensor *t, struct err *err)
{
    if (!json_is_array(value))
        return err_set_param(err, ERR_MODEL_DAMAGED, name, "%s: tensor '%s' has no shape", label, name);
    size_t n = json_array_size(value);
    if (n > TENSOR_DIMS_MAX)
        return err_set_param(err, ERR_MODEL_DAMAGED, name, "%s: tensor '%s' has %zu dimensions; at most %d are read", label,
                             name, n, TENSOR_DIMS_MAX);
    for (size_t i = 0; i < n; i++) {
        const json_t *d = json_array_get(value, i);
        if (!json_is_integer(d) || json_integer_value(d) < 0)
            return err_set_param(err, ERR_MODEL_DAMAGED, name, "%s: dimension %zu of tensor '%s' is not an integer >= 0", label,
                                 i, name);
        t->dims[i] = (size_t)json_integer_value(d);
    }
    t->n_dims = (unsigned)n;
    return true;
}

static bool parse_range(const json_t *value, const struct checkpoint_mapping *f, size_t data, const char *name,
                        struct tensor *t, struct err *err)
{
    const json_t *b = json_array_get(value, 0), *e = json_array_get(value, 1);
    if (json_array_size(value) != 2 || !json_is_integer(b) || !json_is_integer(e))
        return err_set_param(err, ERR_MODEL_DAMAGED, name, "%s: data_offsets of tensor '%s' are not two integers", f->label,
                             name);
    json_int_t begin = json_integer_value(b), end = json_integer_value(e);
    size_t room = f->len - data;
    if (begin < 0 || end < begin || (uint64_t)end > room)
        return err_set_param(err, ERR_MODEL_DAMAGED, name,
                             "%s: tensor '%s' lies at bytes %lld to %lld, but the file has %zu bytes of data: it is cut or "
                             "damaged, fetch it again",
                             f->label, name, (long long)begin, (long long)end, room);
    size_t elements, bytes = SIZE_MAX;
    if (checkpoint_elements(t->dims, t->n_dims, &elements))
        bytes = dtype_bytes(t->type, elements);
    if (bytes == SIZE_MAX)
        return err_set_param(err, ERR_MODEL_DAMAGED, name, "%s: the dimensions of tensor '%s' overflow", f->label, name);
    if (bytes != (size_t)(end - begin))
        return err_set_param(err, ERR_MODEL_DAMAGED, name,
                             "%s: tensor '%s' has %zu elements of %s, which take %zu bytes, but %zu bytes are set aside",
                             f->label, name, elements, dtype_info(t->type)->name, bytes, (size_t)(end - begin));
    t->data = f->bytes + data + begin;
    t->bytes = bytes;
    return true;
}

static bool add_entry(struct checkpoint *c, size_t index, size_t data, const char *key, const json_t *value, struct err *err)
{
    const struct checkpoint_mapping *f = &c->files[index];
    char name[CHECKPOINT_SHOW_BYTES];
    checkpoint_show(str_from(key), name);
    if (strlen(key) > TENSOR_NAME_BYTES_MAX)
        return err_set(err, ERR_MODEL_DAMAGED, "%s: the name of tensor '%s' has %zu bytes; at most %d are read", f->label, name,
                       strlen(key), TENSOR_NAME_BYTES_MAX);
    struct tensor t = {0};
    if (!parse_type(json_object_get(value, "dtype"), f->label, name, &t.type, err) ||
        !parse_shape(json_object_get(value, "shape"), f->label, name, &t, err) ||
        !parse_range(json_object_get(value, "data_offsets"), f, data, name, &t, err))
        return false;
    t.name = str_from(strdup(key));
    if (!t.name.ptr)
        return err_set(err, ERR_MEMORY, "%s: no memory left for the tensors' names", f->label);
    return checkpoint_add_tensor(c, &t, index, err);
}

static bool in_other_shard(const json_t *weight_map, const char *key, const char *path)
{
    const char *shard = json_string_value(json_object_get(weight_map, key)), *slash = strrchr(path, '/');
    return shard && strcmp(shard, slash ? slash + 1 : path) != 0;
}

bool safetensors_parse(struct checkpoint *c, size_t index, const json_t *weight_map, struct err *err)
{
    struct checkpoint_mapping f = c->files[index];
    uint64_t header = 0;
    if (f.len < 8 + 2)
        return err_set(err, ERR_MODEL_DAMAGED, "%s has %zu bytes: too short for a safetensors file", f.label, f.len);
    for (unsigned i = 0; i < 8; i++)
        header |= (uint64_t)f.bytes[i] << (8 * i);
    if (header > HEADER_BYTES_MAX)
        return err_set(err, ERR_MODEL_DAMAGED,
                       "%s: the header's length is %llu bytes, more than the limit of %zu: not a safetensors file?", f.label,
                       (unsigned long long)header, HEADER_BYTES_MAX);
    if (header > f.len - 8)
        return err_set(err, ERR_MODEL_DAMAGED,
                       "%s: the header should have %llu bytes, but the file ends after %zu: it is cut, fetch it again", f.label,
                       (unsigned long long)header, f.len - 8);
    json_t *root = load_json((const char *)f.bytes + 8, (size_t)header, f.label, err);
    if (!root)
        return false;
    size_t first = c->n_tensors, passed_over = 0;
    const char *key;
    json_t *value;
    bool ok = true;
    json_object_foreach(root, key, value)
    {
        if (strcmp(key, "__metadata__") == 0)
            continue;
        if (in_other_shard(weight_map, key, f.path)) {
            passed_over++;
            continue;
        }
        ok = add_entry(c, index, 8 + (size_t)header, key, value, err);
        if (!ok)
            break;
    }
    json_decref(root);
    return ok && checkpoint_check_ranges(c, first, index, f.bytes + 8 + header,
                                         passed_over ? CHECKPOINT_GAPS_ALLOWED : CHECKPOINT_GAPS_REFUSED, err);
}

static bool open_shard(struct checkpoint *c, const char *name, const json_t *weight_map, struct err *err)
{
    if (c->n_files >= CHECKPOINT_SHARDS_MAX)
        return err_set(err, ERR_MODEL_DAMAGED, "%s: more than %zu files of weights", c->files[0].label, CHECKPOINT_SHARDS_MAX);
    char *path = checkpoint_path(c->dir, name);
    if (!path)
        return err_set(err, ERR_MEMORY, "no memory left to open %s", name);
    struct err why = {0};
    bool ok = checkpoint_map(c, path, &why);
    free(path);
    if (!ok && why.code == ERR_MODEL_NOT_FOUND)
        return err_set(err, ERR_MODEL_DAMAGED, "the shard %s is missing: fetch it again", name);
    if (!ok)
        return err_set(err, why.code, "%s", why.text);
    return safetensors_parse(c, c->n_files - 1, weight_map, err);
}

/* Opens each shard that the map names, once, in the order of the map; then checks that every tensor was found. */
static bool open_mapped(struct checkpoint *c, const json_t *weight_map, const char *index_name, struct err *err)
{
    struct map opened;
    map_init(&opened);
    char a[CHECKPOINT_SHOW_BYTES], b[CHECKPOINT_SHOW_BYTES];
    const char *key;
    json_t *value;
    bool ok = true;
    json_object_foreach((json_t *)weight_map, key, value)
    {
        struct str shard = str_from(json_string_value(value));
        uint64_t seen;
        if (!shard.ptr || !checkpoint_plain_name(shard) || !str_has_ending(shard, STR(".safetensors"))) {
            ok = err_set(err, ERR_MODEL_DAMAGED, "%s: tensor '%s' should lie in '%s', which is not a plain *.safetensors name",
                         index_name, checkpoint_show(str_from(key), a), checkpoint_show(shard.ptr ? shard : STR("?"), b));
            break;
        }
        if (map_get(&opened, shard, &seen))
            continue;
        if (!map_set(&opened, shard, 1) || !open_shard(c, shard.ptr, weight_map, err)) {
            ok = false;
            break;
        }
    }
    map_release(&opened);
    if (!ok)
        return false;
    json_object_foreach((json_t *)weight_map, key, value)
    {
        if (!checkpoint_tensor(c, str_from(key)))
            return err_set_param(err, ERR_MODEL_DAMAGED, checkpoint_show(str_from(key), a),
                                 "%s: tensor '%s' should lie in %s, but that file has no such tensor", index_name, a,
                                 checkpoint_show(str_from(json_string_value(value)), b));
    }
    return true;
}

static bool open_index(struct checkpoint *c, const char *name, struct str text, struct err *err)
{
    if (text.len > HEADER_BYTES_MAX)
        return err_set(err, ERR_MODEL_DAMAGED, "%s has %zu bytes; at most %zu are read", name, text.len, HEADER_BYTES_MAX);
    json_t *root = load_json(text.ptr, text.len, name, err);
    if (!root)
        return false;
    const json_t *weight_map = json_object_get(root, "weight_map");
    bool ok;
    if (!json_is_object(weight_map) || json_object_size(weight_map) == 0)
        ok = err_set(err, ERR_MODEL_DAMAGED, "%s has no weight_map", name);
    else
        ok = open_mapped(c, weight_map, name, err);
    json_decref(root);
    return ok;
}

static int by_text(const void *a, const void *b)
{
    return strcmp(*(char *const *)a, *(char *const *)b);
}

/* Without an index: every *.safetensors file. Returns a sorted list that the caller frees, NULL on failure. */
static char **list_shards(const char *dir, size_t *n, struct err *err)
{
    char **names = calloc(CHECKPOINT_SHARDS_MAX, sizeof *names);
    DIR *d = names ? opendir(dir) : NULL;
    *n = 0;
    if (!d) {
        free(names);
        err_set(err, ERR_IO, "cannot read the folder of the model: %s", strerror(errno));
        return NULL;
    }
    for (struct dirent *e; *n < CHECKPOINT_SHARDS_MAX && (e = readdir(d));) {
        struct str name = str_from(e->d_name);
        if (!checkpoint_plain_name(name) || !str_has_ending(name, STR(".safetensors")))
            continue;
        names[*n] = strdup(e->d_name);
        *n += names[*n] != NULL;
    }
    closedir(d);
    qsort(names, *n, sizeof *names, by_text);
    return names;
}

static bool open_listed(struct checkpoint *c, struct err *err)
{
    size_t n, stem;
    unsigned number, count;
    char **names = list_shards(c->dir, &n, err);
    if (!names)
        return false;
    bool ok = true;
    if (checkpoint_split_name(str_from(names[0]), STR(".safetensors"), &stem, &number, &count) && n < count)
        ok = err_set(err, ERR_MODEL_DAMAGED, "%s is one of %u shards, but only %zu are in the folder: fetch it again", names[0],
                     count, n);
    for (size_t i = 0; ok && i < n; i++)
        ok = open_shard(c, names[i], NULL, err);
    for (size_t i = 0; i < n; i++)
        free(names[i]);
    free(names);
    return ok;
}

bool safetensors_open(struct checkpoint *c, struct err *err)
{
    static const char index_name[] = "model.safetensors.index.json";
    char *path = checkpoint_path(c->dir, "model.safetensors");
    if (!path)
        return err_set(err, ERR_MEMORY, "no memory left to open a checkpoint");
    struct err why = {0};
    bool whole = checkpoint_map(c, path, &why);
    free(path);
    if (whole)
        return safetensors_parse(c, 0, NULL, err);
    if (why.code != ERR_MODEL_NOT_FOUND)
        return err_set(err, why.code, "%s", why.text);
    struct str text;
    if (!checkpoint_file(c, index_name, &text, err))
        return false;
    return text.len ? open_index(c, index_name, text, err) : open_listed(c, err);
}
