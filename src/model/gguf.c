/* GGUF, versions 2 and 3, little-endian (https://github.com/ggml-org/ggml/blob/master/docs/gguf.md):
 *   "GGUF" u32 version, u64 n_tensors, u64 n_entries
 *   n_entries x { string key, u32 type, value }            string: u64 length, bytes; array: u32 type, u64 n, values
 *   n_tensors x { string name, u32 n_dims, u64 dims[n_dims] (innermost first), u32 type, u64 offset }
 *   padding to general.alignment (32), then the data; offsets count from there and are aligned.
 * A split model has parts stem-00001-of-0000N.gguf; metadata is read from the first.
 *
 * Every read goes through struct cursor, which never passes the file's end; counts are compared with the bytes that are
 * left before anything is allocated. Metadata and names are used long after they were checked, so what is parsed is a copy that
 * nobody can write meanwhile: an entry is a key and an address in it. */
#include "model/checkpoint_impl.h"

#include <stdlib.h>

#define NAME_BYTES_MAX    1024 /* of a tensor */
#define KEY_BYTES_MAX     65535
#define DIMS_MAX          4
#define ALIGNMENT_DEFAULT 32
#define ALIGNMENT_MAX     ((uint64_t)1 << 20)

enum value_type {
    VALUE_U8,
    VALUE_I8,
    VALUE_U16,
    VALUE_I16,
    VALUE_U32,
    VALUE_I32,
    VALUE_F32,
    VALUE_BOOL,
    VALUE_STRING,
    VALUE_ARRAY,
    VALUE_U64,
    VALUE_I64,
    VALUE_F64,
    VALUE_COUNT
};

static const unsigned char value_bytes[VALUE_COUNT] = {1, 1, 2, 2, 4, 4, 4, 1, 0, 0, 8, 8, 8};
static const enum gguf_kind value_kind[VALUE_COUNT] = {
    GGUF_UINT, GGUF_INT,    GGUF_UINT,  GGUF_INT,  GGUF_UINT, GGUF_INT,   GGUF_FLOAT,
    GGUF_BOOL, GGUF_STRING, GGUF_ARRAY, GGUF_UINT, GGUF_INT,  GGUF_FLOAT,
};

static const enum dtype tensor_types[] = {
    [0] = DTYPE_F32,     [1] = DTYPE_F16,      [2] = DTYPE_Q4_0,   [3] = DTYPE_Q4_1,    [6] = DTYPE_Q5_0,
    [7] = DTYPE_Q5_1,    [8] = DTYPE_Q8_0,     [9] = DTYPE_Q8_1,   [10] = DTYPE_Q2_K,   [11] = DTYPE_Q3_K,
    [12] = DTYPE_Q4_K,   [13] = DTYPE_Q5_K,    [14] = DTYPE_Q6_K,  [15] = DTYPE_Q8_K,   [16] = DTYPE_IQ2_XXS,
    [17] = DTYPE_IQ2_XS, [18] = DTYPE_IQ3_XXS, [19] = DTYPE_IQ1_S, [20] = DTYPE_IQ4_NL, [21] = DTYPE_IQ3_S,
    [22] = DTYPE_IQ2_S,  [23] = DTYPE_IQ4_XS,  [24] = DTYPE_I8,    [25] = DTYPE_I16,    [26] = DTYPE_I32,
    [27] = DTYPE_I64,    [28] = DTYPE_F64,     [29] = DTYPE_IQ1_M, [30] = DTYPE_BF16,   [39] = DTYPE_MXFP4,
};

/* ---- reading within bounds ----------------------------------------------------------------------------------------- */

struct cursor {
    const unsigned char *at, *end;
    const char *label;
    const unsigned char *begin;
};

static bool cut(const struct cursor *r, const char *what, struct err *err)
{
    return err_set(err, ERR_MODEL_DAMAGED, "%s ends inside %s (byte %zu of %zu): it is cut or damaged, fetch it again",
                   r->label, what, (size_t)(r->at - r->begin), (size_t)(r->end - r->begin));
}

static size_t left(const struct cursor *r)
{
    return (size_t)(r->end - r->at);
}

static uint64_t load_le(const unsigned char *p, size_t n)
{
    uint64_t v = 0;
    for (size_t i = 0; i < n; i++)
        v |= (uint64_t)p[i] << (8 * i);
    return v;
}

static bool read_u32(struct cursor *r, uint32_t *out, const char *what, struct err *err)
{
    if (left(r) < 4)
        return cut(r, what, err);
    *out = (uint32_t)load_le(r->at, 4);
    r->at += 4;
    return true;
}

static bool read_u64(struct cursor *r, uint64_t *out, const char *what, struct err *err)
{
    if (left(r) < 8)
        return cut(r, what, err);
    *out = load_le(r->at, 8);
    r->at += 8;
    return true;
}

static bool read_string(struct cursor *r, struct str *out, const char *what, struct err *err)
{
    uint64_t len;
    if (!read_u64(r, &len, what, err))
        return false;
    if (len > left(r))
        return err_set(err, ERR_MODEL_DAMAGED, "%s: %s at byte %zu should have %llu bytes, but %zu are left in the file",
                       r->label, what, (size_t)(r->at - r->begin), (unsigned long long)len, left(r));
    *out = (struct str){(const char *)r->at, (size_t)len};
    r->at += len;
    return true;
}

/* ---- metadata ------------------------------------------------------------------------------------------------------ */

static bool skip_strings(struct cursor *r, uint64_t n, const char *what, struct err *err)
{
    struct str s;
    for (uint64_t i = 0; i < n; i++) {
        if (!read_string(r, &s, what, err))
            return false;
    }
    return true;
}

static bool skip_values(struct cursor *r, const struct gguf_entry *e, uint32_t type, struct err *err)
{
    char key[CHECKPOINT_SHOW_BYTES], what[CHECKPOINT_SHOW_BYTES + 32];
    checkpoint_show(e->key, key);
    snprintf(what, sizeof what, "the value of '%s'", key);
    size_t least = type == VALUE_STRING ? 8 : value_bytes[type];
    if (e->n > left(r) / least)
        return err_set(err, ERR_MODEL_DAMAGED,
                       "%s: '%s' should have %llu values of at least %zu bytes, but %zu bytes are "
                       "left in the file",
                       r->label, key, (unsigned long long)e->n, least, left(r));
    if (type == VALUE_STRING)
        return skip_strings(r, e->n, what, err);
    r->at += (size_t)e->n * least;
    return true;
}

static bool parse_entry(struct cursor *r, struct gguf_entry *e, struct err *err)
{
    char key[CHECKPOINT_SHOW_BYTES];
    if (!read_string(r, &e->key, "the key of a metadata entry", err))
        return false;
    checkpoint_show(e->key, key);
    if (e->key.len == 0 || e->key.len > KEY_BYTES_MAX)
        return err_set(err, ERR_MODEL_DAMAGED, "%s: a metadata key has %zu bytes; 1 to %d are read", r->label, e->key.len,
                       KEY_BYTES_MAX);
    if (!read_u32(r, &e->type, "the type of a metadata entry", err))
        return false;
    e->n = 1;
    e->element = e->type;
    if (e->type == VALUE_ARRAY) {
        if (!read_u32(r, &e->element, "the type of a metadata array", err) ||
            !read_u64(r, &e->n, "the length of a metadata array", err))
            return false;
        if (e->element == VALUE_ARRAY)
            return err_set(err, ERR_MODEL_UNSUPPORTED, "%s: '%s' is an array of arrays, which is not read", r->label, key);
    }
    if (e->element >= VALUE_COUNT)
        return err_set(err, ERR_MODEL_DAMAGED, "%s: '%s' is of the unknown type %u; types 0 to %d are known", r->label, key,
                       e->element, VALUE_COUNT - 1);
    e->at = r->at;
    return skip_values(r, e, e->element, err);
}

static bool check_n_entries(const struct cursor *r, uint64_t n, struct err *err)
{
    const size_t least = 8 + 1 + 4 + 1; /* bytes of the shortest entry */
    return n <= left(r) / least ||
           err_set(err, ERR_MODEL_DAMAGED, "%s: the header tells of %llu metadata entries, but %zu bytes are left", r->label,
                   (unsigned long long)n, left(r));
}

static bool parse_metadata(struct checkpoint *c, struct cursor *r, uint64_t n, struct err *err)
{
    if (!check_n_entries(r, n, err))
        return false;
    c->entries = calloc(n ? (size_t)n : 1, sizeof *c->entries);
    if (!c->entries)
        return err_set(err, ERR_MEMORY, "%s: no memory left for %llu metadata entries", r->label, (unsigned long long)n);
    for (uint64_t i = 0; i < n; i++) {
        struct gguf_entry *e = &c->entries[i];
        uint64_t seen;
        char key[CHECKPOINT_SHOW_BYTES];
        if (!parse_entry(r, e, err))
            return false;
        if (map_get(&c->entry_by_key, e->key, &seen))
            return err_set(err, ERR_MODEL_DAMAGED, "%s: the metadata key '%s' is there twice", r->label,
                           checkpoint_show(e->key, key));
        if (!map_set(&c->entry_by_key, e->key, i))
            return err_set(err, ERR_MEMORY, "%s: no memory left for the metadata", r->label);
        c->n_entries = (size_t)i + 1;
    }
    return true;
}

static void scalar_value(uint32_t type, const unsigned char *at, struct gguf_value *out)
{
    uint64_t raw = load_le(at, value_bytes[type]);
    unsigned shift = 64 - 8 * value_bytes[type];
    float f;
    uint32_t raw32 = (uint32_t)raw;
    switch (type) {
    case VALUE_I8:
    case VALUE_I16:
    case VALUE_I32:
    case VALUE_I64:
        out->i = (int64_t)(raw << shift) >> shift;
        out->u = out->i > 0 ? (uint64_t)out->i : 0;
        out->f = (double)out->i;
        break;
    case VALUE_F32:
        memcpy(&f, &raw32, sizeof f);
        out->f = (double)f;
        break;
    case VALUE_F64: memcpy(&out->f, &raw, sizeof out->f); break;
    default: /* unsigned, bool */
        out->u = type == VALUE_BOOL ? raw != 0 : raw;
        out->i = out->u <= INT64_MAX ? (int64_t)out->u : INT64_MAX;
        out->f = (double)out->u;
        break;
    }
}

static void entry_value(const struct gguf_entry *e, struct gguf_value *out)
{
    *out = (struct gguf_value){.kind = value_kind[e->type], .element = value_kind[e->element], .n = (size_t)e->n};
    if (e->type == VALUE_ARRAY)
        out->array = e;
    else if (e->type == VALUE_STRING)
        out->s = (struct str){(const char *)e->at + 8, (size_t)load_le(e->at, 8)};
    else
        scalar_value(e->type, e->at, out);
}

static const struct gguf_entry *find_entry(const struct checkpoint *c, const char *key)
{
    uint64_t index;
    return map_get(&c->entry_by_key, str_from(key), &index) ? &c->entries[index] : NULL;
}

bool checkpoint_meta(const struct checkpoint *c, const char *key, struct gguf_value *out)
{
    const struct gguf_entry *e = find_entry(c, key);
    *out = (struct gguf_value){0};
    if (e)
        entry_value(e, out);
    return e != NULL;
}

bool checkpoint_meta_uint(const struct checkpoint *c, const char *key, uint64_t *out)
{
    struct gguf_value v;
    if (!checkpoint_meta(c, key, &v) || (v.kind != GGUF_UINT && (v.kind != GGUF_INT || v.i < 0)))
        return false;
    *out = v.u;
    return true;
}

bool checkpoint_meta_bool(const struct checkpoint *c, const char *key, int *out)
{
    struct gguf_value v;
    if (!checkpoint_meta(c, key, &v) || v.kind != GGUF_BOOL)
        return false;
    *out = v.u != 0;
    return true;
}

bool checkpoint_meta_str(const struct checkpoint *c, const char *key, struct str *out)
{
    struct gguf_value v;
    if (!checkpoint_meta(c, key, &v) || v.kind != GGUF_STRING)
        return false;
    *out = v.s;
    return true;
}

static const struct gguf_entry *find_array(const struct checkpoint *c, const char *key, size_t n)
{
    const struct gguf_entry *e = find_entry(c, key);
    return e && e->type == VALUE_ARRAY && e->n == n ? e : NULL;
}

bool checkpoint_meta_str_array(const struct checkpoint *c, const char *key, struct str *out, size_t n)
{
    const struct gguf_entry *e = find_array(c, key, n);
    if (!e || e->element != VALUE_STRING)
        return false;
    const unsigned char *at = e->at; /* lengths were checked at open */
    for (size_t i = 0; i < n; i++) {
        out[i] = (struct str){(const char *)at + 8, (size_t)load_le(at, 8)};
        at += 8 + out[i].len;
    }
    return true;
}

bool checkpoint_meta_f32_array(const struct checkpoint *c, const char *key, float *out, size_t n)
{
    const struct gguf_entry *e = find_array(c, key, n);
    if (!e || value_kind[e->element] != GGUF_FLOAT)
        return false;
    for (size_t i = 0; i < n; i++) {
        struct gguf_value v = {0};
        scalar_value(e->element, e->at + i * value_bytes[e->element], &v);
        out[i] = (float)v.f;
    }
    return true;
}

bool checkpoint_meta_i32_array(const struct checkpoint *c, const char *key, int32_t *out, size_t n)
{
    const struct gguf_entry *e = find_array(c, key, n);
    if (!e || (value_kind[e->element] != GGUF_INT && value_kind[e->element] != GGUF_UINT && e->element != VALUE_BOOL))
        return false;
    for (size_t i = 0; i < n; i++) {
        struct gguf_value v = {0};
        scalar_value(e->element, e->at + i * value_bytes[e->element], &v);
        if (v.i < INT32_MIN || v.i > INT32_MAX)
            return false;
        out[i] = (int32_t)v.i;
    }
    return true;
}

/* ---- tensors ------------------------------------------------------------------------------------------------------- */

struct tensor_place {
    struct tensor t;
    uint64_t offset;
};

static bool parse_dims(struct cursor *r, struct tensor *t, const char *name, struct err *err)
{
    uint32_t n;
    if (!read_u32(r, &n, "the dimensions of a tensor", err))
        return false;
    if (n > DIMS_MAX)
        return err_set_param(err, ERR_MODEL_DAMAGED, name, "%s: tensor '%s' has %u dimensions; at most %d are read", r->label,
                             name, n, DIMS_MAX);
    t->n_dims = n;
    for (uint32_t i = 0; i < n; i++) {
        uint64_t d;
        if (!read_u64(r, &d, "the dimensions of a tensor", err))
            return false;
        if (d > INT64_MAX)
            return err_set_param(err, ERR_MODEL_DAMAGED, name, "%s: dimension %u of tensor '%s' is %llu", r->label, i, name,
                                 (unsigned long long)d);
        t->dims[n - 1 - i] = (size_t)d;
    }
    return true;
}

static bool set_type(struct cursor *r, struct tensor *t, uint32_t type, const char *name, struct err *err)
{
    if (type < sizeof tensor_types / sizeof tensor_types[0])
        t->type = tensor_types[type];
    if (t->type == DTYPE_NONE)
        return err_set_param(err, ERR_MODEL_UNSUPPORTED, name,
                             "%s: tensor '%s' is of ggml type %u, which is not supported; supported: F32 F16 BF16 F64 Q4_0 "
                             "Q4_1 Q5_0 Q5_1 Q8_0 Q2_K to Q6_K IQ4_NL IQ4_XS MXFP4. Take the model in one of these",
                             r->label, name, type);
    size_t elements, inner = t->n_dims ? t->dims[t->n_dims - 1] : 1;
    const struct dtype_info *info = dtype_info(t->type);
    t->bytes = checkpoint_elements(t->dims, t->n_dims, &elements) ? dtype_bytes(t->type, elements) : SIZE_MAX;
    if (inner % info->block != 0)
        return err_set_param(err, ERR_MODEL_DAMAGED, name,
                             "%s: rows of tensor '%s' have %zu elements, not a multiple of %zu, the block of %s", r->label,
                             name, inner, info->block, info->name);
    if (t->bytes == SIZE_MAX)
        return err_set_param(err, ERR_MODEL_DAMAGED, name, "%s: the dimensions of tensor '%s' overflow", r->label, name);
    return true;
}

static bool parse_tensor(struct cursor *r, uint64_t alignment, struct tensor_place *p, struct err *err)
{
    char name[CHECKPOINT_SHOW_BYTES];
    uint32_t type;
    if (!read_string(r, &p->t.name, "the name of a tensor", err))
        return false;
    checkpoint_show(p->t.name, name);
    if (p->t.name.len == 0 || p->t.name.len > NAME_BYTES_MAX)
        return err_set(err, ERR_MODEL_DAMAGED, "%s: the name of tensor '%s' has %zu bytes; 1 to %d are read", r->label, name,
                       p->t.name.len, NAME_BYTES_MAX);
    if (!parse_dims(r, &p->t, name, err) || !read_u32(r, &type, "the type of a tensor", err) ||
        !set_type(r, &p->t, type, name, err) || !read_u64(r, &p->offset, "the offset of a tensor", err))
        return false;
    if (p->offset % alignment != 0)
        return err_set_param(err, ERR_MODEL_DAMAGED, name,
                             "%s: the offset of tensor '%s' is %llu, not a multiple of the alignment %llu", r->label, name,
                             (unsigned long long)p->offset, (unsigned long long)alignment);
    return true;
}

static bool place_tensors(struct checkpoint *c, size_t index, struct tensor_place *places, size_t n, size_t data,
                          struct err *err)
{
    const struct checkpoint_mapping *f = &c->files[index];
    size_t room = data < f->len ? f->len - data : 0, first = c->n_tensors;
    for (size_t i = 0; i < n; i++) {
        struct tensor *t = &places[i].t;
        char name[CHECKPOINT_SHOW_BYTES];
        checkpoint_show(t->name, name);
        if (places[i].offset > room || t->bytes > room - (size_t)places[i].offset)
            return err_set_param(err, ERR_MODEL_DAMAGED, name,
                                 "%s: tensor '%s' (%zu bytes at offset %llu) lies past the end of the data (%zu bytes): the "
                                 "file is cut or damaged, fetch it again",
                                 f->label, name, t->bytes, (unsigned long long)places[i].offset, room);
        /* A tensor of no bytes may have its place behind the last byte: point it at the file's end. */
        t->data = f->bytes + (data < f->len ? data + (size_t)places[i].offset : f->len);
        if (!checkpoint_add_tensor(c, t, index, err))
            return false;
    }
    return checkpoint_check_ranges(c, first, index, f->bytes + (data < f->len ? data : f->len), CHECKPOINT_GAPS_ALLOWED, err);
}

static bool check_n_tensors(const struct cursor *r, uint64_t n, struct err *err)
{
    const size_t least = 8 + 1 + 4 + 4 + 8; /* bytes of the shortest tensor entry */
    return (n <= left(r) / least && n <= CHECKPOINT_TENSORS_MAX) ||
           err_set(err, ERR_MODEL_DAMAGED, "%s: the header tells of %llu tensors, but %zu bytes are left", r->label,
                   (unsigned long long)n, left(r));
}

static bool parse_tensors(struct checkpoint *c, size_t index, struct cursor *r, uint64_t n, uint64_t alignment, struct err *err)
{
    if (!check_n_tensors(r, n, err))
        return false;
    struct tensor_place *places = calloc(n ? (size_t)n : 1, sizeof *places);
    if (!places)
        return err_set(err, ERR_MEMORY, "%s: no memory left for %llu tensors", r->label, (unsigned long long)n);
    bool ok = true;
    for (size_t i = 0; ok && i < n; i++)
        ok = parse_tensor(r, alignment, &places[i], err);
    if (ok) {
        size_t head = (size_t)(r->at - r->begin);
        size_t data = head + (size_t)((alignment - head % alignment) % alignment);
        ok = place_tensors(c, index, places, (size_t)n, data, err);
    }
    free(places);
    return ok;
}

/* ---- files --------------------------------------------------------------------------------------------------------- */

static bool check_version(struct cursor *r, struct err *err)
{
    uint32_t magic, version;
    if (!read_u32(r, &magic, "the GGUF magic", err))
        return false;
    if (magic != 0x46554747u) /* "GGUF" */
        return err_set(err, ERR_MODEL_DAMAGED, "%s is not a GGUF file: it starts with bytes %02x %02x %02x %02x, not 'GGUF'",
                       r->label, r->begin[0], r->begin[1], r->begin[2], r->begin[3]);
    if (!read_u32(r, &version, "the GGUF version", err))
        return false;
    if ((version & 0xffff) == 0 && version != 0)
        return err_set(err, ERR_MODEL_UNSUPPORTED,
                       "%s is a big-endian GGUF file; only little-endian ones are read: convert "
                       "it with the gguf package's gguf-convert-endian",
                       r->label);
    if (version != 2 && version != 3)
        return err_set(err, ERR_MODEL_UNSUPPORTED,
                       "%s is of GGUF version %u; versions 2 and 3 are read: convert the model "
                       "anew",
                       r->label, version);
    return true;
}

static bool read_alignment(const struct checkpoint *c, const char *label, uint64_t *out, struct err *err)
{
    struct gguf_value v;
    *out = ALIGNMENT_DEFAULT;
    if (!checkpoint_meta(c, "general.alignment", &v))
        return true;
    if (v.kind != GGUF_UINT || v.u == 0 || v.u > ALIGNMENT_MAX || (v.u & (v.u - 1)) != 0)
        return err_set(err, ERR_MODEL_DAMAGED, "%s: general.alignment is %llu, not a power of two of 1 to %llu", label,
                       (unsigned long long)v.u, (unsigned long long)ALIGNMENT_MAX);
    *out = v.u;
    return true;
}

/* Copies what is in front of the data to f->header. */
static bool copy_header(struct checkpoint_mapping *f, size_t *len, struct err *err)
{
    struct cursor r = {f->bytes, f->bytes + f->len, f->label, f->bytes};
    uint64_t n_tensors, n_entries;
    bool ok = check_version(&r, err) && read_u64(&r, &n_tensors, "the GGUF header", err) &&
              read_u64(&r, &n_entries, "the GGUF header", err) && check_n_entries(&r, n_entries, err);
    for (uint64_t i = 0; ok && i < n_entries; i++)
        ok = parse_entry(&r, &(struct gguf_entry){0}, err);
    ok = ok && check_n_tensors(&r, n_tensors, err);
    for (uint64_t i = 0; ok && i < n_tensors; i++)
        ok = parse_tensor(&r, 1, &(struct tensor_place){0}, err);
    if (!ok)
        return false;
    *len = (size_t)(r.at - r.begin);
    f->header = malloc(*len);
    if (!f->header)
        return err_set(err, ERR_MEMORY, "%s: no memory left for a header of %zu bytes", f->label, *len);
    memcpy(f->header, f->bytes, *len);
    return true;
}

/* Parses into `c` what the file says of itself; entries are left in c->entries. */
static bool parse_file(struct checkpoint *c, size_t index, struct err *err)
{
    struct checkpoint_mapping *f = &c->files[index];
    size_t len;
    if (!copy_header(f, &len, err))
        return false;
    struct cursor r = {f->header, f->header + len, f->label, f->header};
    uint64_t n_tensors, n_entries, alignment;
    return check_version(&r, err) && read_u64(&r, &n_tensors, "the GGUF header", err) &&
           read_u64(&r, &n_entries, "the GGUF header", err) && parse_metadata(c, &r, n_entries, err) &&
           read_alignment(c, f->label, &alignment, err) && parse_tensors(c, index, &r, n_tensors, alignment, err);
}

bool gguf_parse(struct checkpoint *c, size_t index, struct err *err)
{
    if (index == 0)
        return parse_file(c, index, err);
    /* A later part has entries of its own (split.no, general.alignment): read beside the first part's, then dropped. */
    struct gguf_entry *entries = c->entries;
    struct map by_key = c->entry_by_key;
    size_t n_entries = c->n_entries;
    uint64_t count = 0, part_count = 0, number = index;
    checkpoint_meta_uint(c, "split.count", &count);
    c->entries = NULL;
    c->n_entries = 0;
    map_init(&c->entry_by_key);
    bool ok = parse_file(c, index, err);
    if (ok && (!checkpoint_meta_uint(c, "split.count", &part_count) || part_count != count ||
               !checkpoint_meta_uint(c, "split.no", &number) || number != index))
        ok = err_set(err, ERR_MODEL_DAMAGED,
                     "%s says of itself that it is part %llu of %llu, but its name puts it at part %zu of %zu: fetch it again",
                     c->files[index].label, (unsigned long long)number + 1, (unsigned long long)part_count, index + 1,
                     (size_t)count);
    free(c->entries);
    map_release(&c->entry_by_key);
    c->entries = entries;
    c->n_entries = n_entries;
    c->entry_by_key = by_key;
    return ok;
}

/* `ending`: ".gguf" as the part that was named has it. */
static bool open_part(struct checkpoint *c, struct str stem, const char *ending, unsigned number, unsigned count,
                      struct err *err)
{
    char *path;
    if (asprintf(&path, "%.*s-%05u-of-%05u%s", (int)stem.len, stem.ptr, number, count, ending) < 0)
        return err_set(err, ERR_MEMORY, "no memory left to open a GGUF file");
    struct err why = {0};
    const char *slash = strrchr(path, '/');
    bool ok = checkpoint_map(c, path, &why);
    if (!ok && why.code == ERR_MODEL_NOT_FOUND)
        err_set(err, ERR_MODEL_DAMAGED, "part %u of %u, %s, is missing: fetch it again", number, count,
                slash ? slash + 1 : path);
    else if (!ok)
        err_set(err, why.code, "%s", why.text);
    free(path);
    return ok && gguf_parse(c, c->n_files - 1, err);
}

static bool check_split(const struct checkpoint *c, unsigned count, struct err *err)
{
    uint64_t said = 0, number = 0, n_tensors = 0;
    const char *label = c->files[0].label;
    bool named = checkpoint_meta_uint(c, "split.count", &said);
    checkpoint_meta_uint(c, "split.no", &number);
    if (named && said > 1 && count == 0)
        return err_set(err, ERR_MODEL_DAMAGED,
                       "%s is part %llu of %llu of a split model: its file name must end in -%05llu-of-%05llu.gguf, with the "
                       "other parts beside it",
                       label, (unsigned long long)number + 1, (unsigned long long)said, (unsigned long long)number + 1,
                       (unsigned long long)said);
    if (count > 1 && (said != count || number != 0))
        return err_set(err, ERR_MODEL_DAMAGED, "%s says that it is part %llu of %llu, but its name says part 1 of %u", label,
                       (unsigned long long)number + 1, (unsigned long long)said, count);
    if (count > 1 && c->n_files == count && checkpoint_meta_uint(c, "split.tensors.count", &n_tensors) &&
        n_tensors != c->n_tensors)
        return err_set(err, ERR_MODEL_DAMAGED, "%s: the parts should hold %llu tensors, but hold %zu", label,
                       (unsigned long long)n_tensors, c->n_tensors);
    return true;
}

bool gguf_open(struct checkpoint *c, const char *path, struct err *err)
{
    size_t stem;
    unsigned number, count = 0;
    if (!checkpoint_split_name(str_from(path), STR(".gguf"), &stem, &number, &count))
        return checkpoint_map(c, path, err) && gguf_parse(c, 0, err) && check_split(c, 0, err);
    if (count > CHECKPOINT_SHARDS_MAX)
        return err_set(err, ERR_MODEL_DAMAGED, "%s: a model in %u parts; at most %zu are read", path, count,
                       CHECKPOINT_SHARDS_MAX);
    const char *ending = path + strlen(path) - (sizeof ".gguf" - 1);
    for (unsigned i = 1; i <= count; i++) {
        if (!open_part(c, (struct str){path, stem}, ending, i, count, err) || (i == 1 && !check_split(c, count, err)))
            return false;
    }
    return check_split(c, count, err);
}
